"""The native delegate under ExecuTorch's own runtime, as a user of `Runtime` meets it."""

import subprocess
import sys

import pytest
import torch
from executorch.exir._serialize import _deserialize_pte_binary, _serialize_pte_binary
from executorch.exir.schema import ScalarType, Tensor
from executorch.runtime import Runtime
from helpers import pte_models as programs

from partitioner import host
from partitioner.host.executorch import bridge, runtime

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has the real delegate")


@pytest.fixture
def native():
    host.enable("float32")
    yield runtime._native()
    host.enable()


def retyped(pte, scalar_type):
    """The same program, every tensor declared as another type."""
    file = _deserialize_pte_binary(pte)
    for value in file.program.execution_plan[0].values:
        if isinstance(value.val, Tensor):
            value.val.scalar_type = scalar_type
    return bytes(_serialize_pte_binary(file))


def test_the_wheel_runtime_executes_core_ml_delegates(native):
    case = programs.split()
    assert Runtime.get().backend_registry.is_available("CoreMLBackend")
    method = Runtime.get().load_program(case.pte).load_method("forward")
    for _ in range(3):
        with torch.no_grad():
            want = case.models["forward"](*case.inputs)
        torch.testing.assert_close(tuple(method.execute(case.inputs)), want, rtol=1e-6, atol=1e-6)


def test_states_live_as_long_as_the_loaded_method(native):
    case = programs.accumulator()
    method = Runtime.get().load_program(case.pte).load_method("forward")
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    totals = [method.execute((x,))[0] for _ in range(3)]
    # Small integers are exact in half precision.
    torch.testing.assert_close(torch.stack(totals), torch.stack([x, 2 * x, 3 * x]), rtol=0, atol=0)
    other = Runtime.get().load_program(case.pte).load_method("forward")
    assert torch.equal(other.execute((x,))[0], x)


def test_enabling_twice_registers_once(native):
    host.enable()
    host.enable()
    names = Runtime.get().backend_registry.registered_backend_names
    assert names.count("CoreMLBackend") == 1
    assert native.register(bridge.open_delegate)


def test_blob_and_compile_specs_reach_the_opener(native):
    seen = {}

    def opener(blob, specs, method, named_data):
        seen.update(blob=blob, specs=specs, method=method, named_data=named_data)
        return lambda arguments: None

    case = programs.two_methods()
    native.register(opener)
    Runtime.get().load_program(case.pte).load_method("triple")
    from partitioner.host.pte.reader import read_pte

    delegate = read_pte(case.pte).methods["triple"].delegates[0]
    assert seen["blob"] == delegate.data
    assert seen["specs"] == delegate.compile_specs
    assert seen["method"] == "triple"
    with pytest.raises(KeyError):
        seen["named_data"]("after the call")


def test_arguments_are_views_of_the_runtime_and_end_with_the_call(native):
    kept = []

    def session(arguments):
        kept.extend(arguments)
        assert [argument.dtype for argument in arguments] == ["float32"] * 4
        assert [argument.shape for argument in arguments] == [(2, 8), (2, 4), (2, 4), (2, 8)]
        x, y, first, second = (argument.view() for argument in arguments)
        assert arguments[0].view().data_ptr() == x.data_ptr()
        first.copy_(y + 1)
        second.copy_(x + 2)

    native.register(lambda *arguments: session)
    case = programs.two_outputs()
    x, y = case.inputs
    outputs = Runtime.get().load_program(case.pte).load_method("forward").execute((x, y))
    torch.testing.assert_close(outputs, [y + 1, x + 2], rtol=0, atol=0)
    for use in (lambda: kept[0].view(), lambda: kept[0].shape, lambda: kept[2].resize([2, 4])):
        with pytest.raises(RuntimeError, match="has returned"):
            use()


@pytest.mark.parametrize(("scalar_type", "name"), [(ScalarType.CHAR, "int8"), (ScalarType.BFLOAT16, "bfloat16")])
def test_types_the_device_refuses_are_refused(native, scalar_type, name):
    case = programs.two_outputs()
    program = retyped(case.pte, scalar_type)
    inputs = [x.to(getattr(torch, name)) for x in case.inputs]
    with pytest.raises(host.ExecutionError, match=f"argument 0 is {name}, argument 1 is {name}, argument 2 is {name}"):
        host.run(program, *inputs)
    method = Runtime.get().load_program(program).load_method("forward")
    with pytest.raises(RuntimeError, match="0x12"):
        method.execute(inputs)


