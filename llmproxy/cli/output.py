"""Answers on standard output: a table for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import click
import orjson

_NOTHING = "-"


def print_json(document: object, *, is_line: bool = False) -> None:
    """One JSON document, indented unless it is one line of many."""
    click.echo(orjson.dumps(document, default=str, option=0 if is_line else orjson.OPT_INDENT_2))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Rows under a heading, in columns that line up."""
    lines = [tuple(column.replace("_", " ").upper() for column in columns)]
    lines += [tuple(cell(row.get(column)) for column in columns) for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def cell(value: object) -> str:
    """A value in few words."""
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or _NOTHING
    return str(value)
