"""Decisions: which operators Core ML takes, which target they need, and why the rest stays outside."""
