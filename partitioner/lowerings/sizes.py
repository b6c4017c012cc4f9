"""Sizes of values, where they may vary."""

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.types.symbolic import is_symbolic


def size_of(x: Any, axis: int) -> Any:
    """Returns the size of a dimension, a scalar: a constant, or where the size varies an int32 value of the program."""
    size = x.shape[axis]
    if not is_symbolic(size):
        return np.int32(size)
    return mb.squeeze(x=mb.slice_by_size(x=mb.shape(x=x), begin=[axis % x.rank], size=[1]), axes=[0])


def shape_of(x: Any) -> Any:
    """Returns the shape, a vector: a constant, or where a size varies an int32 value of the program."""
    return mb.shape(x=x) if any(map(is_symbolic, x.shape)) else np.asarray(x.shape, np.int32)
