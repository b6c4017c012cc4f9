"""What float16 cannot hold, found in a MIL program before it is cast: masks, tiny constants, large values."""

from partitioner.half_precision.safety import HALF_SAFETY as HALF_SAFETY
from partitioner.half_precision.safety import Findings as Findings
from partitioner.half_precision.safety import watch as watch
