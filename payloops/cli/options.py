"""Options that many commands have."""

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
