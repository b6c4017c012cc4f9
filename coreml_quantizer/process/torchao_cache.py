"""Models that torchao keeps alive."""

from torchao.utils import _assert_and_get_unique_device


def release_earlier_models() -> None:
    """Lets go of models that were prepared or converted before and that nothing else uses.

    torchao notes the devices of the last 128 models that it was given by the models themselves, which therefore stay in
    memory with all their weights.
    """
    _assert_and_get_unique_device.cache_clear()
