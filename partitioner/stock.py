"""The parts of ExecuTorch's own Core ML backend that this package builds on.

ExecuTorch's backend module must be imported first, for two reasons: it registers the Core ML Tools converters that
ExecuTorch adds, and it defines the class that ours replaces (see `partitioner.backend`).
"""

from partitioner.versions import unsuitable

try:
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import (
        COMPILE_SPEC_KEYS,
        MULTIMETHOD_WEIGHT_SHARING_STRATEGY,
    )
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import CoreMLBackend as StockBackend
    from executorch.backends.apple.coreml.compiler.enumerated_shape_utils import (
        _get_ct_inputs as enumerated_inputs,
    )
    from executorch.backends.apple.coreml.compiler.enumerated_shape_utils import (
        _SymbolicShapeToEnumeratedShapeMap as EnumeratedShapes,
    )
except ImportError as error:
    raise ImportError(unsuitable(error)) from error

__all__ = [
    "COMPILE_SPEC_KEYS",
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY",
    "EnumeratedShapes",
    "StockBackend",
    "enumerated_inputs",
]
