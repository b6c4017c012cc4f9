"""What is imported is declared, what is declared is what the code says, and other versions are told apart."""

import ast
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tomllib
import torch
from coremltools.converters.mil.mil import Block, Program
from coremltools.converters.mil.mil.var import Var
from helpers.lowering import Function
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.quantizer import ComposableQuantizer

from coreml_quantizer import QuantizerWarning, torchao_patches
from partitioner import lower
from partitioner.errors import ConversionError
from partitioner.versions import MADE_FOR

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {re.split(r"[<>=\[]", line)[0].lower(): line for line in PROJECT["dependencies"]}
OWN = ("coreml_quantizer", "coreml_recipes", "partitioner")
DISTRIBUTIONS = {"google": "protobuf", "yaml": "pyyaml"}
OPTIONAL = {"PIL", "pytest"}  # image inputs and the plugin, for whoever has them


def imported() -> set[str]:
    """Returns the top-level names that the packages import."""
    names = set()
    for package in OWN:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    names.add(str(node.module).partition(".")[0])
    return names


def test_every_import_is_declared() -> None:
    foreign = imported() - sys.stdlib_module_names - set(OWN) - OPTIONAL
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= set(DECLARED)


def test_the_ranges_are_the_same_everywhere() -> None:
    for name, versions in MADE_FOR.items():
        assert DECLARED[name] == f"{name}{versions}"
    assert f'"{DECLARED["torch"]}"' in (ROOT / "README.md").read_text()
    low, high = re.findall(r"2\.(\d+)", DECLARED["torch"])
    assert int(low) <= int(version("torch").split(".")[1]) < int(high)


REPLACED = [
    (Var, "_set_nonreplaceable_vars_upstream"),
    (Block, "_propagate_nonreplaceable_vars"),
    (Program, "validate"),
]


@pytest.mark.parametrize(("owner", "name"), REPLACED)
def test_another_coremltools_is_named(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Function(torch.relu), (torch.ones(2, 3),))
    monkeypatch.delattr(owner, name)
    with pytest.raises(ConversionError, match=rf"{name}.*coremltools 9.0.*pip install .*coremltools==9.0"):
        lower(program)


def test_another_torchao_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(quantize_pt2e, "_disallow_eval_train")
    with pytest.warns(QuantizerWarning, match=r"torchao 0.18.* has no .*_disallow_eval_train, so converted models"):
        torchao_patches.apply()


def test_a_torchao_that_asks_each_quantizer_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(*_: object) -> None:
        pass

    monkeypatch.setattr(ComposableQuantizer, "prepare_obs_or_fq_callback", own)
    torchao_patches.apply()
    assert ComposableQuantizer.prepare_obs_or_fq_callback is own
