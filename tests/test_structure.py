"""The arrows between packages and folders, their size, and their public names."""

import ast
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import coreml_quantizer
import coreml_recipes
import partitioner
from partitioner import host

QUANTIZER = Path(coreml_quantizer.__file__).parent
LOWERING = Path(partitioner.__file__).parent
HOST = LOWERING / "host"
PACKAGES = (QUANTIZER, Path(coreml_recipes.__file__).parent, LOWERING)
HOST_MAY_IMPORT = ("partitioner.host", "partitioner.format", "partitioner.errors")

MOST_MODULES = 16
ONE_MODULE_AN_OPERATOR = (LOWERING / "lowerings", HOST / "ops")
"""Folders that hold a module for each operator or family of operators, however many there are."""

FOLDERS = sorted({path.parent for package in PACKAGES for path in package.rglob("*.py")})


def absolute_imports(path: Path) -> Iterator[str]:
    """The absolute name of everything that a module imports, wherever in the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Every absolute import below `folder` as (file, module)."""
    for path in sorted(folder.rglob("*.py")):
        yield from ((path.name, name) for name in absolute_imports(path))


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def dotted(folder: Path) -> str:
    package = next(package for package in PACKAGES if folder.is_relative_to(package))
    return ".".join(folder.relative_to(package.parent).parts)


def arrows(folder: Path) -> dict[str, set[str]]:
    """The modules and folders that stand in `folder` -> those beside them that they import.

    `__init__` is left out: it hands on the names of everything below it.
    """
    prefix = f"{dotted(folder)}."
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        source = path.relative_to(folder).parts[0].removesuffix(".py")
        names = [name for name in absolute_imports(path) if name.startswith(prefix)] if source != "__init__" else []
        found.setdefault(source, set()).update(name.removeprefix(prefix).split(".")[0] for name in names)
    return {source: {target for target in targets if target in found} - {source} for source, targets in found.items()}


def test_the_quantizer_imports_nothing_of_lowering() -> None:
    assert not [
        found for found in imports(QUANTIZER) if within(found[1], ("partitioner", "coreml_recipes", "executorch"))
    ]


def test_lowering_imports_nothing_of_the_quantizer() -> None:
    assert not [found for found in imports(LOWERING) if within(found[1], ("coreml_quantizer", "coreml_recipes"))]


def test_the_host_imports_nothing_of_lowering_but_the_format_and_the_errors() -> None:
    ours = [found for found in imports(HOST) if within(found[1], ("partitioner",))]
    assert ours
    assert not [found for found in ours if not within(found[1], HOST_MAY_IMPORT)]


@pytest.mark.parametrize("folder", FOLDERS, ids=dotted)
def test_what_stands_in_a_folder_imports_in_one_direction(folder: Path) -> None:
    """A folder counts as one thing: whatever is inside it may import what the folder may import, and nothing else."""
    try:
        TopologicalSorter(arrows(folder)).prepare()
    except CycleError as error:
        pytest.fail(f"{dotted(folder)}: {' -> '.join(reversed(error.args[1]))} is a circle of imports")


def test_a_circle_of_folders_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "house"
    files = {
        "front/__init__.py": "",
        "front/door.py": "from house.back import wall",
        "back/wall.py": "",
        "back/gate.py": "import house.front.door",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setitem(globals(), "PACKAGES", (package,))
    assert arrows(package) == {"front": {"back"}, "back": {"front"}}
    with pytest.raises(CycleError):
        TopologicalSorter(arrows(package)).prepare()


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ONE_MODULE_AN_OPERATOR], ids=dotted)
def test_a_folder_can_be_read_at_a_glance(folder: Path) -> None:
    modules = sorted(path.name for path in folder.glob("*.py"))
    assert len(modules) <= MOST_MODULES, modules


def test_no_module_shadows_a_public_function() -> None:
    """`partitioner.lower` is the function: a module of that name would take its place once it is imported."""
    for package, folder in ((partitioner, LOWERING), (host, HOST)):  # they load their names on first use
        modules = {path.name.removesuffix(".py") for path in folder.iterdir()}
        shadowed = {name for name in package.__all__ if name in modules}
        assert {name for name in shadowed if not _is_module(getattr(package, name))} == set()


def _is_module(value: object) -> bool:
    return isinstance(value, type(ast))


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


MOST_LINES, MEDIAN_LINES, LONGEST_FUNCTION = 300, 100, 60


def test_files_and_functions_stay_short() -> None:
    lengths, long_functions = {}, []
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lengths[path.name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                long_functions += [f"{path.name}: {node.name} has {length} lines"] * (length > LONGEST_FUNCTION)
    assert [f"{name} has {count} lines" for name, count in lengths.items() if count > MOST_LINES] == []
    assert statistics.median(lengths.values()) <= MEDIAN_LINES
    assert long_functions == []
