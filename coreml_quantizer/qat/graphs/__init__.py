"""Graphs that train: how they are made, and how they are converted."""
