"""The test for other processes that train the same model."""

import torch.distributed as dist


def several_ranks() -> bool:
    """Returns whether torch.distributed runs with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
