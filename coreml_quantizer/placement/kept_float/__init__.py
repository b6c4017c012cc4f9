"""The values that stay in floating point: masks, positions, and what a steep function reads."""
