"""The provider of recipes: a table from recipe type to its arguments and its quantization."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import coremltools as ct
from executorch.backends.apple.coreml.recipes import CoreMLRecipeType
from executorch.exir import EdgeCompileConfig
from executorch.export import BackendRecipeProvider, ExportRecipe, LoweringRecipe, QuantizationRecipe, RecipeType

from coreml_recipes import quantization
from partitioner import CoreMLBackend, CoreMLPartitioner

_BACKEND = "coreml"
_SPECS = ("minimum_deployment_target", "compute_unit")
_PARTITIONER = (
    *("skip_ops_for_coreml_delegation", "lower_full_graph", "take_over_constant_data", "take_over_mutable_buffer"),
    *("on_error", "delegate_islands"),
)


@dataclass(frozen=True)
class _Recipe:
    """The construction of one type of recipe.

    Attributes:
        quantize: Makes the quantization from the recipe's own arguments; None for floating point.
        required: Arguments that only this recipe has and that must be given.
        optional: Arguments that only this recipe has and that may be given.
        precision: The precision in which Core ML computes.
    """

    quantize: Callable[..., QuantizationRecipe] | None = None
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    precision: ct.precision = ct.precision.FLOAT16


_RECIPES: Mapping[RecipeType, _Recipe] = MappingProxyType(
    {
        CoreMLRecipeType.FP32: _Recipe(precision=ct.precision.FLOAT32),
        CoreMLRecipeType.FP16: _Recipe(),
        CoreMLRecipeType.PT2E_INT8_STATIC: _Recipe(quantization.static, optional=("config",)),
        CoreMLRecipeType.PT2E_INT8_WEIGHT_ONLY: _Recipe(quantization.weight_only, optional=("config",)),
        CoreMLRecipeType.TORCHAO_INT4_WEIGHT_ONLY_PER_CHANNEL: _Recipe(
            quantization.channels(4), optional=("filter_fn",)
        ),
        CoreMLRecipeType.TORCHAO_INT4_WEIGHT_ONLY_PER_GROUP: _Recipe(
            quantization.groups(4), optional=("group_size", "filter_fn")
        ),
        CoreMLRecipeType.TORCHAO_INT8_WEIGHT_ONLY_PER_CHANNEL: _Recipe(
            quantization.channels(8), optional=("filter_fn",)
        ),
        CoreMLRecipeType.TORCHAO_INT8_WEIGHT_ONLY_PER_GROUP: _Recipe(
            quantization.groups(8), optional=("group_size", "filter_fn")
        ),
        CoreMLRecipeType.CODEBOOK_WEIGHT_ONLY: _Recipe(
            quantization.codebook, required=("bits", "block_size"), optional=("filter_fn",)
        ),
    }
)


class CoreMLRecipeProvider(BackendRecipeProvider):
    """The recipes of ExecuTorch's Core ML backend, made from the parts of this project."""

    @property
    def backend_name(self) -> str:
        """The name that ExecuTorch's Core ML recipes have."""
        return _BACKEND

    def get_supported_recipes(self) -> Sequence[RecipeType]:
        """Returns every recipe type of ExecuTorch's Core ML backend."""
        return list(_RECIPES)

    def create_recipe(self, recipe_type: RecipeType, **kwargs: Any) -> ExportRecipe | None:
        """Makes a recipe.

        Args:
            recipe_type: One of `CoreMLRecipeType`.
            kwargs: For all: ``minimum_deployment_target`` (None: the lowest that the program needs), ``compute_unit``,
                and the arguments of `CoreMLPartitioner` but its compile specs. For PT2E: ``config``, a
                `QuantizerConfig` or `LinearQuantizerConfig`. For torchao: ``group_size``, ``bits``, ``block_size``
                and ``filter_fn``.

        Returns:
            The recipe, or None for a type of another backend.

        Raises:
            ValueError: An argument is unknown, missing, or has an impossible value; all of them are named.
        """
        recipe = _RECIPES.get(recipe_type)
        if recipe is None:
            return None
        _check(recipe_type, recipe, kwargs)
        own = {name: kwargs[name] for name in (*recipe.required, *recipe.optional) if name in kwargs}
        specs = CoreMLBackend.generate_compile_specs(
            compute_precision=recipe.precision, **{name: kwargs[name] for name in _SPECS if name in kwargs}
        )
        partitioner = CoreMLPartitioner(
            compile_specs=specs, **{name: kwargs[name] for name in _PARTITIONER if name in kwargs}
        )
        return ExportRecipe(
            name=recipe_type.value,
            quantization_recipe=None if recipe.quantize is None else recipe.quantize(**own),
            lowering_recipe=LoweringRecipe(
                partitioners=[partitioner],
                edge_compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=False),
            ),
        )


def _check(recipe_type: RecipeType, recipe: _Recipe, kwargs: Mapping[str, Any]) -> None:
    allowed = (*recipe.required, *recipe.optional, *_SPECS, *_PARTITIONER)
    problems = [f"unknown argument {name!r}" for name in kwargs if name not in allowed]
    problems += [f"argument {name!r} is missing" for name in recipe.required if name not in kwargs]
    problems += quantization.problems(kwargs)
    if problems:
        raise ValueError(f"recipe {recipe_type.value!r}: {'; '.join(problems)}; its arguments are {', '.join(allowed)}")
