"""Constants that repeat an earlier one are stated once, and nothing else changes."""

import pytest
import torch
from helpers.lowering import Function, calls, lower, spec
from torch import Tensor

from partitioner import host
from partitioner.format import package
from partitioner.format.shared_constants import share_constants

X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)


def repeated(x: Tensor) -> Tensor:
    y = torch.cat([x, x * 3], 2).softmax(2)
    return torch.cat([y.transpose(1, 2).transpose(1, 2) + 3, y * 3], 2).sum(2, keepdim=True)


def immediate(manager) -> list[bytes]:
    (function,) = spec(manager).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [
        operation.attributes["val"].SerializeToString(deterministic=True)
        for operation in block.operations
        if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "immediateValue"
    ]


def test_no_constant_is_stated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = lower(Function(repeated), (X,))
    with monkeypatch.context() as patched:
        patched.setattr(package, "share_constants", lambda model: None)
        plain = lower(Function(repeated), (X,))
    assert calls(shared) == calls(plain)
    assert len(set(immediate(plain))) < len(immediate(plain))
    assert len(set(immediate(shared))) == len(immediate(shared))
    ours, theirs = (host.run(bytes(version.to_executorch().buffer), X)[0] for version in (shared, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_sharing_again_changes_nothing() -> None:
    model = spec(lower(Function(repeated), (X,)))
    before = model.SerializeToString(deterministic=True)
    share_constants(model)
    assert model.SerializeToString(deterministic=True) == before
