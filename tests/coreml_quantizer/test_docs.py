"""The table in the docs is the table in the code."""

import importlib.util
import re
from pathlib import Path

import pytest

from coreml_quantizer import QuantizerConfig, presets
from coreml_quantizer.estimators import ESTIMATORS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")
@pytest.mark.parametrize("script", ["make_rules", "make_figures"])
def test_made_pages_are_up_to_date(script: str) -> None:
    specification = importlib.util.spec_from_file_location(script, DOCS / f"{script}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.TARGET.read_text() == module.render(), f"run `python docs/{script}.py`"


@pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")
def test_every_preset_and_estimator_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)`", (DOCS / "presets.md").read_text(), re.MULTILINE)
    assert rows == list(presets.PRESETS)
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|", (DOCS / "calibration.md").read_text(), re.MULTILINE)
    found = {name: re.findall(r"`(\w+)` \(([\d.]+)\)", arguments) for name, arguments in rows}
    expected = {
        name: [(key, f"{argument.default:g}") for key, argument in kind.ARGUMENTS.items()]
        for name, kind in ESTIMATORS.items()
    }
    assert found == expected


@pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")
def test_the_yaml_in_the_docs_is_a_configuration() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL)
    config = QuantizerConfig.from_yaml(text)
    assert config.skip.modules == ("head",)
    assert config.types["Conv2d"].weight.group_size == 16
