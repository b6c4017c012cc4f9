import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from executorch.exir._serialize import _deserialize_pte_binary, _serialize_pte_binary
from executorch.exir.schema import ScalarType, Tensor
from helpers import pte_models as programs

from partitioner import host
from partitioner.host.errors import (
    DelegateUnavailableError,
    ExecutionError,
    InputError,
    ProgramFormatError,
)
from partitioner.host.executorch import bridge, runtime

CASES = [
    programs.two_outputs,
    programs.split,
    programs.portable_convolution,
    programs.two_methods,
    programs.shared_methods,
    programs.scalar_output,
    programs.dynamic,
    programs.integers,
    programs.absent,
]
ONE_DELEGATE = [case for case in CASES if case not in (programs.split, programs.portable_convolution)]

needs_native = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has the real delegate")


def expected(case, method, inputs):
    with torch.no_grad():
        outputs = case.models[method](*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def retyped(pte, kinds):
    """The same program with other types of tensors."""
    file = _deserialize_pte_binary(pte)
    for value in file.program.execution_plan[0].values:
        if isinstance(value.val, Tensor):
            value.val.scalar_type = kinds.get(value.val.scalar_type, value.val.scalar_type)
    return bytes(_serialize_pte_binary(file))


def assert_same(got, want):
    # float32 programs of a handful of operations: a few ulps, from the order of summation.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=4e-6)


@pytest.fixture
def no_native(monkeypatch):
    def unavailable():
        raise DelegateUnavailableError("the native host delegate was not built")

    monkeypatch.setattr(runtime, "_native", unavailable)


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_results_equal_the_eager_model(build):
    case = build()
    for method in case.models:
        assert_same(
            host.run(case.pte, *case.inputs, method=method, policy="float32"), expected(case, method, case.inputs)
        )


@pytest.mark.parametrize("build", ONE_DELEGATE, ids=lambda build: build.__name__)
def test_pure_python_gives_the_same_as_the_runtime(build, request):
    case = build()
    native = {method: host.run(case.pte, *case.inputs, method=method) for method in case.models}
    request.getfixturevalue("no_native")
    for method, outputs in native.items():
        torch.testing.assert_close(host.run(case.pte, *case.inputs, method=method), outputs, rtol=0, atol=0)


def test_without_native_module_several_delegates_need_a_compiler(no_native):
    case = programs.split()
    with pytest.raises(DelegateUnavailableError, match=r"more than one Core ML delegate.*not built"):
        host.run(case.pte, *case.inputs)


def test_missing_module_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "partitioner.host._delegate", None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(DelegateUnavailableError, match=r"C\+\+ compiler.*from the checkout: `pip install .* \.`$"):
        host.enable()


def test_path_and_buffers_are_accepted(tmp_path):
    case = programs.two_outputs()
    path = tmp_path / "program.pte"
    path.write_bytes(case.pte)
    want = host.run(case.pte, *case.inputs)
    for source in (path, str(path), bytearray(case.pte), memoryview(case.pte)):
        torch.testing.assert_close(host.run(source, *case.inputs), want, rtol=0, atol=0)


def test_smaller_dynamic_shapes_give_smaller_outputs():
    case = programs.dynamic()
    for rows in (2, 3, 8):
        x = torch.linspace(-1, 1, rows * 5).reshape(rows, 5)
        assert_same(host.run(case.pte, x), [x * 2])


def test_inputs_of_any_memory_layout_are_accepted():
    case = programs.portable_convolution()
    x = case.inputs[0].to(memory_format=torch.channels_last)
    assert_same(host.run(case.pte, x), expected(case, "forward", (x,)))
    model_input = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).t().requires_grad_()
    assert_same(host.run(programs.two_methods().pte, model_input, method="double"), [model_input.detach() * 2])


def test_each_run_starts_from_fresh_state():
    case = programs.accumulator()
    first = host.run(case.pte, *case.inputs, policy="float32")
    second = host.run(case.pte, *case.inputs, policy="float32")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # States are stored in half precision, so one rounding of the input.
    torch.testing.assert_close(first[0], case.inputs[0], rtol=2**-10, atol=0)


