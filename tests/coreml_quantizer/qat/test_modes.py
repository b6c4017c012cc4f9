"""Everything that is random in training, or normalizes by the batch, follows the mode and is gone once finalized."""

from collections.abc import Callable

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from helpers.models import bert
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer, LinearQuantizer, QuantizerError
from coreml_quantizer.graph.modes import MODE_ARGUMENTS, trains
from partitioner import CoreMLPartitioner

aten = torch.ops.aten


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 24)
        self.outside = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.inside(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        drops = 0.3 if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, dropout_p=drops)
        result: Tensor = self.outside(mixed.transpose(1, 2).flatten(2))
        return result


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(8, 8, 2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.recurrent(x)[0])
        return result


MODELS = {
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rrelu": lambda: nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 8), nn.RReLU(inplace=True)),
    "instance-norm": lambda: nn.Sequential(nn.InstanceNorm1d(6, track_running_stats=True), nn.Linear(8, 8)),
}
QUICK = ("attention", "instance-norm")


def differs(model: nn.Module, x: Tensor) -> bool:
    """Whether the result depends on more than the input: on chance, or on what else is in the batch."""
    with torch.no_grad():
        first, again, alone = model(x), model(x), model(x.clone().index_fill_(0, torch.tensor([1]), 3.0))
    return not (torch.equal(first, again) and torch.equal(first[:1], alone[:1]))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 6, 8)


def settled(model: GraphModule, x: Tensor) -> None:
    """Trains a little, so that running statistics are not those that everything starts with."""
    for _ in range(3):
        model(x)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_pt2e(name: str, x: Tensor) -> None:
    exported = torch.export.export(MODELS[name]().train(), (x,)).module()
    prepared = prepare_qat_pt2e(exported, CoreMLQuantizer())
    settled(prepared, x)
    random = name != "instance-norm"
    assert not random or differs(prepared, x)
    move_exported_model_to_eval(prepared)
    evaluated = prepared(x)
    assert not differs(prepared, x)
    move_exported_model_to_train(prepared)
    assert not torch.equal(prepared(x), evaluated)
    move_exported_model_to_eval(prepared)
    evaluated = prepared(x)
    converted = convert_pt2e(prepared)
    assert not differs(converted, x)
    assert not any(trains(node) for node in converted.graph.nodes)
    assert torch.allclose(converted(x), evaluated, rtol=0, atol=0.03)


def test_bert(x: Tensor) -> None:
    model, (tokens, mask) = bert()
    torch.manual_seed(0)
    quantizer = LinearQuantizer(model)
    prepared = quantizer.prepare((tokens, mask))
    drops = [node for node in prepared.graph.nodes if "_modal" in str(node.target)]
    assert drops, "attention without dropout tests nothing"
    prepared(tokens, mask)
    quantizer.step()
    assert not torch.equal(prepared(tokens, mask), prepared(tokens, mask))
    prepared.eval()
    assert torch.equal(prepared(tokens, mask), prepared(tokens, mask))
    prepared.train()
    finalized = quantizer.finalize()
    assert torch.equal(finalized(tokens, mask), finalized(tokens, mask))
    assert sum(node.target is aten.scaled_dot_product_attention.default for node in finalized.graph.nodes) == 2
    assert not any(trains(node) for node in finalized.graph.nodes)
    edge = to_edge_transform_and_lower(
        torch.export.export(finalized, (tokens, mask)), partitioner=[CoreMLPartitioner()]
    )
    assert not any("dropout" in str(node.target) for node in edge.exported_program().graph.nodes)


def test_compiled_as_one_graph(x: Tensor) -> None:
    exported = torch.export.export(Attention().train(), (x,)).module()
    prepared = prepare_qat_pt2e(exported, CoreMLQuantizer())
    prepared(x)
    compiled = torch.compile(prepared, backend="aot_eager", fullgraph=True)
    assert differs(compiled, x)
    move_exported_model_to_eval(prepared)
    torch.testing.assert_close(compiled(x), prepared(x))


