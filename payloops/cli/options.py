"""Options that many commands have."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA_DIR = Path(".payloops")
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="PAYLOOPS_DATA_DIR", help="Where the embedded servers keep their data."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """`10m`, `24h`, `90s` or `7d`.

    Raises:
        ValueError.
    """
    form = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if form is None:
        raise ValueError(f"{text!r} is no duration: write 90s, 10m, 24h or 7d")
    return timedelta(**{UNITS[form[2]]: int(form[1])})
