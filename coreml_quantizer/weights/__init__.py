"""Observers for the forms of weights that PT2E has none for: blocks, channel groups, and lookup tables."""

from coreml_quantizer.weights.blocks import BlockObserver
from coreml_quantizer.weights.palette import PaletteObserver

__all__ = ["BlockObserver", "PaletteObserver"]
