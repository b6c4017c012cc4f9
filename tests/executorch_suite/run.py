"""Runs ExecuTorch's own Core ML tests, read from the installed package, on this package's parts.

    python tests/executorch_suite/run.py [arguments of pytest]

Only the imports of the quantizer, the partitioner, the backend and the recipes are changed. What `DIFFERENT` names is
left out because ours differ on purpose, and without torchvision the one that downloads its weights.
"""

import ast
import importlib.util
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import executorch.backends.apple.coreml as stock
import pytest

FILES = (
    "test_coreml_partitioner.py",
    "test_enumerated_shapes.py",
    "test_coreml_multifunction.py",
    "test_torch_ops.py",
    "test_coreml_recipes.py",
    "test_coreml_quantizer.py",
)
OURS = {
    "CoreMLPartitioner": "from partitioner import CoreMLPartitioner",
    "CoreMLBackend": "from partitioner import CoreMLBackend",
    "CoreMLQuantizer": "from coreml_quantizer import CoreMLQuantizer",
    "CoreMLRecipeProvider": "from coreml_recipes import CoreMLRecipeProvider",
    "CoreMLRecipeType": "from coreml_recipes import CoreMLRecipeType",
    "MULTIMETHOD_WEIGHT_SHARING_STRATEGY": (
        "from partitioner.options.compile_specs import WeightSharing as MULTIMETHOD_WEIGHT_SHARING_STRATEGY"
    ),
}
REPLACED = tuple(
    f"executorch.backends.apple.coreml.{part}" for part in ("compiler", "partition", "quantizer", "recipes")
)
NEEDS_TORCHVISION = "test_vit_skip_conv"
_MILESTONES = "with milestones nothing is observed before step(), as in coremltools; the stock ignores them"
DIFFERENT = {
    "test_conv_relu[QAT]": _MILESTONES,
    "test_linear[QAT]": _MILESTONES,
    "test_fake_quantize_modules_inserted_after_prepare[PTQ]": "calibration observes values and does not round them",
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


class _LeaveOut:
    """Takes tests out of what pytest collected, whatever else chooses among them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if item.name in self.names]
        items[:] = [item for item in items if item.name not in self.names]
        config.hook.pytest_deselected(items=left_out)


def run(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    folder = Path(next(iter(stock.__path__))) / "test"
    left_out = _LeaveOut([*DIFFERENT, *([] if _has_torchvision() else [NEEDS_TORCHVISION])])
    with tempfile.TemporaryDirectory() as name:
        for file in FILES:
            (Path(name) / file).write_text(rewritten((folder / file).read_text()))
        options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", name, *arguments]
        return int(pytest.main(options, plugins=[left_out]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
