"""Decisions about one graph: which values are quantized, which values share parameters, and why."""
