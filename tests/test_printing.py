"""What commands print of others' texts: it is to be read, not to be obeyed."""

import pytest
from rich.text import Text

from payloops.printing import make_console, plain_table

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