def test_policies_differ_by_the_rounding_they_name():
    case = programs.two_outputs()
    x = torch.full((2, 8), 1 + 2**-12)
    exact = host.run(case.pte, x, case.inputs[1], policy="float32")[1]
    assert torch.equal(exact, x * 2)


def test_unknown_policy_lists_the_known_ones():
    case = programs.two_outputs()
    with pytest.raises(ValueError, match="storage16"):
        host.run(case.pte, *case.inputs, policy="float8")
    with pytest.raises(ValueError, match="storage16"):
        host.enable("float8")


def test_unknown_method_lists_the_methods():
    case = programs.two_methods()
    with pytest.raises(InputError, match=r"no method 'forward'.*\['double', 'triple'\]"):
        host.run(case.pte, *case.inputs)


def test_wrong_count_shows_the_signature():
    case = programs.two_outputs()
    for inputs in ((), case.inputs[:1], (*case.inputs, case.inputs[0])):
        with pytest.raises(InputError, match=rf"takes 2 inputs, got {len(inputs)}.*float32\[2, 8\], float32\[2, 4\]"):
            host.run(case.pte, *inputs)


def test_a_forgotten_star_is_told():
    case = programs.two_outputs()
    for packed in (case.inputs, list(case.inputs)):
        with pytest.raises(InputError, match=rf"got a {type(packed).__name__} of 2 values .* run\(pte, \*inputs\)"):
            host.run(case.pte, packed)


def test_all_wrong_inputs_are_listed_at_once():
    case = programs.two_outputs()
    with pytest.raises(InputError) as caught:
        host.run(case.pte, torch.zeros(2, 8, dtype=torch.float64), torch.zeros(4, 2))
    message = str(caught.value)
    assert "input 0: got dtype torch.float64, expected torch.float32; convert it with .to(torch.float32)" in message
    assert "input 1: got shape (4, 2), expected (2, 4)" in message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "got a NoneType, expected a tensor"),
        ([[1.0]], r"got a list of 1 values as one input; .* run\(pte, \*inputs\)"),
        (torch.zeros(8, 2), "got shape"),
        (torch.zeros(1, 2, 8), "got shape"),
        (torch.zeros(2, 8, device="meta"), "on meta"),
        (torch.zeros(2, 8).to_sparse(), "torch.sparse_coo tensor"),
        (torch.zeros(2, 8, dtype=torch.bfloat16), "got dtype torch.bfloat16"),
    ],
)
def test_unusable_inputs_are_refused(value, problem):
    case = programs.two_outputs()
    with pytest.raises(InputError, match=problem):
        host.run(case.pte, value, case.inputs[1])


def test_what_was_exported_as_none_takes_none():
    case = programs.absent()
    with pytest.raises(InputError, match=r"takes \(float32\[3, 5\], None\):\s+input 1: got a Tensor, expected None"):
        host.run(case.pte, case.inputs[0], torch.zeros(3, 5))


def test_dynamic_shape_above_the_bound_is_refused():
    case = programs.dynamic()
    with pytest.raises(InputError, match=r"got shape \(9, 5\), expected \(<=8, 5\);.*Dim\('name', max=") as caught:
        host.run(case.pte, torch.zeros(9, 5))
    assert "takes (float32[<=8, 5])" in str(caught.value)


def test_missing_file_is_a_format_error(tmp_path):
    with pytest.raises(ProgramFormatError, match=r"there is no file .*absent\.pte.; check the path"):
        host.run(tmp_path / "absent.pte", torch.zeros(1))


@needs_native
def test_kernels_of_quantized_operators_are_loaded_when_needed():
    """In a process that has not imported them: building the program here has."""
    code = """
import sys, torch
from partitioner import host
x = (torch.arange(16.0).reshape(4, 4) - 8) / 16
(got,) = host.run(sys.stdin.buffer.read(), x)
assert "executorch.kernels.quantized" in sys.modules
torch.testing.assert_close(got, torch.round(x / 0.25) * 0.25, rtol=0, atol=0)
"""
    command = [sys.executable, "-c", code]
    pte = programs.portable_quantization().pte
    done = subprocess.run(command, input=pte, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]


