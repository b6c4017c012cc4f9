"""Treatment of values that float16 cannot hold, before a MIL program is cast: masks, tiny constants, large values."""

from partitioner.half_precision.safety import HALF_SAFETY as HALF_SAFETY
from partitioner.half_precision.safety import Findings as Findings
from partitioner.half_precision.safety import watch as watch
