"""Graphs that train: how they are made, and what conversion makes of them."""
