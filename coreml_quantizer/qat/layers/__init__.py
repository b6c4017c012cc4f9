"""Layers as modules of the graph, so that they follow the model's mode."""
