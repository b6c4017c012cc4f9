"""States: values that outlive a run."""

import torch

from partitioner.host.mil.model import Opset
from partitioner.host.registry import State, register_op


@register_op("read_state", since=Opset.IOS18, exact=True, pure=False)
def read_state(input: State) -> torch.Tensor:
    """Returns the present content."""
    return input.value


@register_op("write_state", since=Opset.IOS18, pure=False)
def write_state(input: State, data: torch.Tensor) -> None:
    """Replaces the content; values that were read before keep the old one."""
    input.value = data.to(input.value.dtype).clone()
