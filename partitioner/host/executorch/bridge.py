"""The functions that the native delegate calls: one opens a blob, one runs it on the runtime's tensors.

ExecuTorch's runtime knows error codes only. So an exception is kept for the thread that caused it, and `take_error`
returns it to the caller of the runtime.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch

from partitioner.errors import BlobError
from partitioner.format.reference import read_reference
from partitioner.host.errors import ExecutionError, ProgramFormatError
from partitioner.host.execution.executor import Observer
from partitioner.host.execution.policy import STORAGE16, Policy
from partitioner.host.execution.tracing import event_name
from partitioner.host.loading import Program, load
from partitioner.host.mil.model import Op

_KEPT_BLOB_BYTES = 64 << 20
"""Loaded programs are kept up to this many blob bytes, so that a second run of a `.pte` does not read it again."""


class Argument(Protocol):
    """A tensor of the running delegate call; the native module's class of this name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def view(self) -> torch.Tensor: ...

    def resize(self, shape: list[int]) -> None: ...


class Tracer(Protocol):
    """The event tracer of the running delegate call; the native module's class of this name."""

    @property
    def wants_outputs(self) -> bool: ...

    def now(self) -> int: ...

    def log_time(self, name: str, start: int, end: int) -> None: ...

    def log_output(self, name: str, values: torch.Tensor) -> None: ...


_LOGGED = {torch.int16: torch.int32, torch.float16: torch.float32}
"""Types that an ETDump cannot hold, and what holds their values."""


class _Events:
    """Logs every operation as a delegate event, with its outputs when the runtime has a buffer for them."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._wants_outputs = tracer.wants_outputs
        self.now = tracer.now

    def finished(self, op: Op, start: int, end: int, values: Sequence[object]) -> None:
        name = event_name(op)
        self._tracer.log_time(name, start, end)
        if not self._wants_outputs:
            return
        for value in values:
            if isinstance(value, torch.Tensor) and value.numel():
                self._tracer.log_output(name, value.to(_LOGGED.get(value.dtype, value.dtype)).contiguous())


class Session:
    """One opened delegate: a program, the function to run, and that function's states."""

    def __init__(self, program: Program, function: str | None) -> None:
        chosen = function or program.functions[0]
        interface = program.mil.functions[chosen]
        self.input_count = len(interface.inputs)
        self.output_count = len(interface.outputs)
        self._program = program
        self._function = chosen
        self._state = program.make_state(chosen) if interface.states else None
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[torch.Tensor], observer: Observer | None = None) -> list[torch.Tensor]:
        """Runs once; states carry over to the next run."""
        if self._state is None:
            return self._program.run(inputs, function=self._function, observer=observer)
        # A state may keep what was written to it, and the runtime reuses the memory of its inputs.
        owned = [tensor.clone() for tensor in inputs]
        with self._lock:
            return self._program.run(owned, state=self._state, function=self._function, observer=observer)

    def __call__(self, arguments: Sequence[Argument], tracer: Tracer | None = None) -> None:
        """Runs on the runtime's tensors: inputs first, then outputs, which are written in place.

        Args:
            arguments: The tensors.
            tracer: Logs events of the call, when the runtime traces.
        """
        with _kept_error():
            expected = self.input_count + self.output_count
            if len(arguments) != expected:
                raise ExecutionError(
                    f"the delegate call passes {len(arguments)} tensors, but its program takes {self.input_count} "
                    f"inputs and {self.output_count} outputs; lower the model again"
                )
            observer = None if tracer is None else _Events(tracer)
            results = self.run([argument.view() for argument in arguments[: self.input_count]], observer)
            for argument, result in zip(arguments[self.input_count :], results, strict=True):
                _store(argument, result)


class _ProgramCache:
    """The programs loaded last, most recent last."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._programs: OrderedDict[tuple[bytes, int], tuple[Program, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, blob: bytes, policy: Policy) -> Program:
        # A kept program keeps its policy alive, so the identity of the policy is not reused.
        key = (hashlib.sha256(blob).digest(), id(policy))
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
                return self._programs[key][0]
        program = load(blob, policy=policy)
        with self._lock:
            self._programs[key] = (program, len(blob))
            while sum(size for _, size in self._programs.values()) > self._limit_bytes:
                self._programs.popitem(last=False)
        return program


_cache = _ProgramCache(_KEPT_BLOB_BYTES)
_default_policy: Policy = STORAGE16
_chosen_policy: ContextVar[Policy | None] = ContextVar("coreml_host_policy", default=None)
_errors = threading.local()


def set_default_policy(policy: Policy) -> None:
    """Sets the policy of delegates that are opened outside `use_policy`."""
    global _default_policy
    _default_policy = policy


@contextmanager
def use_policy(policy: Policy) -> Iterator[None]:
    """Opens delegates under a policy for as long as the context lasts, on this thread."""
    token = _chosen_policy.set(policy)
    try:
        yield
    finally:
        _chosen_policy.reset(token)


def open_delegate(
    blob: bytes, compile_specs: Mapping[str, bytes], method: str, named_data: Callable[[str], bytes]
) -> Session:
    """Opens a delegate blob; the native delegate's init.

    Args:
        blob: The delegate blob, or a reference to one in the program's named data.
        compile_specs: The compile specs stored with it. None of them changes a result on this machine.
        method: The method being loaded.
        named_data: Returns the program's named data of a key, or raises KeyError.

    Raises:
        HostError: The blob is unreadable or uses what this runtime does not define.
    """
    with _kept_error():
        blob, function = _followed(blob, named_data, method)
        program = _cache.get(blob, _chosen_policy.get() or _default_policy)
        if function is not None and function not in program.functions:
            raise ProgramFormatError(
                f"method {method!r} refers to the function {function!r}; the model has {list(program.functions)}"
            )
        return Session(program, function)


def take_error() -> BaseException | None:
    """Returns what this thread's last delegate call raised, and forgets it."""
    error: BaseException | None = getattr(_errors, "last", None)
    _errors.last = None
    return error


@contextmanager
def _kept_error() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        _errors.last = error
        raise


def _store(argument: Argument, result: torch.Tensor) -> None:
    shape = list(argument.shape)
    # Core ML has no rank-0 arrays: a scalar travels as one element.
    if not shape:
        result = result.reshape(())
    elif list(result.shape) != shape:
        argument.resize(list(result.shape))
    argument.view().copy_(result)


def _followed(blob: bytes, named_data: Callable[[str], bytes], method: str) -> tuple[bytes, str | None]:
    """Returns the blob that a delegate holds or refers to, and the name of the function to run, if it gives one."""
    try:
        reference = read_reference(blob)
    except BlobError as error:
        raise ProgramFormatError(f"method {method!r}: {error}") from None
    if reference is None:
        return blob, None
    try:
        return named_data(reference.key), reference.function
    except KeyError:
        raise ProgramFormatError(
            f"method {method!r} refers to named data {reference.key!r}, which the program does not hold; lower the "
            "model again"
        ) from None
