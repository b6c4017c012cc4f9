"""Dynamic sizes keep the bounds that the program was exported with."""

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.lowering import Function, blob, lower, spec
from torch import Tensor
from torch.export import Dim

from partitioner import CoreMLPartitioner, host
from partitioner import lower as lower_directly
from partitioner.graph.size_ranges import merged


def scaled(x: Tensor) -> Tensor:
    return x.relu() * 2


def exported(lower_bound: int, upper_bound: int) -> torch.export.ExportedProgram:
    size = Dim("batch", min=lower_bound, max=upper_bound)
    return torch.export.export(Function(scaled), (torch.ones(3, 6),), dynamic_shapes=[({0: size},)])


def bounds(manager) -> tuple[int, int]:
    (feature,) = spec(manager).description.input
    size = feature.type.multiArrayType.shapeRange.sizeRanges[0]
    return size.lowerBound, size.upperBound


@pytest.mark.parametrize("given", [(1, 4), (2, 4), (1, 7)])
def test_bounds_are_those_of_the_program(given: tuple[int, int]) -> None:
    manager = to_edge_transform_and_lower(exported(*given), partitioner=[CoreMLPartitioner()])
    assert bounds(manager) == given
    program = host.load(blob(manager))
    for count in range(given[0], given[1] + 1):
        x = torch.linspace(-1, 1, 6 * count).reshape(count, 6)
        torch.testing.assert_close(program.run([x])[0], scaled(x), rtol=1e-3, atol=1e-3)


def test_a_partitioner_forgets_the_last_program() -> None:
    partitioner = CoreMLPartitioner()
    found = [
        bounds(to_edge_transform_and_lower(exported(*given), partitioner=[partitioner]))
        for given in ((1, 4), (3, 4), (1, 4))
    ]
    assert found == [(1, 4), (3, 4), (1, 4)]


def test_methods_with_one_symbol_get_the_narrower_range() -> None:
    assert merged([("s1", 1, 4), ("s1", 2, 4), ("s1", 1, 8)]) == (("s1", 2, 4), ("s1", 1, 8))


def test_the_whole_way() -> None:
    lowered = lower_directly(exported(1, 4))
    x = torch.linspace(-1, 1, 6).reshape(1, 6)
    torch.testing.assert_close(host.run(lowered.buffer, x)[0], scaled(x), rtol=1e-3, atol=1e-3)


def test_static_programs_have_no_ranges() -> None:
    manager = lower(Function(scaled), (torch.ones(2, 6),))
    (feature,) = spec(manager).description.input
    assert not feature.type.multiArrayType.HasField("shapeRange")


def test_a_size_without_upper_bound_is_told() -> None:
    x = torch.zeros(2, 3)
    bounded, open_ended = torch.export.Dim("a", max=8), torch.export.Dim("b")
    for size, notes in ((bounded, 0), (open_ended, 1)):
        partitioner = CoreMLPartitioner()
        program = torch.export.export(torch.nn.ReLU(), (x,), dynamic_shapes=({0: size},))
        to_edge_transform_and_lower(program, partitioner=[partitioner])
        found = [note for note in partitioner.report()[0].notes if "dimension 0 of input" in note]
        assert len(found) == notes
        assert all("Dim('name', max=...)" in note for note in found)
