"""Definitions of the MIL operations, one module a family. Importing this package registers them all."""

from importlib import import_module

_FAMILIES = (
    "activation",
    "classify",
    "constexpr",
    "control_flow",
    "conv",
    "elementwise_binary",
    "elementwise_unary",
    "image_crop",
    "image_resizing",
    "image_sampling",
    "linear",
    "lists",
    "nms",
    "normalization",
    "pool",
    "quantize",
    "random",
    "recurrent",
    "reduction",
    "scatter_gather",
    "sequential",
    "space",
    "states",
    "tensor_operation",
    "tensor_slicing",
    "tensor_transformation",
)

for _family in _FAMILIES:
    import_module(f"{__name__}.{_family}")
