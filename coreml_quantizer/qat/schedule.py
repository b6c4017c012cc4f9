"""Milestones: when a module turns observers on, fake quantization on and observers off, and freezes batch norms."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from coreml_quantizer.specs import Milestones

Mode = bool | None
"""Whether the model trains; None until it is set."""


class Scheduled(nn.Module):
    """A module that `quantizer.step()` moves through its milestones.

    The number of steps taken is part of the module's state, so that a checkpoint resumes in the middle of a schedule.

    Attributes:
        milestones: Step counts at which observers are turned on, fake quantization is turned on, observers are turned
            off and batch-norm statistics are frozen; -1 for never. None: observe and quantize from the start.
        steps: Number of steps taken, int64, shape `()`; read `step_count` instead, which does not wait for a device.
    """

    steps: Tensor

    def schedule(self, milestones: Milestones | None) -> None:
        """Sets the milestones and the state before the first step."""
        self.milestones = milestones
        self.step_count = 0
        self.register_buffer("steps", torch.tensor(0))

    def advance(self) -> None:
        """Takes one step, and carries out the actions of milestones that it reaches."""
        if self.milestones is None:
            return
        for milestone, act in zip(self.milestones, self.actions(), strict=True):
            if milestone == self.step_count:
                act()
        self.step_count += 1

    def actions(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Returns the action of the module at each of the four milestones."""
        raise NotImplementedError

    def switches(self) -> Mapping[str, str]:
        """Returns the Python attributes that checkpoints save, by the names of their buffers."""
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
    """Returns the milestones that most of `modules` have; modules without configured milestones use them."""
    counts = Counter(module.milestones for module in modules if isinstance(module, Scheduled))
    return counts.most_common(1)[0][0] if counts else None


def nothing() -> None:
    """Does nothing: the action at a milestone that does not concern a module."""
