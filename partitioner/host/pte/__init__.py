"""Reads and checks `.pte` files without ExecuTorch."""
