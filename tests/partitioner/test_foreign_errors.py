"""What PyTorch and ExecuTorch raise becomes an error of ours, with its cause."""

import pytest
import torch
from helpers.lowering import Function
from torch._higher_order_ops.while_loop import while_loop

from partitioner import lower, lowered_program
from partitioner.errors import LoweringError, UnsupportedOpError

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def partial_program() -> torch.export.ExportedProgram:
    return torch.export.export(Function(lambda x: torch.asinh(x * 2) + 1), (X,))


@pytest.mark.parametrize(
    ("message", "node"),
    [
        ("While executing %aten_asinh_default : [num_users=1]", "asinh"),
        ("Node asinh with op aten.asinh.default was not decomposed", "asinh"),
        ("no kernel for aten::mul", "mul"),
        ("something is wrong", None),
    ],
)
def test_the_operation_is_named(monkeypatch: pytest.MonkeyPatch, message: str, node: str | None) -> None:
    cause = RuntimeError(message)

    def fail(*_arguments: object) -> None:
        raise cause

    monkeypatch.setattr(lowered_program, "lower_in_parts", fail)
    with pytest.raises(LoweringError) as error:
        lower(partial_program())
    assert error.value.__cause__ is cause
    assert error.value.node == node
    assert f"RuntimeError: {message}" in str(error.value)
    assert ('File "' in str(error.value)) == (node is not None)
    assert "Write the model without" in str(error.value)


@pytest.mark.parametrize("kind", [KeyError, AssertionError, NotImplementedError, TypeError])
def test_every_kind_of_error(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def fail(*_arguments: object) -> None:
        raise kind("asinh")

    monkeypatch.setattr(lowered_program, "lower_in_parts", fail)
    with pytest.raises(LoweringError, match=f"could not lower aten.asinh.default .*: {kind.__name__}: "):
        lower(partial_program())


def test_what_is_no_failure_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lowered_program, "lower_in_parts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lower(partial_program())


def test_loops() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        start = torch.tensor(0)
        return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (start, x))[1]

    with pytest.raises(UnsupportedOpError, match=r"neither Core ML nor ExecuTorch has:\n  while_loop.*\n.*unrolls"):
        lower(torch.export.export(Function(doubled), (X,)))


def test_operators_of_other_libraries() -> None:
    library = torch.library.Library("partitioner_test", "DEF")
    library.define("copied(Tensor x) -> Tensor")
    library.impl("copied", lambda x: x.clone(), "CompositeExplicitAutograd")
    torch.library.register_fake("partitioner_test::copied")(torch.empty_like)
    program = torch.export.export(Function(lambda x: torch.ops.partitioner_test.copied(x) * 2), (X,))
    with pytest.raises(UnsupportedOpError, match=r"partitioner_test.copied.default \(") as error:
        lower(program)
    assert 'Library("partitioner_test", "FRAGMENT").define("copied.out' in str(error.value)
