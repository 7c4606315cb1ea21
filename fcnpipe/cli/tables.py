"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

WIDEST = 500
"""Characters of a line that is not broken."""


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print (what, how much) in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{typer.style(name.ljust(width), bold=True)}  {value}")


def print_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print (what, how much) as a table without lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of words as a table; only reasons run over several lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name.replace(" ", "\n"), no_wrap=name != "reason", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if "reason" not in head:  # rich would cut what does not fit the terminal
        widest = console.measure(table, options=console.options.update(width=WIDEST)).maximum
        console.width = max(console.width, widest)
    console.print(table)


def print_columns(title: str, columns: Mapping[str, Iterable[Any]]) -> None:
    """Print columns of one length as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", "_\n"), justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(_round, columns, row))
    Console().print(table)


def _round(name: str, value: float) -> str:
    """Give a value of a column: degrees to a hundredth of an arcsecond, others to six digits."""
    return f"{value:.6f}" if name in {"ra", "dec"} else f"{value:.6g}"