@pytest.mark.parametrize(
    ("scalar_type", "dtype"),
    [
        (ScalarType.BOOL, torch.bool),
        (ScalarType.BYTE, torch.uint8),
        (ScalarType.SHORT, torch.int16),
        (ScalarType.INT, torch.int32),
        (ScalarType.HALF, torch.float16),
    ],
)
def test_types_the_device_takes_cross_unchanged(native, scalar_type, dtype):
    """Eight-byte types are left out: the retyped tensors would not fit their planned memory."""

    def session(arguments):
        x, y, first, second = (argument.view() for argument in arguments)
        assert {x.dtype, y.dtype, first.dtype, second.dtype} == {dtype}
        first.copy_(y)
        second.copy_(x)

    case = programs.two_outputs()
    native.register(lambda *arguments: session)
    # A method reads these bytes for as long as it lives, without keeping them.
    program = retyped(case.pte, scalar_type)
    method = Runtime.get().load_program(program).load_method("forward")
    x = (torch.arange(16) % 3).reshape(2, 8).to(dtype)
    y = (torch.arange(8) % 2).reshape(2, 4).to(dtype)
    torch.testing.assert_close(method.execute((x, y)), [y, x], rtol=0, atol=0)


def test_output_that_outgrows_its_memory_is_an_error(native):
    native.register(lambda *arguments: lambda call: call[1].resize([99, 5]))
    case = programs.dynamic()
    method = Runtime.get().load_program(case.pte).load_method("forward")
    with pytest.raises(RuntimeError, match="0x32"):
        method.execute(case.inputs)
    assert "refused the size" in native.take_last_error()
    assert native.take_last_error() == ""


ALONE = """
import builtins, sys, time, torch
from concurrent.futures import ThreadPoolExecutor
from executorch.runtime import Runtime
from partitioner import host
from partitioner.host import _delegate

pte = sys.stdin.buffer.read()
inputs = (torch.zeros(2, 8), torch.zeros(2, 4))

class Odd(Exception):
    def __str__(self):
        raise RuntimeError

# The bindings of ExecuTorch end the process when a log line is cut inside a character.
def long_message(arguments): raise ValueError(chr(0x4E16) * 500)
def lone_surrogate(arguments): raise ValueError(chr(0xD800))
def unprintable(arguments): raise Odd
def leaving(arguments): raise SystemExit(3)
def negative_size(arguments): arguments[0].resize([-1, 2**40])
def high_rank(arguments): arguments[2].resize([1] * 100)

for session in (long_message, lone_surrogate, unprintable, leaving, negative_size, high_rank):
    _delegate.register(lambda *arguments: session)
    method = Runtime.get().load_program(pte).load_method("forward")
    try:
        method.execute(inputs)
    except RuntimeError:
        print("survived", session.__name__, flush=True)

# Sessions that hand over to other threads, with failures among them.
def session(arguments):
    time.sleep(0.002)
    if arguments[0].view()[0, 0] > 0:
        raise ValueError("odd one")

def work(k):
    method = Runtime.get().load_program(pte).load_method("forward")
    try:
        method.execute((torch.full((2, 8), float(k % 2)), torch.zeros(2, 4)))
    except RuntimeError:
        return "odd one" in _delegate.take_last_error()
    return False

_delegate.register(lambda *arguments: session)
with ThreadPoolExecutor(4) as pool:
    print("failed", sum(pool.map(work, range(200))), flush=True)

host.enable()
builtins.kept = Runtime.get().load_program(pte).load_method("forward")
print("outlives", len(builtins.kept.execute(inputs)), flush=True)
"""


@pytest.fixture(scope="module")
def alone():
    """A process that may die of what it does: how it ended and the words of its lines."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=programs.two_outputs().pte, capture_output=True, timeout=100, check=False
    )
    return done, [line.split() for line in done.stdout.decode().splitlines()]


def test_no_exception_ends_the_process(alone):
    survived = [name for kind, name in alone[1] if kind == "survived"]
    assert survived == ["long_message", "lone_surrogate", "unprintable", "leaving", "negative_size", "high_rank"]


def test_overlapping_calls_of_the_runtime_survive(alone):
    assert ["failed", "100"] in alone[1]


def test_a_method_that_outlives_the_interpreter_does_no_harm(alone):
    done, lines = alone
    assert lines[-1] == ["outlives", "2"]
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
