"""Text tables: drawn by rich where it is installed, aligned with spaces otherwise."""

import io
from collections.abc import Iterable, Sequence

_WIDTH = 160
_BORDER = 3
_SENTENCE = 60
Row = Sequence[str]


def render(columns: Row, rows: Sequence[Row], footer: Iterable[str]) -> str:
    """Returns a table with the lines of `footer` below it."""
    try:
        table = _with_rich(columns, rows)
    except ImportError:
        table = plain(columns, rows)
    return "\n".join([table, *footer])


def plain(columns: Row, rows: Sequence[Row]) -> str:
    """Returns a table aligned with spaces, under a ruled header; the text of a cell is never cut or wrapped."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in aligned)


def _with_rich(columns: Row, rows: Sequence[Row]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    last = len(columns) - 1
    names = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)][:last]
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=position != last)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Names are for searching and copying: only the last column, a sentence, is wrapped.
    width = max(_WIDTH, sum(names) + _BORDER * len(columns) + _SENTENCE)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
