"""The arrows between the packages, and their public names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import coreml_quantizer
import coreml_recipes
import partitioner
from partitioner import host

QUANTIZER = Path(coreml_quantizer.__file__).parent
LOWERING = Path(partitioner.__file__).parent
HOST = LOWERING / "host"
HOST_MAY_IMPORT = ("partitioner.host", "partitioner.blob", "partitioner.errors")


def imports(folder: Path, leave_out: Path | None = None) -> Iterator[tuple[str, str]]:
    """Every absolute import below `folder` as (file, module)."""
    for path in sorted(folder.rglob("*.py")):
        if leave_out is not None and leave_out in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                yield from ((path.name, f"{node.module}.{alias.name}") for alias in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_quantizer_imports_nothing_of_lowering() -> None:
    assert not [
        found for found in imports(QUANTIZER) if within(found[1], ("partitioner", "coreml_recipes", "executorch"))
    ]


def test_lowering_imports_nothing_of_the_quantizer() -> None:
    assert not [found for found in imports(LOWERING) if within(found[1], ("coreml_quantizer", "coreml_recipes"))]


def test_the_host_imports_nothing_of_lowering() -> None:
    ours = [found for found in imports(HOST) if within(found[1], ("partitioner",))]
    assert ours
    assert not [found for found in ours if not within(found[1], HOST_MAY_IMPORT) and found[1] != "partitioner.host"]


@pytest.mark.parametrize(
    "package", [coreml_quantizer, coreml_recipes, partitioner, host], ids=lambda module: module.__name__
)
def test_declared_names_exist(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert sorted(set(names)) == sorted(names)
    assert all(hasattr(package, name) for name in names)


def test_the_names_that_users_import() -> None:
    assert {"CoreMLQuantizer"} <= set(coreml_quantizer.__all__)
    assert {"CoreMLPartitioner", "CoreMLBackend", "host"} <= set(partitioner.__all__)
    assert {"load", "run", "enable", "Program", "policies"} <= set(host.__all__)
