"""Runs ExecuTorch's own Core ML tests, read from the installed package, on this package's parts.

    python tests/lowering/stock_suite.py [arguments of pytest]

Only the imports of the partitioner and the backend are changed. Three tests are left out because ours differ on purpose
(`DIFFERENT`), and without torchvision the one that downloads its weights.
"""

import ast
import importlib.util
import sys
import tempfile
from pathlib import Path

import executorch.backends.apple.coreml as stock
import pytest

FILES = (
    "test_coreml_partitioner.py",
    "test_enumerated_shapes.py",
    "test_coreml_multifunction.py",
    "test_torch_ops.py",
    "test_coreml_recipes.py",
)
OURS = {
    "CoreMLPartitioner": "from partitioner import CoreMLPartitioner",
    "CoreMLBackend": "from partitioner import CoreMLBackend",
    "CoreMLRecipeProvider": "from coreml_recipes import CoreMLRecipeProvider",
    "CoreMLRecipeType": "from coreml_recipes import CoreMLRecipeType",
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY": (
        "from partitioner.compile_specs import WeightSharing as MULTIMETHOD_WEIGHT_SHARING_STRATEGY"
    ),
}
REPLACED = tuple(f"executorch.backends.apple.coreml.{part}" for part in ("compiler", "partition", "recipes"))
NEEDS_TORCHVISION = "test_vit_skip_conv"
DIFFERENT = {
    "test_argmax_argmin_dim_none_is_skipped": "we lower them",
    "test_minimum_deployment_target_validation": "ours asks for what the program needs, which is often less",
    "test_deprecation_warning_for_to_backend_workflow": "reads the log of the stock's module",
}


def rewritten(source: str) -> str:
    """The source with our parts imported in place of the stock's."""
    tree = ast.parse(source)
    body: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(REPLACED):
            names = [alias.name for alias in statement.names]
            body += [line for name in names for line in ast.parse(OURS[name]).body]
        elif isinstance(statement, ast.Import) and statement.names[0].name == "torchvision" and not _has_torchvision():
            continue
        else:
            body.append(statement)
    return ast.unparse(ast.Module(body=body, type_ignores=[]))


def _has_torchvision() -> bool:
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # built for another torch
        return False
    return True


def run(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    folder = Path(next(iter(stock.__path__))) / "test"
    with tempfile.TemporaryDirectory() as name:
        for file in FILES:
            (Path(name) / file).write_text(rewritten((folder / file).read_text()))
        left_out = [*DIFFERENT, *([] if _has_torchvision() else [NEEDS_TORCHVISION])]
        chosen = ["-k", " and ".join(f"not {test}" for test in left_out)]
        return int(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", name, *chosen, *arguments]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
