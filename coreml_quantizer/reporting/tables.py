"""Text tables: drawn by rich where it is installed, aligned with spaces otherwise."""

import io
from collections.abc import Iterable, Sequence

_WIDTH = 160
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
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", ratio=2 if position == len(columns) - 1 else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=io.StringIO(), width=_WIDTH)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
