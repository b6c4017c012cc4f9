"""The functional form that is written down agrees with the program, and what has no obvious one is traced."""

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.lowering import CallCounter, Function
from helpers.models import ARCHITECTURES, build
from torch import Tensor, nn

from partitioner.rewrites import functional as module
from partitioner.rewrites.functional import FunctionalProgram, functional

X = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)


def is_functional(program: torch.export.ExportedProgram) -> bool:
    calls = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return not any(target._schema.is_mutable for target in calls)


def traced(program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the functional form of a program takes a trace."""
    runs = []
    original = torch.export.ExportedProgram.run_decompositions

    def counted(self, *arguments, **keywords):
        runs.append(self)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
        functional(program)
    return bool(runs)


def in_place_chain(x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    y.relu_()
    y.add_(z)
    return y.flatten(1) * z.flatten(1)


def read_before_written(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    before = y + 1
    y.mul_(3)
    return before, y - before


OBVIOUS: dict[str, Callable[..., object]] = {
    "in place": in_place_chain,
    "read before written": read_before_written,
    "reshape that copies": lambda x: x.permute(0, 2, 3, 1).reshape(2, -1) + 1,
    "reshape that views": lambda x: x.reshape(6, 16).t() + 1,
    "contiguous": lambda x: x.transpose(1, 2).contiguous().view(-1) * 2,
    "dropout": lambda x: nn.functional.dropout(x * 2, training=False) + 1,
    "dropout of an input": lambda x: nn.functional.dropout(x, training=False),
    "dropout in place": lambda x: nn.functional.dropout(x * 2, training=False, inplace=True) + 1,
    "chunks": lambda x: x.chunk(2, 2)[1] + x.chunk(2, 3)[0].transpose(2, 3),
    "conversion": lambda x: x.to(torch.float16).float() + x.type_as(x) + x.to("cpu"),
    "constant": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "an input named like a function": lambda input: input.flatten() + 1,
}


@pytest.mark.parametrize("name", OBVIOUS)
def test_obvious_programs_are_not_traced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Function(OBVIOUS[name]), (X,))
    assert not traced(program, monkeypatch)
    result = functional(program)
    assert is_functional(result)
    torch.testing.assert_close(result.module()(X), program.module()(X), rtol=0, atol=0)


def view_written_later(x: Tensor) -> Tensor:
    y = x * 2
    view = y.view(-1)
    y.relu_()
    return view + 1


def part_written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 7
    return y + 1


NOT_OBVIOUS: dict[str, nn.Module] = {
    "view written later": Function(view_written_later),
    "part written": Function(part_written),
    "buffer written": CallCounter(),
    "input written": Function(lambda x: x.clone().transpose(0, 1).relu_()),
    "uneven chunks": Function(lambda x: x.chunk(3, 2)[0] + 1),
}


@pytest.mark.parametrize("name", NOT_OBVIOUS)
def test_anything_else_is_traced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NOT_OBVIOUS[name]
    program = torch.export.export(model, (X,))
    assert traced(program, monkeypatch)
    result = functional(program)
    assert is_functional(result)
    # Copies, because buffers count calls.
    ours, theirs = (copy.deepcopy(version).module()(X) for version in (result, program))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_functional_program_is_not_traced_again() -> None:
    result = functional(torch.export.export(NOT_OBVIOUS["part written"], (X,)))
    assert isinstance(result, FunctionalProgram)
    assert result.run_decompositions({}) is result
    decomposed = result.run_decompositions(torch.export.default_decompositions())
    torch.testing.assert_close(decomposed.module()(X), NOT_OBVIOUS["part written"](X), rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(name)
    program = torch.export.export(model, inputs)
    assert not traced(program, monkeypatch)
    result = functional(program)
    assert is_functional(result)
    torch.testing.assert_close(result.module()(*inputs), program.module()(*inputs), rtol=0, atol=0)


def test_the_program_keeps_its_constants() -> None:
    program = torch.export.export(nn.Linear(4, 4), (torch.ones(1, 4),))
    result = functional(program)
    result.state_dict.clear()
    result.constants.clear()
    assert len(program.state_dict) == 2
    assert module.__name__ in str(next(node for node in result.graph.nodes if node.op == "call_function").meta)
