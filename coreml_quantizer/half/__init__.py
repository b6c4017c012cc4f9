"""Rounding of constants that stay in floating point to float16, as Core ML stores them."""
