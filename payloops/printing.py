"""Output of commands: tables that fit the terminal and cannot control it, or JSON as in the API."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from payloops.control_characters import escaped, replaced
from payloops.events.timestamps import timestamp_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDE = 150
"""Width in characters from which on events and orders are shown in tables; on narrower terminals, in several lines."""
WIDEST = 10_000
WITHOUT_TERMINAL = 250
"""Width in characters, if it is unknown: enough for rows with several ids."""


class PlainConsole(Console):
    """Prints texts literally, without markup, and with control characters replaced, because clients wrote some."""

    def __init__(self, *, width: int | None) -> None:
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

    def print_line(self, text: str, *, style: str | None = None) -> None:
        """Print a text in one line: a line break that somebody wrote into it begins no line of ours."""
        self.print(text.replace("\n", "\ufffd"), style=style, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(replaced(text), **options)  # before a table asks how wide it is

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else replaced(segment.text)
            yield Segment(shown, segment.style, segment.control)


def make_console() -> PlainConsole:
    """A console as wide as the terminal, or as COLUMNS says."""
    given = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return PlainConsole(width=None if given else WITHOUT_TERMINAL)


def plain_table(*columns: str, **options: Any) -> Table:
    """A table whose cells are wrapped and never truncated, so that ids can be copied."""
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", **options
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_rows(console: Console, *columns: str, rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; where it is too wide for the terminal, each row in several lines, so that ids can be copied."""
    rows = list(rows)
    table = plain_table(*columns)
    for row in rows:
        table.add_row(*row)
    if console.measure(table, options=console.options.update(max_width=WIDEST)).maximum <= console.width:
        console.print(table)
        return
    for head, *others in rows:
        console.print(head, soft_wrap=True)
        for name, cell in zip(columns[1:], others, strict=True):
            if cell:
                console.print(Text.assemble(f"   {name} ", cell), soft_wrap=True)


def print_json(adapter: TypeAdapter[Any], value: Any) -> None:
    """Print a value as the API would return it."""
    _write_json(adapter.dump_json(value, by_alias=True, indent=2) + b"\n")


def print_plain_json(value: Any) -> None:
    """Print a value that is no answer of the API: times as there, and what JSON does not know as text."""
    _write_json(_plain_json(value) + b"\n")


def print_plain_json_list(values: Iterable[Any]) -> None:
    """Print a list, each value as `print_plain_json` does, before the next one is made."""
    start = b"["
    for value in values:
        _write_json(start + b"\n" + _plain_json(value))
        start = b","
    _write_json(b"\n]\n")


def _plain_json(value: Any) -> bytes:
    options = orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATETIME
    return orjson.dumps(value, option=options, default=_json_text)


def _write_json(written: bytes) -> None:
    # JSON escapes only some of the characters that control a terminal.
    sys.stdout.buffer.write(escaped(written.decode()).encode())


def camel_case(row: "DataclassInstance") -> dict[str, Any]:
    """A row with its fields named as the API would name them."""
    return {to_camel(name): value for name, value in asdict(row).items()}


def _json_text(value: Any) -> str:
    return timestamp_text(value) if isinstance(value, datetime) else str(value)
