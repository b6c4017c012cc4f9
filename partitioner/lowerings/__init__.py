"""Converters from torch to MIL that Core ML Tools lacks or gets wrong, one module an operation family.

Importing this package registers them all. A module that replaces or wraps what another one registers imports that one:
`registry` imports ExecuTorch's converters, so ours are on top of them, in whatever order these modules are imported.
"""

from partitioner.lowerings import add_sub as add_sub
from partitioner.lowerings import addmm as addmm
from partitioner.lowerings import argmax as argmax
from partitioner.lowerings import atan2 as atan2
from partitioner.lowerings import clamp as clamp
from partitioner.lowerings import compressed_weights as compressed_weights
from partitioner.lowerings import conv_pool_unbatched as conv_pool_unbatched
from partitioner.lowerings import conv_transpose as conv_transpose
from partitioner.lowerings import cosine_similarity as cosine_similarity
from partitioner.lowerings import default_arguments as default_arguments
from partitioner.lowerings import div as div
from partitioner.lowerings import full as full
from partitioner.lowerings import gelu as gelu
from partitioner.lowerings import group_norm as group_norm
from partitioner.lowerings import index_put as index_put
from partitioner.lowerings import log as log
from partitioner.lowerings import logcumsumexp as logcumsumexp
from partitioner.lowerings import logical as logical
from partitioner.lowerings import matmul as matmul
from partitioner.lowerings import max_pool as max_pool
from partitioner.lowerings import norms as norms
from partitioner.lowerings import pad as pad
from partitioner.lowerings import quantize_per_tensor as quantize_per_tensor
from partitioner.lowerings import rsqrt as rsqrt
from partitioner.lowerings import scaled_dot_product_attention as scaled_dot_product_attention
from partitioner.lowerings import to_copy as to_copy
from partitioner.lowerings import topk as topk
from partitioner.lowerings import unfold as unfold
from partitioner.lowerings import var as var
from partitioner.lowerings import vector_norm as vector_norm
from partitioner.lowerings import where as where
from partitioner.lowerings.registry import has_converter as has_converter
