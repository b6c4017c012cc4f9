"""What `lower` says of programs that neither Core ML nor ExecuTorch takes, and of what is no program."""

import coremltools as ct
import pytest
import torch
from helpers.lowering import Function
from helpers.lowering import lower as lower_to_edge
from torch import Tensor, nn

from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower
from partitioner.errors import ArgumentError, DeploymentTargetError, UnsupportedOpError

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Lines(nn.Module):
    """Its operations are in lines of a module, which programs remember."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "aten.erfinv.default":
            return torch.erfinv(x * 0.5) * 2
        if self.name == "aten.linalg_svd.default":
            return torch.linalg.svd(x)[1]
        if self.name == "aten._unique2.default":
            return torch.unique(x)
        return torch.masked_select(x, x > 0)


@pytest.mark.parametrize(
    "name", ["aten.erfinv.default", "aten.linalg_svd.default", "aten._unique2.default", "aten.masked_select.default"]
)
def test_operations_that_neither_side_has(name: str) -> None:
    with pytest.raises(UnsupportedOpError) as error:
        lower(torch.export.export(Lines(name), (X,)))
    message = str(error.value)
    assert f"neither Core ML nor ExecuTorch has:\n  {name} (File " in message
    assert "in forward: return torch." in message
    assert "Write the model with other operations" in message


def test_operations_that_only_core_ml_has_go_there_from_partial_programs() -> None:
    model = Function(lambda x: torch.acosh(torch.cumprod(x, 1) + 3))
    lowered = lower(torch.export.export(model, (X,)))
    assert [rejection.op for rejection in lowered.rejections] == ["aten.acosh.default"]
    torch.testing.assert_close(host.run(lowered.buffer, X)[0], model(X), rtol=1e-2, atol=1e-2)


def test_complex_numbers() -> None:
    with pytest.raises(UnsupportedOpError, match=r"complex numbers:\n  aten.fft_rfft.default \("):
        lower(torch.export.export(Function(lambda x: torch.fft.rfft(x).abs()), (X,)))


NO_PROGRAMS = {
    "a module": nn.Linear(8, 4),
    "a module by name": {"forward": nn.Linear(8, 4)},
    "nothing": None,
    "an empty dict": {},
}


@pytest.mark.parametrize("value", NO_PROGRAMS.values(), ids=NO_PROGRAMS.keys())
def test_what_is_no_program(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"lower\(torch.export.export\(model.eval\(\), inputs\)\)"):
        lower(value)


def test_a_list_of_partitioners() -> None:
    program = torch.export.export(nn.Linear(8, 4), (X,))
    with pytest.raises(ArgumentError, match="must be one CoreMLPartitioner, not list"):
        lower(program, partitioner=[CoreMLPartitioner()])
    assert issubclass(ArgumentError, TypeError)


def test_targets_without_ml_programs() -> None:
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS14)
    with pytest.raises(DeploymentTargetError, match="iOS14 has no ML programs, which need iOS15"):
        lower(torch.export.export(nn.Linear(8, 4), (X,)), compile_specs=specs)
    with pytest.raises(DeploymentTargetError, match="which need iOS15"):
        lower_to_edge(nn.Linear(8, 4), (X,), minimum_deployment_target=ct.target.iOS14)
