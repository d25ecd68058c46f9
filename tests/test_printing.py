"""What commands print: others' texts are to be read, not to be obeyed; JSON is as in the API."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from pydantic import TypeAdapter
from rich.text import Text

from payloops.cli.execution import warn
from payloops.commands.staff import StaffRow
from payloops.printing import (
    camel_case,
    make_console,
    plain_table,
    print_json,
    print_plain_json,
    print_plain_json_list,
    print_rows,
)

HOSTILE = "a[/b] [red]c :smile: \x1b[2Jd \x1b]0;title \x9b31m \u202egnp.exe \u2066x"


@pytest.mark.parametrize("way", ["alone", "as text", "in a cell"])
def test_no_text_is_markup_or_moves_a_terminal(
    way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = plain_table("Id")
    table.add_row(HOSTILE)
    shown = {"alone": HOSTILE, "as text": Text(HOSTILE), "in a cell": table}[way]
    make_console().print(shown)
    out = capsys.readouterr().out
    assert "a[/b] [red]c :smile: \ufffd[2Jd \ufffd]0;title \ufffd31m \ufffdgnp.exe \ufffdx" in out
    assert not set(out.replace("\x1b[1m", "").replace("\x1b[0m", "")) & set("\x1b\x9b\u202e\u2066")


def test_styles_of_ours_are_kept_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    make_console().print(Text("differs", style="red"))
    assert capsys.readouterr().out == "\x1b[31mdiffers\x1b[0m\n"


def test_what_a_terminal_would_obey_takes_nothing_from_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    table = plain_table("Id", "Amount")
    table.add_row("\x1b" * 9 + "end", "49.99 USD")
    table.add_row("cart-7", "1.00 USD")
    make_console().print(table)
    _, _, hostile, honest = capsys.readouterr().out.splitlines()
    assert hostile.split() == ["\ufffd" * 9 + "end", "49.99", "USD"]
    assert honest.split() == ["cart-7", "1.00", "USD"]


def test_where_a_table_does_not_fit_no_id_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = str(uuid4())
    rows: list[tuple[str | Text, ...]] = [
        ("2027-01-31", id, Text("failed", style="red"), ""),
        ("2027-02-01", id, "paid", "\x1b[2J" + "x" * 90),
    ]
    for columns, lines in ((160, 4), (80, 3 + 4)):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_rows(make_console(), "when", "order", "state", "detail", rows=rows)
        out = capsys.readouterr().out
        assert (out.count("\n"), out.count(id), out.count("x" * 90)) == (lines, 2, 1)
        assert "\x1b" not in out
    assert out.startswith(f"2027-01-31\n   order {id}\n   state failed\n2027-02-01\n")


def test_json_is_written_as_the_api_writes_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Names in camelCase, times in UTC with microseconds and `Z`, ids as text."""
    id, at = uuid4(), datetime(2027, 1, 31, 16, 40, 2, tzinfo=timezone(timedelta(hours=1)))
    row = StaffRow(id=id, name="Grace", email="grace@example.com", created_at=at, removed_at=None)
    print_plain_json([camel_case(row)])
    sys.stdout.flush()
    assert json.loads(capfdbinary.readouterr().out) == [
        {
            "id": str(id),
            "name": "Grace",
            "email": "grace@example.com",
            "createdAt": "2027-01-31T15:40:02.000000Z",
            "removedAt": None,
        }
    ]


def test_json_moves_no_terminal_and_says_the_same(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    answer = {"a": HOSTILE, "é\n\t\x7f": ["\u2028", "\\u009b"]}
    for write in (print_plain_json, lambda value: print_json(TypeAdapter(dict[str, Any]), value)):
        write(answer)
        sys.stdout.flush()
        written = capfdbinary.readouterr().out.decode()
        assert not set(written) & set("\x1b\x9b\x7f\t\u202e\u2066")
        assert json.loads(written) == answer


def test_a_list_is_written_while_it_is_made(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    written = b""

    def values() -> Iterator[dict[str, Any]]:
        nonlocal written
        for each in range(3):
            yield {"a": each, "b": HOSTILE}
            sys.stdout.flush()
            written += capfdbinary.readouterr().out
            assert f'"a": {each}'.encode() in written

    print_plain_json_list(values())
    sys.stdout.flush()
    written += capfdbinary.readouterr().out
    assert json.loads(written) == [{"a": each, "b": HOSTILE} for each in range(3)]
    assert b"\x1b" not in written


def test_a_message_moves_no_terminal_and_each_of_its_lines_is_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A processor may have written a part of it: "pi_1 is labelled as of order …"."""
    warn("no\x1b[2J\x9b31m\u202e\npaid\rcaptured\n\n")
    assert capsys.readouterr().err == (
        "payloops: no\ufffd[2J\ufffd31m\ufffd\npayloops: paid\npayloops: captured\n"
    )
