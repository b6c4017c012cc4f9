"""Batch norms folded before torchao sees the graph: the same function, and the same graph where torchao is right."""

import warnings

import pytest
import torch
from helpers.graphs import IMAGE, call, calls, placements
from helpers.models import settle, signal_to_noise
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, QuantizerError, fold_batch_norms

aten = torch.ops.aten
LINE, CUBE = (torch.randn(2, 4, 9),), (torch.randn(2, 4, 5, 5, 5),)


def shaken(module: nn.Module) -> nn.Module:
    """Gives batch norms statistics and parameters that are not trivial."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.2)
            if part.affine:
                with torch.no_grad():
                    part.weight.copy_(torch.randn(part.num_features, generator=generator))
                    part.bias.copy_(torch.randn(part.num_features, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    ("layer", "norm", "inputs"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), LINE),
        (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), IMAGE),
        (nn.Conv2d(3, 6, 3, padding="same", groups=3), nn.BatchNorm2d(6, affine=False), IMAGE),
        (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), CUBE),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), LINE),
        (nn.ConvTranspose2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), IMAGE),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), LINE),
        (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), CUBE),
        (nn.Linear(9, 6), nn.BatchNorm1d(6), (torch.randn(4, 9),)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_it_is_the_same_function_without_batch_norms(
    layer: nn.Module, norm: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    model = shaken(nn.Sequential(layer, norm, nn.ReLU()))
    expected = nn.Sequential(*(part.double() for part in model))(*(x.double() for x in inputs))
    graph = fold_batch_norms(torch.export.export(model.float(), inputs).module())
    assert not calls(graph, aten.batch_norm)
    # Weights and bias are rounded once; each output sums fewer than 2**6 products.
    rounding, largest = 2.0**-18, float(expected.detach().abs().max())
    torch.testing.assert_close(graph(*inputs).double(), expected, rtol=rounding, atol=rounding * largest)


def test_what_is_prepared_is_what_torchao_folds() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    settle(model, IMAGE)
    converted = []
    for fold in (fold_batch_norms, lambda graph: graph):
        prepared = prepare_pt2e(fold(torch.export.export(model, IMAGE).module()), CoreMLQuantizer())
        prepared(*IMAGE)
        converted.append(convert_pt2e(prepared))
    ours, theirs = converted
    assert sorted(placements(ours)) == sorted(placements(theirs))
    # Folded constants differ by float32 rounding, which can move single values by a step of their grid.
    assert signal_to_noise(theirs(*IMAGE), ours(*IMAGE)) > 45


def test_a_convolution_that_something_else_reads_too_keeps_its_values() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y.sigmoid()

    model = shaken(Both())
    graph = fold_batch_norms(torch.export.export(model, IMAGE).module())
    torch.testing.assert_close(graph(*IMAGE), model(*IMAGE))
    prepared = prepare_pt2e(graph, CoreMLQuantizer())
    assert signal_to_noise(model(*IMAGE), prepared(*IMAGE)) > 55


class Twice(nn.Module):
    """A convolution called twice, with a batch norm behind each call, the same or another."""

    def __init__(self, bias: bool, same: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, bias=bias)
        self.first = nn.BatchNorm2d(3)
        self.second = self.first if same else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_convolution_called_twice_gets_a_weight_for_each_batch_norm(bias: bool, same: bool) -> None:
    model = shaken(Twice(bias, same))
    graph = fold_batch_norms(torch.export.export(model, IMAGE).module())
    assert not calls(graph, aten.batch_norm)
    torch.testing.assert_close(graph(*IMAGE), model(*IMAGE), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prepared = prepare_pt2e(graph, CoreMLQuantizer())
    assert signal_to_noise(model(*IMAGE), prepared(*IMAGE)) > 55


@pytest.mark.parametrize("same", [True, False])
def test_a_shared_convolution_that_torchao_folds_wrongly_is_refused(same: bool) -> None:
    model = shaken(Twice(bias=False, same=same))
    with pytest.raises(QuantizerError, match=r"'conv\.weight' is used by 2 calls \(conv2d, .*fold_batch_norms\("):
        prepare_pt2e(torch.export.export(model, IMAGE).module(), CoreMLQuantizer())


def test_where_wrong_folding_cannot_be_told_a_warning_is_given() -> None:
    model = shaken(Twice(bias=True))
    with pytest.warns(UserWarning, match=r"'conv\.weight' is used by 2 calls .* If each has a batch norm of its own"):
        prepare_pt2e(torch.export.export(model, IMAGE).module(), CoreMLQuantizer())


def test_shared_convolutions_beside_batch_norms_of_others_are_no_cause_for_warnings() -> None:
    """As heads of detectors have them, on a backbone of convolutions and batch norms."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3))
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(self.stem(x)))

    graph = torch.export.export(shaken(Head()), IMAGE).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prepare_pt2e(graph, CoreMLQuantizer())


def test_a_computed_weight_is_folded_into() -> None:
    """As octave convolutions have it; torchao fails on it."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
            self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = nn.functional.conv2d(x, self.weight[:4]), nn.functional.conv2d(x, self.weight[4:])
            return self.first(first), self.second(second)

    model = shaken(Parts())
    with pytest.raises(ValueError, match="Expected get_attr node"):
        prepare_pt2e(torch.export.export(model, IMAGE).module(), CoreMLQuantizer())
    graph = fold_batch_norms(torch.export.export(model, IMAGE).module())
    assert not calls(graph, aten.batch_norm)
    torch.testing.assert_close(graph(*IMAGE), model(*IMAGE), rtol=1e-4, atol=1e-4)
    prepared = prepare_pt2e(graph, CoreMLQuantizer())
    prepared(*IMAGE)
    converted = convert_pt2e(prepared)
    assert min(signal_to_noise(*pair) for pair in zip(model(*IMAGE), converted(*IMAGE), strict=True)) > 30


def test_norms_that_train_or_meet_a_sequence_are_not_folded() -> None:
    trains = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    call(fold_batch_norms(torch.export.export(trains, IMAGE).module()), aten.batch_norm)
    model = shaken(nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(4)))
    graph = fold_batch_norms(torch.export.export(model, LINE).module())
    call(graph, aten.mul)
    torch.testing.assert_close(graph(*LINE), model(*LINE))
