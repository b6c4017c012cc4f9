"""Writes what building, running and testing this checkout needs, read from pyproject.toml, one requirement a line.

Installing all of it in one go, the build requirements too, lets pip resolve once and download each wheel once.
"""

import sys
from pathlib import Path

import tomllib

EXTRAS = ("dev", "examples")


def main() -> None:
    settings = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    requirements = [*settings["build-system"]["requires"], *project["dependencies"]]
    for extra in EXTRAS:
        requirements += project["optional-dependencies"][extra]
    lines = sorted({line for line in requirements if not line.startswith(project["name"])})
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