@needs_native
def test_types_on_which_a_kernel_ends_the_process_are_refused():
    pte = retyped(programs.portable_quantization().pte, {ScalarType.FLOAT: ScalarType.BFLOAT16})
    with pytest.raises(
        ExecutionError, match=r"end the process.*dequantize_per_tensor has a result of bfloat16"
    ) as caught:
        host.run(pte, torch.zeros(4, 4, dtype=torch.bfloat16))
    assert "quantized_decomposed::quantize_per_tensor has argument 0 of bfloat16" in str(caught.value)
    assert "model.float()" in str(caught.value)


@pytest.mark.parametrize("name", ["complex64", "float8_e4m3fn"])
def test_types_without_kernels_are_not_called_corrupt(name):
    kinds = {"complex64": ScalarType.COMPLEX64, "float8_e4m3fn": ScalarType.FLOAT8E4M3FN}
    pte = retyped(programs.two_outputs().pte, {ScalarType.FLOAT: kinds[name]})
    with pytest.raises(ProgramFormatError, match=f"^the .pte has tensors of {name}, with which"):
        host.run(pte, *programs.two_outputs().inputs)


@needs_native
def test_operators_without_kernels_are_named():
    case = programs.split()
    patched = case.pte.replace(b"aten::relu\0", b"aten::rehu\0")
    with pytest.raises(ExecutionError, match=r"no kernel for here: \['aten::rehu\.out'\]"):
        host.run(patched, *case.inputs)


@needs_native
def test_error_of_the_program_surfaces_with_its_message():
    case = programs.integers()
    x, index = case.inputs
    with pytest.raises(InputError, match=r"do not fit the declared type int32"):
        host.run(case.pte, x, index + 2**40)


@needs_native
def test_exception_while_running_surfaces_with_its_message(monkeypatch):
    def fail(self, inputs, observer):
        raise ZeroDivisionError("no such luck")

    case = programs.split()
    monkeypatch.setattr(bridge.Session, "run", fail)
    with pytest.raises(ExecutionError, match="ZeroDivisionError: no such luck") as caught:
        host.run(case.pte, *case.inputs)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@needs_native
def test_exception_while_opening_surfaces_with_its_message(monkeypatch):
    def fail(*arguments):
        raise ExecutionError("cannot open this")

    case = programs.two_outputs()
    monkeypatch.setattr(bridge._cache, "get", fail)
    with pytest.raises(ExecutionError, match="cannot open this"):
        host.run(case.pte, *case.inputs)


@needs_native
def test_interrupt_is_not_swallowed(monkeypatch):
    def interrupt(self, inputs, observer):
        raise KeyboardInterrupt

    case = programs.two_outputs()
    monkeypatch.setattr(bridge.Session, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.run(case.pte, *case.inputs)


def test_a_failed_run_does_not_disturb_the_next(monkeypatch):
    case = programs.two_outputs()
    with monkeypatch.context() as patch:
        patch.setattr(bridge.Session, "run", lambda self, inputs: 1 / 0)
        with pytest.raises((ExecutionError, ZeroDivisionError)):
            host.run(case.pte, *case.inputs)
    assert_same(host.run(case.pte, *case.inputs, policy="float32"), expected(case, "forward", case.inputs))


def test_methods_run_concurrently():
    case = programs.two_methods()
    inputs = [torch.full((3, 5), float(k)) for k in range(40)]

    def work(k):
        method, factor = ("double", 2.0) if k % 2 else ("triple", 3.0)
        return torch.equal(host.run(case.pte, inputs[k], method=method)[0], inputs[k] * factor)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


def test_concurrent_failures_reach_the_thread_that_caused_them():
    case = programs.integers()
    x, index = case.inputs

    def work(k):
        offset = 2**40 + k if k % 2 else 0
        try:
            return host.run(case.pte, x, index + offset)[1].dtype
        except InputError as error:
            return str(index[0].item() + offset) in str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(24)))
    assert results == [torch.int32, True] * 12
