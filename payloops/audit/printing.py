"""How the commands of `payloops audit` print: tables that fit the terminal, or JSON as the API has it."""

import os
import sys
from typing import Any

import orjson
from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDE = 150
"""Columns from which on there are tables; in fewer, an event or an order is a few lines."""
WITHOUT_TERMINAL = 200
"""Columns, where nobody says how many there are."""


def make_console() -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    given = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if given else WITHOUT_TERMINAL, highlight=False, markup=False)


def plain_table(*columns: str, **options: Any) -> Table:
    """A table whose cells are folded and never cut: ids are there to be copied."""
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", **options
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_json(adapter: TypeAdapter[Any], value: Any) -> None:
    """What the API would answer."""
    sys.stdout.buffer.write(adapter.dump_json(value, by_alias=True, indent=2) + b"\n")


def print_plain_json(value: Any) -> None:
    sys.stdout.buffer.write(
        orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)
    )
