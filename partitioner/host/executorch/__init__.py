"""Runs `.pte` files in ExecuTorch's own runtime, with this machine as the Core ML delegate."""
