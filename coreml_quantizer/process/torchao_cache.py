"""A cache of torchao that keeps earlier models alive."""

from torchao.utils import _assert_and_get_unique_device


def release_earlier_models() -> None:
    """Releases models that were prepared or converted before and that nothing else uses.

    torchao caches the devices of the last 128 models that it was given. The models themselves are the keys, so they
    stay in memory with all their weights.
    """
    _assert_and_get_unique_device.cache_clear()
