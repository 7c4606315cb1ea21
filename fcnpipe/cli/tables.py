"""Printing of rows and tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer

MAX_WIDTH = 500
"""Maximum width of a table that is not wrapped, in characters."""


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{typer.style(name.ljust(width), bold=True)}  {value}")


def print_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values as a titled table without lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a table, in which only the column ``reason`` is wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name.replace(" ", "\n"), no_wrap=name != "reason", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if "reason" not in head:  # rich would cut a table that is wider than the terminal
        widest = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
        console.width = max(console.width, widest)
    console.print(table)


def print_columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows right-aligned below their heads, one line for each row even if the terminal is narrower."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells))
