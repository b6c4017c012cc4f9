"""ExecuTorch export recipes that quantize with `coreml_quantizer` and lower with `partitioner`.

Importing this package registers its provider for ExecuTorch's backend ``"coreml"``, in place of ExecuTorch's own; the
recipe types, their names and their arguments are ExecuTorch's.
"""

from executorch.backends.apple.coreml.recipes import CoreMLRecipeType
from executorch.export import recipe_registry

from coreml_recipes.provider import CoreMLRecipeProvider

recipe_registry.register_backend_recipe_provider(CoreMLRecipeProvider())

__all__ = ["CoreMLRecipeProvider", "CoreMLRecipeType"]
