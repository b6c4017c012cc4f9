"""Division of tensors of different types, which ``true_divide`` leaves unequal in Core ML Tools, unlike ``div``."""

from partitioner.lowerings.registry import get_converter, set_converter

set_converter("true_divide")(get_converter("div"))
