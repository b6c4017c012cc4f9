"""Execution of whole `.pte` programs by ExecuTorch's runtime, with Core ML delegates run on this machine."""

import os
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from partitioner.errors import PartitionerError
from partitioner.format.paths import MANIFEST_FILE
from partitioner.host.errors import DelegateUnavailableError, ExecutionError, InputError, ProgramFormatError
from partitioner.host.execution.policy import STORAGE16, Policy, get_policy
from partitioner.host.executorch import bridge
from partitioner.host.executorch.fixed_sizes import with_fixed_sizes
from partitioner.host.executorch.inputs import DTYPES, Input, check_inputs
from partitioner.host.pte.reader import COREML_BACKEND, NULL, Method, PteProgram, read_pte
from partitioner.host.reading.packages import map_file
from partitioner.host.reading.source import Given, bytes_or_path, naming, refuse_bare_model

_ACCEPTED = "the bytes of a .pte, the path of a .pte file, or `program.buffer` of `to_executorch()`"
_REINSTALL = (
    "install a C++ compiler (for example `apt install g++`), then reinstall from the checkout: "
    "`pip install --force-reinstall --no-deps .`"
)

Output = torch.Tensor | Any
"""A tensor, or None where the model returns None. Typed `Any`, because the caller knows which."""

_RUNTIME_LOCK = threading.Lock()
"""ExecuTorch's Python bindings redirect the process's standard streams during a call, which two threads must not do at
the same time."""


class HasBuffer(Protocol):
    """A program that gives its own bytes, as ``ExecutorchProgramManager`` does."""

    @property
    def buffer(self) -> bytes:
        """The `.pte`."""


class _Native(Protocol):
    def register(self, opener: Any) -> bool: ...

    def take_last_error(self) -> str: ...


def enable(policy: str | Policy = STORAGE16) -> None:
    """Registers the backend "CoreMLBackend" in ExecuTorch's runtime of this process.

    Afterwards ``executorch.runtime.Runtime`` loads and executes programs with Core ML delegates. Calling it again is
    harmless and sets the policy for programs loaded from then on. On macOS ExecuTorch brings the real delegate: nothing
    is registered, and the policy does not apply to it.

    Args:
        policy: Precision policy of delegates loaded from now on, see ``partitioner.host.policies``.

    Raises:
        DelegateUnavailableError: The native module was not built for this installation.
        PolicyError: The policy is unknown.
    """
    chosen = get_policy(policy)
    if sys.platform == "darwin":
        return
    _register(_native())
    bridge.set_default_policy(chosen)


def run(
    pte: bytes | bytearray | memoryview | str | os.PathLike[str] | HasBuffer,
    *inputs: Input,
    method: str = "forward",
    policy: str | Policy = STORAGE16,
) -> list[Output]:
    """Runs one method of a `.pte` once, from fresh state, through ExecuTorch's runtime.

    Where the native delegate was not built, a method that is a single Core ML delegate is executed in pure Python. That
    is also done on macOS, so that the policy holds there. Calls from several threads take turns.

    Args:
        pte: The program: its bytes, the path of a file, or what ``to_executorch()`` returns.
        *inputs: One tensor for each input of the method, in order; None where the model was exported with None.
        method: Name of the method.
        policy: Precision policy, see ``partitioner.host.policies``.

    Returns:
        One tensor for each output of the method; None where the model returns None.

    Raises:
        ProgramFormatError: The program is missing, truncated, corrupt, or no `.pte`.
        InputError: ``pte`` is neither bytes nor a path, there is no such method, or the count, a shape or a dtype of
            the inputs is wrong.
        DelegateUnavailableError: The program needs the native delegate, which was not built, or another backend.
        UnsupportedMilOpError: The program uses operations that the host runtime does not define.
        ExecutionError: Running failed.
        PolicyError: The policy is unknown.
    """
    chosen = get_policy(policy)
    source = bytes_or_path(pte, _ACCEPTED)
    with naming(source):
        data = _read(source)
        return _run(data, read_pte(data), method, inputs, chosen)


def _run(data: bytes, program: PteProgram, method: str, inputs: Sequence[Input], policy: Policy) -> list[Output]:
    entry = _find_method(program, method)
    values = _checked(entry, inputs)
    try:
        native = _native()
    except DelegateUnavailableError as unavailable:
        return _run_in_python(program, entry, values, policy, unavailable)
    _register(native)
    with _RUNTIME_LOCK, bridge.use_policy(policy):
        return _run_natively(native, data, entry, values)


def _checked(entry: Method, inputs: Sequence[Input]) -> list[Input]:
    try:
        return check_inputs(entry, inputs)
    except InputError:
        # The same problems, in terms of what is worth reading the delegate for only now.
        check_inputs(with_fixed_sizes(entry), inputs)
        raise


def _read(source: Given) -> bytes:
    if isinstance(source, Path) and source.is_dir():
        package = (source / MANIFEST_FILE).is_file()
        raise ProgramFormatError(
            f"{source} is a package; run takes .pte programs, use host.load({str(source)!r}).predict({{...}})"
            if package
            else f"{source} is a directory; give {_ACCEPTED}"
        )
    data = map_file(source) if isinstance(source, Path) else source
    if bytes(data[4:6]) != b"ET":
        refuse_bare_model(data)
    # Bytes in full are passed on as they are: programs are large.
    return data.obj if isinstance(data.obj, bytes) and len(data.obj) == len(data) else bytes(data)


