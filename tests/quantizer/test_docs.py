"""The table in the docs is the table in the code."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")
def test_the_rule_page_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("make_rules", DOCS / "make_rules.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.TARGET.read_text() == module.render(), "run `python docs/make_rules.py`"
