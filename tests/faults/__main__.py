"""`make faults`: run cases over seeds, and print what was found."""

import asyncio
import json
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from faults.cases import CASES
from faults.running import Report, run_case
from faults.world import running_servers
from payloops.embedded import NotStarted

NAMES = max(map(len, CASES))
"""Width of the longest name of a case."""
OUTCOMES = {"ok": "[green]ok[/]     ", "wrong": "[bold red]WRONG[/]  ", "skipped": "[yellow]skipped[/]"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Run this case; may be given again. All if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The first seed; one by chance if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from the first on.")] = 1,
    list_cases: Annotated[bool, typer.Option("--list", help="Show the cases, and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each run.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and data also where all is well.")] = False,
) -> None:
    """Let things go wrong under load, and check that no money, no event and no secret went astray.

    Ends with 1 where an invariant does not hold; the logs and the data are then kept, and each finding is
    printed with how to repeat it. Runs on servers of its own: nothing else is touched.
    """
    # What we ourselves meet on the way is no finding.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    console = Console(highlight=False)
    if list_cases:
        table = Table.grid("", "", padding=(0, 2, 0, 0))
        for each in CASES.values():
            table.add_row(f"[bold]{each.name}[/]", escape(each.about))
        console.print(table)
        return
    unknown = [name for name in case or [] if name not in CASES]
    if unknown:
        raise typer.BadParameter(f"no case {unknown[0]}: there are {', '.join(CASES)}", param_hint="--case")
    first = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    runs = [(name, first + n) for name in case or CASES for n in range(seeds)]
    if not as_json:
        console.print(f"{len(runs)} runs, seeds {first} to {first + seeds - 1}")
    began = time.monotonic()
    with _folder(keep=keep) as folder:
        try:
            reports = _run_all(runs, folder=folder, console=console, as_json=as_json)
        except NotStarted as error:
            console.print(f"[red]{escape(str(error))}[/]")
            raise typer.Exit(1) from error
        wrong = [report for report in reports if report.outcome == "wrong"]
        if wrong or keep:
            shutil.copytree(folder / "servers/logs", folder / "server-logs", dirs_exist_ok=True)
    if not as_json:
        minutes = (time.monotonic() - began) / 60
        console.print(f"{len(reports)} runs, {len(wrong)} wrong, {minutes:.1f} minutes")
        if wrong:
            console.print(f"logs: {folder}")
    if wrong:
        raise typer.Exit(1)


def _run_all(runs: list[tuple[str, int]], *, folder: Path, console: Console, as_json: bool) -> list[Report]:
    reports = []
    with running_servers(folder) as servers:
        for name, seed in runs:
            with console.status(f"{name} seed {seed} …"):
                report = asyncio.run(run_case(servers, CASES[name], seed=seed, folder=folder))
            reports.append(report)
            if as_json:
                typer.echo(json.dumps(asdict(report)))
            else:
                _show(console, report)
    return reports


def _show(console: Console, report: Report) -> None:
    console.print(
        f"{OUTCOMES[report.outcome]} [bold]{report.case:<{NAMES}}[/] seed {report.seed:<7} {report.seconds:6.1f} s  "
        + escape(report.summary),
        soft_wrap=True,
    )
    for line in report.wrong:
        console.print(f"        {escape(line)}", style="red", soft_wrap=True)
    if report.wrong:
        console.print(f"        again: {escape(report.again)}", style="dim")


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """Where logs and data go; removed at the end where there is nothing to look at."""
    folder = Path(tempfile.mkdtemp(prefix="payloops-faults-"))
    try:
        yield folder
    finally:
        kept = keep or any(folder.glob("wrong-*"))
        shutil.rmtree(folder / "servers", ignore_errors=True)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    app()
