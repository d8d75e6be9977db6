"""Tables, for a terminal or for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 200  # nothing wraps where nobody told how wide it is


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns that end in > are set to the right."""
    if sys.stdout is None:
        return  # it was closed before we came
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table_of(columns, rows))


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        name = column.removesuffix(">")
        table.add_column(name, justify="right" if name != column else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
