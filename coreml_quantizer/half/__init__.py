"""Rounds what stays in floating point to float16, as Core ML stores it."""