def _find_method(program: PteProgram, name: str) -> Method:
    if name not in program.methods:
        raise InputError(f"the program has no method {name!r}; pass method= one of {sorted(program.methods)}")
    return program.methods[name]


def _native() -> _Native:
    if sys.platform == "darwin":
        raise DelegateUnavailableError(
            "the native host delegate is not built on macOS, where ExecuTorch brings the real one; "
            "use executorch.runtime.Runtime to run this program on Core ML"
        )
    # First, because its shared runtime is then loaded and the delegate registers in that very copy.
    import_module("executorch.runtime")
    try:
        native: Any = import_module("partitioner.host._delegate")
    except ImportError as error:
        reason = "was not built" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise DelegateUnavailableError(f"the native host delegate {reason}; {_REINSTALL}") from error
    return native


def _register(native: _Native) -> None:
    if not native.register(bridge.open_delegate):
        raise DelegateUnavailableError(
            f"another library has registered {COREML_BACKEND!r} in this process; start a process without it"
        )


def _run_natively(native: _Native, data: bytes, entry: Method, values: list[Input]) -> list[Output]:
    from executorch.runtime import Runtime

    runtime = Runtime.get()
    _check_available(runtime, entry)
    bridge.take_error()
    native.take_last_error()
    try:
        loaded = runtime.load_program(data).load_method(entry.name)
    except RuntimeError as error:
        _raise_cause(native, ProgramFormatError(f"ExecuTorch cannot load method {entry.name!r}: {error}"), error)
    try:
        outputs = loaded.execute(values)
    except RuntimeError as error:
        _raise_cause(native, ExecutionError(f"method {entry.name!r} failed: {error}"), error)
    return [None if value is None else torch.as_tensor(value) for value in outputs]


def _check_available(runtime: Any, entry: Method) -> None:
    backends = {delegate.backend for delegate in entry.delegates}
    missing = sorted(backends - set(runtime.backend_registry.registered_backend_names))
    if missing:
        raise DelegateUnavailableError(
            f"method {entry.name!r} needs the backends {missing}, which are not registered here"
        )
    if entry.fatal:
        calls = "; ".join(sorted(set(entry.fatal)))
        raise ExecutionError(
            f"method {entry.name!r} would end the process, because ExecuTorch's kernels do not take these types: "
            f"{calls}. Convert the model with model.float() before torch.export, so that Core ML takes the operations"
        )
    unknown = _unknown_operators(runtime, entry)
    if any(name.startswith("quantized_decomposed::") for name in unknown):
        # ExecuTorch ships these kernels apart from the others, registered by this import.
        import_module("executorch.kernels.quantized")
        unknown = _unknown_operators(runtime, entry)
    if unknown:
        raise ExecutionError(
            f"method {entry.name!r} calls operators that ExecuTorch has no kernel for here: {unknown}; "
            "import the package that registers them, or delegate them to Core ML"
        )


def _unknown_operators(runtime: Any, entry: Method) -> list[str]:
    return sorted(set(entry.operators) - runtime.operator_registry.operator_names)


def _raise_cause(native: _Native, fallback: PartitionerError, failure: RuntimeError) -> NoReturn:
    """Raises the error behind a failure of the runtime: what the delegate raised, if it did."""
    text = native.take_last_error()
    error = bridge.take_error()
    if isinstance(error, PartitionerError) or (error is not None and not isinstance(error, Exception)):
        raise error
    if error is not None:
        raise ExecutionError(f"the Core ML delegate failed: {type(error).__name__}: {error}") from error
    if text:
        raise ExecutionError(f"the Core ML delegate failed: {text}") from failure
    raise fallback from failure


def _run_in_python(
    program: PteProgram,
    entry: Method,
    values: list[Input],
    policy: Policy,
    unavailable: DelegateUnavailableError,
) -> list[Output]:
    wiring = entry.wiring
    if wiring is None or entry.delegates[0].backend != COREML_BACKEND:
        raise DelegateUnavailableError(
            f"method {entry.name!r} is more than one Core ML delegate and needs ExecuTorch's runtime: {unavailable}"
        ) from unavailable
    delegate = entry.delegates[0]
    with bridge.use_policy(policy):
        session = bridge.open_delegate(
            bytes(delegate.data),
            delegate.compile_specs,
            entry.name,
            lambda key: bytes(program.named_data[key]),
        )
    known: dict[int, Any] = dict(zip(wiring.inputs, values, strict=True))
    arguments = wiring.arguments[: session.input_count]
    if not known.keys() >= set(arguments):
        raise DelegateUnavailableError(
            f"method {entry.name!r} hands buffers of its own to the delegate and needs ExecuTorch's runtime: "
            f"{unavailable}"
        ) from unavailable
    results = session.run([known[index] for index in arguments])
    known.update(zip(wiring.arguments[session.input_count :], results, strict=True))
    outputs = zip(wiring.outputs, entry.outputs, strict=True)
    return [
        None if spec.kind == NULL else _declared(known[index], spec.scalar_type, spec.shape) for index, spec in outputs
    ]


def _declared(value: Any, scalar_type: int, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    if not shape and tensor.numel() == 1:
        tensor = tensor.reshape(())
    return tensor.to(DTYPES.get(scalar_type, tensor.dtype), copy=True)
