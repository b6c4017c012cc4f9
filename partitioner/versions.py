"""The versions of other packages that this one is made for: it replaces and reads private functions of theirs."""

from importlib.metadata import version

MADE_FOR = {"coremltools": "==9.0", "executorch": ">=1.5.1,<1.6", "torch": ">=2.13,<2.16"}
"""Package -> the versions that `pyproject.toml` asks for."""


def unsuitable(error: Exception) -> str:
    """Returns a message for a function of another package that is not where it should be.

    Args:
        error: What importing, reading or replacing the function raised.
    """
    found = ", ".join(f"{name} {version(name)}" for name in MADE_FOR)
    wanted = " ".join(f'"{name}{versions}"' for name, versions in MADE_FOR.items())
    return (
        f"a function that this package replaces or builds on is missing ({type(error).__name__}: {error}). "
        f"Installed are {found}; it is made for what this installs: pip install {wanted}"
    )
