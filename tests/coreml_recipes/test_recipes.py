"""ExecuTorch's export recipes, made of this project's parts."""

from dataclasses import replace

import coremltools as ct
import pytest
import torch
from executorch.backends.apple.coreml.recipes import CoreMLRecipeType as StockRecipeType
from executorch.backends.xnnpack.recipes import XNNPackRecipeType
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.export import ExportRecipe, export, recipe_registry
from executorch.export.target_recipes import get_ios_recipe
from helpers.models import signal_to_noise
from torch import nn

from coreml_quantizer import Skip, presets
from coreml_recipes import CoreMLRecipeProvider, CoreMLRecipeType
from partitioner import host
from partitioner.options.compile_specs import is_marked

X = (torch.linspace(-2, 2, 256).reshape(4, 64).sin(),)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


# Recipe, its arguments, the least agreement with the float network in dB, and the bits of a stored weight.
RECIPES = {
    "fp32": (CoreMLRecipeType.FP32, {}, 110, 32),
    "fp16": (CoreMLRecipeType.FP16, {}, 50, 16),
    "w8a8": (CoreMLRecipeType.PT2E_INT8_STATIC, {}, 30, 8),
    "w8": (CoreMLRecipeType.PT2E_INT8_WEIGHT_ONLY, {}, 35, 8),
    "w4 block": (CoreMLRecipeType.TORCHAO_INT4_WEIGHT_ONLY_PER_GROUP, {"group_size": 32}, 15, 4),
    "w4 channel": (CoreMLRecipeType.TORCHAO_INT4_WEIGHT_ONLY_PER_CHANNEL, {}, 13, 4),
    "w4 block of our own": (CoreMLRecipeType.PT2E_INT8_WEIGHT_ONLY, {"config": presets.w4_block32()}, 15, 4),
    "w8 channel": (CoreMLRecipeType.TORCHAO_INT8_WEIGHT_ONLY_PER_CHANNEL, {}, 35, 8),
    "w8 block": (CoreMLRecipeType.TORCHAO_INT8_WEIGHT_ONLY_PER_GROUP, {}, 35, 8),
    "lookup tables": (CoreMLRecipeType.CODEBOOK_WEIGHT_ONLY, {"bits": 4, "block_size": [-1, 16]}, 15, 4),
}
DEFAULT = ("w8a8", "lookup tables")


@pytest.mark.parametrize(
    ("recipe_type", "arguments", "agreement", "bits"),
    [pytest.param(*row, id=name, marks=() if name in DEFAULT else pytest.mark.slow) for name, row in RECIPES.items()],
)
def test_recipes_export_programs_that_agree(recipe_type, arguments: dict, agreement: float, bits: int) -> None:
    recipe = ExportRecipe.get_recipe(recipe_type, **arguments)
    assert recipe.name == recipe_type.value
    model = network()
    session = export(network(), [X], recipe)
    pte = bytes(session.get_pte_buffer())
    (plan,) = deserialize_pte_binary(pte).program.execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["CoreMLBackend"]
    (result,) = host.run(pte, *X)
    assert signal_to_noise(model(*X).detach(), result) > agreement
    weights = (64 * 64 + 64 * 32) * bits / 8
    assert weights < len(pte) < weights * 1.3 + 12_000


def test_our_provider_serves_the_types_of_executorch() -> None:
    assert CoreMLRecipeType is StockRecipeType
    assert set(recipe_registry.get_supported_recipes("coreml")) == set(StockRecipeType)
    recipe = ExportRecipe.get_recipe(StockRecipeType.FP16, minimum_deployment_target=ct.target.iOS17)
    (partitioner,) = recipe.lowering_recipe.partitioners
    assert is_marked(partitioner.delegation_spec.compile_specs)
    assert "min_deployment_target=8" in repr(partitioner)


def test_arguments_reach_the_partitioner() -> None:
    recipe = ExportRecipe.get_recipe(
        CoreMLRecipeType.FP16, skip_ops_for_coreml_delegation=["aten.relu.default"], on_error="fallback"
    )
    (partitioner,) = recipe.lowering_recipe.partitioners
    assert (partitioner.skip_ops_for_coreml_delegation, partitioner.on_error) == (["aten.relu.default"], "fallback")


