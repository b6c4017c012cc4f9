"""The model that a quantizer trains: its milestones, and agreement between the ranks of a process group."""

import weakref
from collections.abc import Iterable

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.qat.quantizers.estimated import FakeQuantize
from coreml_quantizer.qat.schedule import Scheduled
from coreml_quantizer.qat.steps.distributed import agree

_STEPS_BETWEEN_CHECKS = 100
"""The number of steps between two checks of all ranges.

Reading a range waits for the device. Only eager mode on a CPU can do that at every step.
"""


class Trainee:
    """The modules of a prepared model that `step()` moves, held without keeping the model alive."""

    def __init__(self, modules: Iterable[Scheduled]) -> None:
        self._modules = [weakref.ref(module) for module in modules]
        self._taken = 0

    def step(self) -> None:
        """Moves every module by one step.

        Raises:
            QuantizerError: The model does not exist any more.
            CalibrationError: A range is not finite; checked every 100 steps, unless the forward pass checks it itself.
        """
        modules = [module for module in (reference() for reference in self._modules) if module is not None]
        if not modules:
            raise QuantizerError("step() has nothing to step: the model that was prepared does not exist any more.")
        agree(modules)
        self._taken += 1
        if self._taken % _STEPS_BETWEEN_CHECKS == 0:
            for module in modules:
                if isinstance(module, FakeQuantize):
                    module.check()
        for module in modules:
            module.advance()
