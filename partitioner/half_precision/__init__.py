"""Treatment of values that float16 cannot hold, before a MIL program is cast: masks, tiny constants, large values."""

from partitioner.half_precision.keep_float32 import HALF_SAFETY as HALF_SAFETY
from partitioner.half_precision.keep_float32 import Findings as Findings
from partitioner.half_precision.keep_float32 import watch as watch
