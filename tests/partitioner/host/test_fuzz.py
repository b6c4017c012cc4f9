from fuzz.programs import fuzz
from fuzz.subjects import subjects

CASES = 150
# Not the seed of the full run of 10,000 cases, so that CI adds cases.
SEED = 20


def test_corrupt_programs_are_clear_errors_or_run():
    outcomes, problems = fuzz(CASES, SEED, subjects())
    assert problems == []
    assert outcomes.total() == CASES
    assert outcomes["ran"] > 0
    assert outcomes["ProgramFormatError"] > CASES / 2
