"""``MLModel.predict`` on machines without Core ML."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from partitioner.host.errors import ExecutionError, InputError
from partitioner.host.execution.boundary import to_program
from partitioner.host.execution.policy import STORAGE16, Policy, get_policy
from partitioner.host.loading import Program, load
from partitioner.host.mil.model import Feature, Function

_FAILED = "Unable to compute the prediction using ML Program"
"""The start of Core ML's own message, which tests look for."""


@contextmanager
def patch_coremltools(policy: str | Policy = STORAGE16) -> Iterator[None]:
    """Runs ``MLModel.predict`` and ``MLModel.make_state`` of ML Programs on this machine, until the context ends.

    Models may be made before or inside the context. Predictions follow a precision policy and are never what a
    particular Apple device returns. Models that are no ML Programs are refused, unless Core ML itself has loaded them.

    Args:
        policy: Precision policy, by name or as an object.

    Raises:
        PolicyError: The policy is unknown.
        ProgramFormatError: From ``predict`` and ``make_state``: the model is no ML Program.
        KeyError: From ``predict``, as on macOS: the model has no such input.
        TypeError: From ``predict``, as on macOS: an image input is given something else, or an image of another mode.
    """
    host = _Host(get_policy(policy))
    _begin(host)
    try:
        yield
    finally:
        _end(host)


_PATCHED = ("predict", "make_state")
_lock = threading.Lock()
_open: list["_Host"] = []
"""The hosts of the contexts that are open, in the order in which they began; the last one answers."""

_originals: dict[str, Callable[..., Any]] = {}
"""Methods of ``MLModel`` by name, kept while a context is open. Contexts may end in any order, on any thread."""


def _begin(host: "_Host") -> None:
    from coremltools.models import MLModel

    with _lock:
        if not _open:
            _originals.update({name: getattr(MLModel, name) for name in _PATCHED})
            MLModel.predict, MLModel.make_state = _predict, _make_state
        _open.append(host)


def _end(host: "_Host") -> None:
    from coremltools.models import MLModel

    with _lock:
        _open.remove(host)
        if not _open:
            for name in _PATCHED:
                setattr(MLModel, name, _originals[name])


def _host_of(model: Any) -> "_Host | None":
    """Returns the host that answers for a model, or None where Core ML itself does."""
    if model._spec.WhichOneof("Type") != "mlProgram" and model.__proxy__ is not None:
        return None
    with _lock:
        return _open[-1] if _open else None


def _predict(self: Any, data: Any, state: Any = None) -> Any:
    """Stands in for ``MLModel.predict``."""
    host = _host_of(self)
    if host is None:
        return _originals["predict"](self, data, state)
    host.program(self)
    type(self)._check_predict_data(data)
    items = data if isinstance(data, list) else [data]
    for item in items:
        # Core ML Tools' own check of names and image modes, with its errors.
        self._verify_input_dict(item)
    results = [host.predict(self, item, state) for item in items]
    return results if isinstance(data, list) else results[0]


def _make_state(self: Any) -> Any:
    """Stands in for ``MLModel.make_state``."""
    from coremltools.models.model import MLState

    host = _host_of(self)
    if host is None:
        return _originals["make_state"](self)
    program, function = host.program(self)
    return MLState(HostState(program, function))


class HostState:
    """The content of an ``MLState`` made on this machine; reads and writes states as numpy arrays."""

    def __init__(self, program: Program, function: Function) -> None:
        """Makes fresh states for a function of a program."""
        self._features = {feature.name: feature for feature in function.states}
        self._policy = program.policy
        self.states = program.make_state(function.name)

    def read_state(self, name: str) -> np.ndarray[Any, Any]:
        """Returns a copy of a state in its declared type.

        Raises:
            RuntimeError: There is no such state.
        """
        feature = self._feature(name)
        assert feature.dtype is not None
        return np.array(self.states[name].value.to(feature.dtype.storage).numpy())

    def write_state(self, name: str, value: Any) -> None:
        """Replaces the content of a state.

        Raises:
            RuntimeError: There is no such state, or the value does not fit it.
        """
        feature = self._feature(name)
        try:
            self.states[name].value = to_program(feature, value, self._policy).clone()
        except InputError as error:
            raise RuntimeError(str(error)) from error

    def _feature(self, name: str) -> Feature:
        if name not in self._features:
            raise RuntimeError(f"no state {name!r}; the model has {sorted(self._features)}")
        return self._features[name]


class _Host:
    """Programs of the models that were asked to predict."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._programs: WeakKeyDictionary[Any, Program] = WeakKeyDictionary()

    def program(self, model: Any) -> tuple[Program, Function]:
        if model not in self._programs:
            self._programs[model] = load(model, policy=self._policy)
        program = self._programs[model]
        return program, program.mil.functions[model.function_name or program.mil.default_function]

    def predict(self, model: Any, data: dict[str, Any], state: Any) -> dict[str, Any]:
        program, function = self.program(model)
        features = {feature.name: feature for feature in function.inputs}
        given = {name: _as_declared(features.get(name), value) for name, value in data.items()}
        try:
            return program.predict(given, None if state is None else state.__proxy__.states, function.name)
        except ExecutionError as error:
            raise ExecutionError(f"{_FAILED}: {error}") from error


def _as_declared(feature: Feature | None, value: Any) -> Any:
    """Returns whole numbers that came as floats as the integers declared, as Core ML does."""
    if feature is None or feature.dtype is None or feature.dtype.is_float or feature.kind == "image":
        return value
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    if tensor.is_floating_point() and bool((tensor == tensor.trunc()).all()):
        return tensor.to(torch.int64)
    return tensor
