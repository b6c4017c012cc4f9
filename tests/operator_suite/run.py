"""Runs ExecuTorch's operator suite, read from the installed package, by both ways of lowering.

    python tests/operator_suite/run.py [arguments of pytest]

Every model is lowered by `partitioner.lower` and by `to_edge_transform_and_lower`, and both programs run on the host.
Their results must have the same bits, and be PyTorch's. `DIFFERENT` lists the tests in
which the two ways may round differently, and `UNLOWERED` those that are refused, with the error; each with its reason.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import coremltools as ct
import executorch.backends.test.suite.operators as suite
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower

FLOAT32 = CoreMLBackend.generate_compile_specs(compute_precision=ct.precision.FLOAT32)

DIFFERENT: Mapping[str, str] = MappingProxyType({})
UNLOWERED: Mapping[str, str] = MappingProxyType({})


class Flow:
    """What the suite asks of a flow: its name, and whether it quantizes."""

    name = "coreml"
    quantize = False


class Runner:
    """The suite's runner of one test."""

    _flow = Flow()

    def __init__(self, test: str) -> None:
        self.test = test

    def lower_and_run_model(self, model: nn.Module, inputs: Any, *, dynamic_shapes: Any = None, **ignored: Any) -> None:
        """Compares the two ways with each other and with PyTorch."""
        try:
            values = model.eval()(*inputs)
        except RuntimeError as error:
            pytest.skip(f"PyTorch itself refuses the call: {error}")
        expected = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        program = torch.export.export(model, tuple(inputs), dynamic_shapes=dynamic_shapes)
        given = tree_leaves(inputs)
        direct = _run(lower(program, compile_specs=FLOAT32).buffer, given)
        partitioner = CoreMLPartitioner(compile_specs=FLOAT32)
        edge = _run(to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer, given)
        for one, other, right in zip(direct, edge, expected, strict=True):
            torch.testing.assert_close(one, right.detach(), rtol=1e-4, atol=1e-4, equal_nan=True, check_stride=False)
            if self.test not in DIFFERENT:
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def _run(program: bytes, inputs: Any) -> list[Tensor]:
    return list(host.run(program, *inputs))


class _Plugin:
    """Gives the tests their runner, and expects the refusals that are listed."""

    @pytest.fixture
    def test_runner(self, request: pytest.FixtureRequest) -> Runner:
        """Returns the runner of a test."""
        return Runner(request.node.name)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Marks the tests whose programs are refused."""
        for item in items:
            if item.name in UNLOWERED:
                item.add_marker(pytest.mark.xfail(reason=UNLOWERED[item.name], strict=True))


def run(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    folder = Path(next(iter(suite.__path__)))
    with tempfile.TemporaryDirectory() as name:
        for file in folder.glob("test_*.py"):
            (Path(name) / file.name).write_text(file.read_text())
        options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--import-mode=importlib", name, *arguments]
        return int(pytest.main(options, plugins=[_Plugin()]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