class Angles(nn.Module):
    """A network with an operator that Core ML does not take, so that a second backend gets its turn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(torch.asinh(self.enter(x)))


TARGETS = {"ios-arm64-coreml-fp32": 100, "ios-arm64-coreml-fp16": 50, "ios-arm64-coreml-int8": 20}


def test_every_target_recipe_is_tried() -> None:
    with pytest.raises(ValueError, match="Unsupported iOS configuration") as caught:
        get_ios_recipe("ios-arm64-coreml")
    assert sorted(TARGETS) == sorted(eval(str(caught.value).partition("Supported: ")[2]))


@pytest.mark.parametrize("arguments", [{}, {"minimum_deployment_target": ct.target.iOS18}], ids=["default", "iOS18"])
@pytest.mark.parametrize("make", [network, Angles])
@pytest.mark.parametrize("target", TARGETS)
def test_target_recipes_export_programs_that_agree(target: str, make, arguments: dict) -> None:
    recipe = get_ios_recipe(target, **arguments)
    assert recipe.strict
    pte = bytes(export(make().eval(), [X], recipe).get_pte_buffer())
    assert "CoreMLBackend" in {d.id for d in deserialize_pte_binary(pte).program.execution_plan[0].delegates}
    (result,) = host.run(pte, *X)
    assert signal_to_noise(make()(*X).detach(), result) > TARGETS[target]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_combines_with_that_of_another_backend(name: str) -> None:
    recipe_type, arguments, _, _ = RECIPES[name]
    other = ExportRecipe.get_recipe(XNNPackRecipeType.FP32)
    combined = ExportRecipe.combine([ExportRecipe.get_recipe(recipe_type, **arguments), other])
    assert len(combined.lowering_recipe.partitioners) == 2


def test_a_quantizer_of_another_backend_takes_what_ours_leaves() -> None:
    config = replace(presets.w8a8(), skip=Skip(modules=("2",)))
    ours = ExportRecipe.get_recipe(CoreMLRecipeType.PT2E_INT8_STATIC, config=config)
    theirs = ExportRecipe.get_recipe(XNNPackRecipeType.PT2E_INT8_STATIC_PER_CHANNEL)
    session = export(network(), [X], ExportRecipe.combine([ours, theirs]))
    (result,) = host.run(bytes(session.get_pte_buffer()), *X)
    assert signal_to_noise(network()(*X).detach(), result) > 25


WRONG = [
    (CoreMLRecipeType.FP16, {"group_size": 32}, "unknown argument 'group_size'"),
    (CoreMLRecipeType.FP16, {"compute_precision": ct.precision.FLOAT32}, "its arguments are minimum_deployment_target"),
    (CoreMLRecipeType.CODEBOOK_WEIGHT_ONLY, {}, "'bits' is missing; argument 'block_size' is missing"),
    (CoreMLRecipeType.CODEBOOK_WEIGHT_ONLY, {"bits": 9, "block_size": 16}, "bits=9 must be between 1 and 8"),
    (CoreMLRecipeType.CODEBOOK_WEIGHT_ONLY, {"bits": 4, "block_size": 16}, "block_size=16 must be a list"),
    (CoreMLRecipeType.TORCHAO_INT4_WEIGHT_ONLY_PER_GROUP, {"group_size": 0}, "group_size=0 must be positive"),
    (CoreMLRecipeType.FP16, {"minimum_deployment_target": "iOS17"}, "cannot be stored; allowed: None, ct.target.iOS13"),
]


@pytest.mark.parametrize(("recipe_type", "arguments", "message"), WRONG)
def test_wrong_arguments_are_refused(recipe_type, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportRecipe.get_recipe(recipe_type, **arguments)


def test_types_of_other_backends_are_not_ours() -> None:
    assert CoreMLRecipeProvider().create_recipe("fp16") is None
