"""Every architecture of the table goes all the way, quantized fully and by weights alone."""

import pytest
from sweep.outcome import CONFIGURATIONS, run
from sweep.table import ARCHITECTURES


def test_the_table_is_wide() -> None:
    assert len(ARCHITECTURES) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lowers_and_runs(name: str, configuration: str) -> None:
    outcome = run(ARCHITECTURES[name], configuration)
    assert outcome.error is None
    assert outcome.delegates == 1, outcome.reasons
    # Rounding in front of a quantizer moves values by one step, which is quantization noise once more.
    assert outcome.noise["storage16"] >= min(30.0, outcome.own - 3.0)
