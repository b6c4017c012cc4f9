"""Runs the sweep and prints a line for each architecture: ``PYTHONPATH=tests python -m sweep [names] [--w8 | --w8a8]``.

With ``--reasons`` each operation left on the CPU is explained.
"""

import sys
import time
import warnings

from sweep.outcome import CONFIGURATIONS, run
from sweep.table import ARCHITECTURES


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Returns the number of errors, which is the exit status."""
    options = {argument.removeprefix("--") for argument in arguments if argument.startswith("--")}
    names = [argument for argument in arguments if not argument.startswith("--")] or list(ARCHITECTURES)
    configurations = [name for name in CONFIGURATIONS if name in options] or list(CONFIGURATIONS)
    warnings.simplefilter("ignore")
    errors = split = 0
    for name in names:
        for configuration in configurations:
            started = time.perf_counter()
            outcome = run(ARCHITECTURES[name], configuration)
            _say(f"{name:20} {configuration:5} {time.perf_counter() - started:5.1f} s  {outcome}")
            if "reasons" in options:
                _say(*(f"    {reason}" for reason in outcome.reasons))
            errors += outcome.error is not None
            split += outcome.error is None and outcome.delegates != 1
    total = len(names) * len(configurations)
    _say(f"{total - errors} of {total} without error, {total - errors - split} as one delegate")
    return errors


sys.exit(main(sys.argv[1:]))
