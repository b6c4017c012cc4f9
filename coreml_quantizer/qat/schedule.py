"""Milestones: when a module starts to observe, to fake-quantize, stops observing, and freezes batch-norm statistics."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from coreml_quantizer.specs import Milestones

Mode = bool | None
"""Whether the model trains; None until somebody says so."""


class Scheduled(nn.Module):
    """A module that `quantizer.step()` moves through its milestones.

    The number of steps taken is part of the module's state, so that a checkpoint resumes in the middle of a schedule.

    Attributes:
        milestones: Step counts at which observers are turned on, fake quantization is turned on, observers are turned
            off and batch-norm statistics are frozen; -1 for never. None: observe and quantize from the start.
        steps: How many steps were taken, int64, shape `()`; read `step_count` instead, which needs no device.
    """

    steps: Tensor

    def schedule(self, milestones: Milestones | None) -> None:
        """Sets the milestones and the state before the first step."""
        self.milestones = milestones
        self.step_count = 0
        self.register_buffer("steps", torch.tensor(0))

    def advance(self) -> None:
        """Takes one step."""
        if self.milestones is None:
            return
        for milestone, act in zip(self.milestones, self.actions(), strict=True):
            if milestone == self.step_count:
                act()
        self.step_count += 1

    def actions(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Returns what the module does at each milestone."""
        raise NotImplementedError

    def switches(self) -> Mapping[str, str]:
        """Returns which buffers hold which Python attributes, for checkpoints."""
        return MappingProxyType({"steps": "step_count"})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Decisions are taken on Python values, which cost no synchronization; buffers carry them into checkpoints.
        for buffer, attribute in self.switches().items():
            getattr(self, buffer).fill_(int(getattr(self, attribute)))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for buffer, attribute in self.switches().items():
            kind = type(getattr(self, attribute))
            setattr(self, attribute, kind(getattr(self, buffer).item()))


def most_common_milestones(modules: Iterable[nn.Module]) -> Milestones | None:
    """Returns the milestones that most of `modules` have, for those whose own configuration names none."""
    counts = Counter(module.milestones for module in modules if isinstance(module, Scheduled))
    return counts.most_common(1)[0][0] if counts else None


def nothing() -> None:
    """A milestone that does not concern a module."""
