"""What the benchmarks have in common: a database of their own, percentiles, a table, and a file of results."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from payloops.embedded import EmbeddedServers
from payloops.migrate import migrate

RESULTS = Path(__file__).with_name("results")


@contextmanager
def database(data_dir: Path | None = None) -> Iterator[str]:
    """The URL of an embedded PostgreSQL with all tables, which is stopped afterwards, and removed unless named."""
    folder = data_dir or Path(tempfile.mkdtemp(prefix="payloops-bench-"))
    try:
        with EmbeddedServers(data_dir=folder, parts=["postgres"]) as servers:
            migrate(database_url=servers.database_url)
            yield servers.database_url
    finally:
        if data_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def percentile(seconds: Sequence[float], share: float) -> float:
    """Milliseconds that the given share of these seconds stays within."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1_000


def show(title: str, rows: Iterable[tuple[str, ...]], *, columns: tuple[str, ...]) -> None:
    """Print a table: as wide as the terminal, and 110 columns where there is none."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def keep(name: str, found: dict[str, Any]) -> None:
    """Write what was found to results/{name}.json, with the machine and how busy it was at the end."""
    machine = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
