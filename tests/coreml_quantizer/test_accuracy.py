"""Calibrated over many batches, the converted graph stays close to the float model: forms that once did not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.graphs import WEIGHT_ONLY, prepare
from helpers.models import signal_to_noise
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

BATCHES = 100
EIGHT_BITS = 30.0
"""Decibels that a handful of 8-bit steps over a well-used range leave at least."""
MIN_MAX = {"global_config": {"activation_observer": "min_max"}}
ROWS = (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),)
IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


class Case(nn.Module):
    """A forward function with the modules and parameters it needs."""

    def __init__(self, function: Callable[..., object], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def agreement(model: nn.Module, inputs: tuple[Tensor, ...], config: object = None, batches: int = BATCHES) -> float:
    model.eval()
    prepared = prepare(model, inputs, config)
    with torch.no_grad():
        for _ in range(batches):
            prepared(*inputs)
        expected = model(*inputs)
        return signal_to_noise(expected, convert_pt2e(prepared)(*inputs))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("batches", [1, BATCHES])
def test_pools_and_views_do_not_narrow_the_range_they_share(batches: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert agreement(model, IMAGES, batches=batches) >= EIGHT_BITS


@pytest.mark.parametrize("batches", [1, BATCHES])
@pytest.mark.parametrize("large_first", [False, True])
def test_cat_covers_the_largest_of_its_inputs(batches: int, large_first: bool) -> None:
    def forward(self: Case, x: Tensor) -> Tensor:
        small, large = self.a(x), 100 * self.b(x)
        return torch.cat([large, small] if large_first else [small, large])

    model = Case(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 4))
    assert agreement(model, ROWS, batches=batches) >= EIGHT_BITS


@pytest.mark.parametrize(
    "model",
    [
        Case(lambda s, x: torch.cat([s.a(x).sigmoid(), 3 * x], 1), a=nn.Linear(6, 4)),
        Case(
            lambda s, x: torch.cat([s.a(x).sigmoid(), s.t]), a=nn.Linear(6, 4), t=nn.Parameter(torch.full((1, 4), 5.0))
        ),
        Case(lambda s, x: torch.cat([s.a(x).tanh(), s.n(x)]), a=nn.Linear(6, 6), n=nn.LayerNorm(6)),
    ],
    ids=["input", "parameter", "norm"],
)
def test_cat_does_not_clip_to_the_range_of_a_sigmoid(model: nn.Module) -> None:
    assert agreement(model, ROWS) >= EIGHT_BITS


def assigns_a_slice(self: Case, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, 0] = 7.0
    return y


def adds_through_a_view(self: Case, x: Tensor) -> Tensor:
    y = self.a(x)
    y.view(-1).add_(1)
    return y


def clamps_a_part(self: Case, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, :2].relu_()
    return y


def scales_what_is_read_later(self: Case, x: Tensor) -> Tensor:
    y = self.a(x)
    z = y.transpose(0, 1)
    y.mul_(2)
    return z @ y


@pytest.mark.parametrize(
    "forward",
    [assigns_a_slice, adds_through_a_view, clamps_a_part, scales_what_is_read_later],
    ids=lambda f: f.__name__,
)
def test_what_is_written_through_an_alias_is_not_lost(forward: Callable[..., Tensor]) -> None:
    assert agreement(Case(forward, a=nn.Linear(6, 4)), ROWS) >= EIGHT_BITS


KEEP = torch.ones(4, 4).tril()


@pytest.mark.parametrize(
    "mask",
    [
        lambda s, k: s - 1e4 * (1 - k),
        lambda s, k: s - 65500 * (1 - k),
        lambda s, k: (s.view(1, 4, 4) + (k - 1) * 1e4).view(4, 4),
        lambda s, k: (s + (1 - k) * -1e4) + 0.5 * s,
        lambda s, k: (s + (1 - k) * -1e4) / 2,
        lambda s, k: torch.maximum(s + (1 - k) * -1e9, torch.tensor(torch.finfo(torch.float32).min)),
        lambda s, k: (s.view(1, 4, 4) + (1 - k) * -100.0).view(4, 4),
        lambda s, k: s + ((1 - k).repeat(1, 2) * -1e4).chunk(2, 1)[0],
    ],
    ids=["minus", "minus-65500", "reshaped", "biased", "scaled", "maximum", "swin", "chunked"],
)
def test_usual_masks_cost_no_accuracy(mask: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(self: Case, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.a(x) @ x.transpose(0, 1)
        return torch.softmax(mask(scores, keep), -1) @ x

    assert agreement(Case(forward, a=nn.Linear(6, 6)), (*ROWS, KEEP)) >= EIGHT_BITS


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.linear(self.weight * (x * torch.rsqrt(variance + 1e-6)))


def test_the_variance_of_a_norm_is_not_quantized() -> None:
    rows = torch.randn(6, 8)
    assert agreement(RmsNorm(), (rows,), MIN_MAX) >= EIGHT_BITS


def test_the_phase_of_a_sine_is_not_quantized() -> None:
    def forward(self: Case, t: Tensor) -> Tensor:
        phase = t[:, None].float() * self.frequencies[None]
        return self.linear(torch.cat([phase.sin(), phase.cos()], -1))

    model = Case(forward, linear=nn.Linear(16, 16), frequencies=torch.exp(-torch.arange(8) * 0.6))
    assert agreement(model, (torch.arange(0, 1000, 100),)) >= EIGHT_BITS


def test_index_arithmetic_is_not_quantized() -> None:
    def forward(self: Case, x: Tensor) -> Tensor:
        distance = (torch.arange(4)[:, None] - torch.arange(4)[None]).abs()
        bucket = (torch.log(distance.float() / 2) * 1.5).clamp(min=0).to(torch.long)
        return self.a(x) @ x.transpose(0, 1) + self.bias(bucket).squeeze(-1)

    assert agreement(Case(forward, a=nn.Linear(6, 6), bias=nn.Embedding(8, 1)), ROWS) >= EIGHT_BITS


@pytest.mark.parametrize(
    "model",
    [
        Case(lambda s, x: x @ s.w.t(), w=nn.Parameter(torch.randn(4, 6))),
        Case(lambda s, x: F.linear(x, s.w * 0.5), w=nn.Parameter(torch.randn(4, 6))),
        Case(
            lambda s, x: F.linear(x, s.w + s.b @ s.a),
            w=nn.Parameter(torch.randn(4, 6)),
            a=nn.Parameter(torch.randn(2, 6)),
            b=nn.Parameter(torch.randn(4, 2)),
        ),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
    ],
    ids=["transposed", "scaled", "low-rank", "weight-norm"],
)
def test_a_computed_weight_needs_no_calibration(model: nn.Module) -> None:
    assert agreement(model, ROWS, WEIGHT_ONLY, batches=0) >= EIGHT_BITS
    assert agreement(model, ROWS) >= EIGHT_BITS


def test_a_buffer_that_the_model_writes_is_no_weight() -> None:
    def forward(self: Case, x: Tensor) -> Tensor:
        y = self.query(x)
        result = F.linear(x, self.keys)
        self.keys.copy_(torch.cat([y, y]))
        return result

    prepared = prepare(Case(forward, query=nn.Linear(6, 6), keys=torch.zeros(8, 6)), ROWS, WEIGHT_ONLY)
    converted = convert_pt2e(prepared)
    first, second = converted(*ROWS), converted(*ROWS)
    assert torch.equal(first, torch.zeros(4, 8))
    assert float(second.detach().abs().max()) > 0.1


def test_average_pools_with_a_divisor_of_their_own_keep_their_range() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.AvgPool2d(2, divisor_override=1))
    assert agreement(model, IMAGES) >= EIGHT_BITS


def test_calibration_resumes_from_a_state_dict() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    batches = [torch.randn(4, 6) * scale for scale in (1.0, 5.0, 2.0)]
    straight, first, second = (prepare(model, ROWS) for _ in range(3))
    for batch in batches:
        straight(batch)
    first(batches[0])
    second.load_state_dict(first.state_dict())
    for batch in batches[1:]:
        second(batch)
    assert torch.equal(convert_pt2e(straight)(*ROWS), convert_pt2e(second)(*ROWS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prepared_model_can_change_its_dtype(dtype: torch.dtype) -> None:
    prepared = prepare(nn.Linear(6, 4), ROWS)
    prepared(*ROWS)
    prepared.to(dtype)
    assert prepared(ROWS[0].to(dtype)).dtype == dtype


def test_tied_parameters_stay_tied() -> None:
    norm = nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.mul_(1.2345678)
    other = nn.LayerNorm(6)
    other.weight = norm.weight
    prepared = prepare(nn.Sequential(norm, nn.Linear(6, 6), other), ROWS)
    assert prepared.get_parameter("0.weight") is prepared.get_parameter("2.weight")


@pytest.mark.parametrize("container", [nn.ModuleList, nn.ModuleDict])
def test_the_name_of_a_container_holds_for_what_it_contains(container: type) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(6, 6), nn.Linear(6, 6)]
            self.blocks = (
                container(layers) if container is nn.ModuleList else container({"a": layers[0], "b": layers[1]})
            )
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks if container is nn.ModuleList else self.blocks.values():
                x = block(x)
            return self.head(x)

    prepared = prepare(Stack(), ROWS, {"global_config": {}, "module_name_configs": {"blocks": None}})
    observed = [node for node in prepared.graph.nodes if node.op == "call_module" and "post_process" in node.target]
    assert len(observed) == 3, "input, weight and output of the head alone"
