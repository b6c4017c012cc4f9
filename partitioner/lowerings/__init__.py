"""Converters from torch to MIL that Core ML Tools lacks or gets wrong, one module an operation family.

Importing this package registers ExecuTorch's converters first and ours on top of them.
"""

import partitioner.stock  # ExecuTorch's converters come first  # noqa: F401
from partitioner.lowerings import angles as angles
from partitioner.lowerings import assignment as assignment
from partitioner.lowerings import attention as attention
from partitioner.lowerings import clamping as clamping
from partitioner.lowerings import compressed_weights as compressed_weights
from partitioner.lowerings import defaults as defaults
from partitioner.lowerings import division as division
from partitioner.lowerings import extrema as extrema
from partitioner.lowerings import filling as filling
from partitioner.lowerings import gelu as gelu
from partitioner.lowerings import group_norm as group_norm
from partitioner.lowerings import logarithms as logarithms
from partitioner.lowerings import logic as logic
from partitioner.lowerings import matmul as matmul
from partitioner.lowerings import memory_format as memory_format
from partitioner.lowerings import norms as norms
from partitioner.lowerings import padding as padding
from partitioner.lowerings import pooling as pooling
from partitioner.lowerings import quantization as quantization
from partitioner.lowerings import reciprocals as reciprocals
from partitioner.lowerings import scaled_products as scaled_products
from partitioner.lowerings import scaled_sums as scaled_sums
from partitioner.lowerings import selecting as selecting
from partitioner.lowerings import sorting as sorting
from partitioner.lowerings import unbatched as unbatched  # wraps the pools, so it comes after them
from partitioner.lowerings import variance as variance
from partitioner.lowerings import windows as windows
from partitioner.lowerings.registry import has_converter as has_converter