def by_bernoulli(x: Tensor, keep: float, row: bool) -> Tensor:
    noise = torch.empty([x.shape[0] if row else 1] + [1] * (x.ndim - 1)).bernoulli_(keep)
    return x * noise.div_(keep)


def by_new_empty(x: Tensor, keep: float, row: bool) -> Tensor:
    noise = x.new_empty((x.shape[0] if row else 1,) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)
    return noise * x


def by_floor(x: Tensor, keep: float, row: bool) -> Tensor:
    noise = keep + torch.rand((x.shape[0] if row else 1,) + (1,) * (x.ndim - 1), dtype=x.dtype)
    return x.div(keep) * noise.floor_()


class Deep(nn.Module):
    """A residual branch that training drops for some samples, or for all."""

    def __init__(self, drop: Callable[[Tensor, float, bool], Tensor], row: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop, self.row = drop, row

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(x)
        branch = self.drop(branch, 0.75, self.row) if self.training else branch
        result: Tensor = self.first(x) + branch
        return result


@pytest.mark.parametrize("row", [True, False])
@pytest.mark.parametrize("drop", [by_bernoulli, by_new_empty, by_floor])
def test_stochastic_depth(drop: Callable[[Tensor, float, bool], Tensor], row: bool) -> None:
    torch.manual_seed(0)
    model, x = Deep(drop, row), torch.randn(400, 3, 8)
    quantizer = LinearQuantizer(model, {"global_config": {"milestones": [0, -1, -1, -1]}})
    prepared = quantizer.prepare(x)
    assert not any("rand" in str(node.target) or "bernoulli" in str(node.target) for node in prepared.graph.nodes)
    quantizer.step()
    direct, branch = model.first(x), model.second(x)
    with torch.no_grad():
        factors = torch.stack([(prepared(x) - direct) / branch for _ in range(40)]).mean(3).mean(2)
    kept = factors > 0.5
    assert torch.allclose(factors, kept * (1 / 0.75), atol=1e-3), "a branch is dropped or scaled, as a whole"
    assert row is not bool((kept == kept[:, :1]).all()), "each sample by itself, or all together"
    # Three standard deviations of the mean of as many draws as there are.
    draws = 40 * (400 if row else 1)
    assert abs(kept.float().mean() - 0.75) < 3 * (0.75 * 0.25 / draws) ** 0.5
    prepared.eval()
    assert torch.allclose(prepared(x), model.eval()(x), atol=1e-5)
    finalized = quantizer.finalize()
    assert torch.equal(finalized(x), finalized(x))
    assert not any("mul" in str(node.target) for node in finalized.graph.nodes)
    with pytest.raises(QuantizerError, match=r"training mode: .*model.eval\(\)"):
        prepare_pt2e(torch.export.export(model.train(), (x,)).module(), CoreMLQuantizer())


def test_other_random_products_stay(x: Tensor) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.empty(2, 1, 1).bernoulli_(0.5)
            result: Tensor = self.layer(x) * noise.div(0.5) + noise
            return result

    prepared = prepare_qat_pt2e(torch.export.export(Noisy(), (x,)).module(), CoreMLQuantizer())
    assert sum(node.target is aten.bernoulli_.float for node in prepared.graph.nodes) == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_calibration_refuses_training(name: str, x: Tensor) -> None:
    exported = torch.export.export(MODELS[name]().train(), (x,)).module()
    with pytest.raises(QuantizerError, match=r"training mode: .*model.eval\(\)"):
        prepare_pt2e(exported, CoreMLQuantizer())
    prepare_pt2e(torch.export.export(MODELS[name]().eval(), (x,)).module(), CoreMLQuantizer())


def test_the_table_names_arguments_of_the_operators() -> None:
    for op, rule in MODE_ARGUMENTS.items():
        for overload in (getattr(op, name) for name in op.overloads()):
            names = {argument.name for argument in overload._schema.arguments}
            assert {rule.name, rule.condition or rule.name} <= names or overload._schema.is_mutable, overload
