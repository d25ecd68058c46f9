"""How the commands of `payloops audit` print: tables that fit the terminal, or JSON as the API has it."""

import os
import sys
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from payloops.events.money import money_text

WITHOUT_TERMINAL = 200
"""Columns, where nobody says how many there are."""
AMOUNTS = {"amount", "amount_captured", "amount_refunded"}


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


def exact_time(moment: datetime) -> str:
    """`2026-11-23 15:40:02.123456`, in UTC: as `--at` takes it."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


def field_name(name: str) -> str:
    """`transactions.<id>.processorTransactionId`: as the API names it."""
    *path, last = name.split(".")
    return ".".join([*path, to_camel(last)])


def value_text(field: str, value: Any, currency: str) -> str:
    """A field's value; money with its currency, what is not there as a dash."""
    match value:
        case None:
            return "-"
        case int() if field.rpartition(".")[2] in AMOUNTS:
            return money_text(value, currency)
        case bool():
            return "yes" if value else "no"
        case datetime():
            return exact_time(value)
        case dict() | list():
            return orjson.dumps(value).decode()
        case _:
            return str(value)
