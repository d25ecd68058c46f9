"""The operator's hand on projected tables: `payloops projections rebuild`, `verify` and `retry-parked`."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from payloops.events.connections import connect
from payloops.projections.building import Report, rebuild
from payloops.projections.parked import retry_parked
from payloops.projections.projection import find_projections
from payloops.projections.verifying import Difference, Verdict, verify

PLAIN_SECONDS = 2.0
"""Between two lines of progress where there is no terminal."""
SETTLING_SECONDS = 0.5
"""Before a rate means anything."""
INTERRUPTED = 130


class WorkerKilledError(Exception):
    """A process that folds ended before its time."""

    def __init__(self) -> None:
        super().__init__("a process that folds was killed; run it again, it goes on from there")


async def run_rebuild(
    *, database_url: str, names: list[str], workers: int, restart: bool, as_json: bool
) -> None:
    """Build tables anew beside the live ones, swap them, and say how long it took.

    Raises:
        UnknownProjection, BuildUnderWay, TablesBusy, WorkerKilledError.
    """
    projections = find_projections(names)
    began = time.monotonic()
    with _progress() as report, _worker_deaths():
        built = await rebuild(
            database_url=database_url,
            projections=projections,
            report=report,
            workers=workers,
            restart=restart,
        )
    seconds = time.monotonic() - began
    if as_json:
        _print_json(
            {
                "projections": [each.name for each in projections],
                "position": built.position,
                "resumed": built.resumed,
                "seconds": round(seconds, 2),
                "eventsPerSecond": None if built.resumed else round(built.position / seconds),
            }
        )
        return
    names = [each.name for each in projections]
    rate = "the rest of it" if built.resumed else f"{built.position / seconds:,.0f} a second"
    print(  # noqa: T201
        f"rebuilt {', '.join(names)} from {built.position:,} events in {seconds:.1f} s, {rate}"
    )


async def run_verify(*, database_url: str, names: list[str], workers: int, as_json: bool) -> bool:
    """Compare live tables with what the log says, and print what differs; whether all agree.

    Raises:
        UnknownProjection, BuildUnderWay, VersionsDiffer, WorkerKilledError.
    """
    with _progress() as report, _worker_deaths():
        verdicts = await verify(
            database_url=database_url, projections=find_projections(names), report=report, workers=workers
        )
    if as_json:
        _print_json([asdict(each) for each in verdicts])
    else:
        _print_verdicts(verdicts)
    return not any(each.differing for each in verdicts)


async def run_retry_parked(*, database_url: str, names: list[str], as_json: bool) -> bool:
    """Apply what was parked; whether nothing is left.

    Raises:
        UnknownProjection.
    """
    async with await connect(database_url, application_name="payloops retry-parked") as connection:
        await connection.execute("SET statement_timeout = '60s'")
        retried = [await retry_parked(connection, projection=each) for each in find_projections(names)]
    if as_json:
        _print_json([asdict(each) for each in retried])
    else:
        for each in retried:
            print(f"{each.projection}: {each.applied} applied, {each.parked} parked still")  # noqa: T201
    return not any(each.parked for each in retried)


def _print_verdicts(verdicts: list[Verdict]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table("Table", "Projection", "Position", "Rows", "Differing")
    for each in verdicts:
        differing = f"[red]{each.differing}[/]" if each.differing else "0"
        table.add_row(each.table, each.projection, str(each.position), str(each.rows), differing)
    console.print(table)
    for verdict in verdicts:
        for difference in verdict.differences:
            console.print("\n".join(_lines(difference)), markup=False)
        if verdict.differing > len(verdict.differences):
            console.print(f"{verdict.table}: … and {verdict.differing - len(verdict.differences)} more")


def _lines(difference: Difference) -> Iterator[str]:
    key = ", ".join(f"{name} {value}" for name, value in difference.key.items())
    if difference.live is None:
        yield f"{difference.table}, {key}: is missing"
    elif difference.rebuilt is None:
        yield f"{difference.table}, {key}: is of no event"
    else:
        yield f"{difference.table}, {key}:"
        for name, live in difference.live.items():
            yield f"  {name}: {_shown(live)}, but the log says {_shown(difference.rebuilt[name])}"


def _shown(value: str | None) -> str:
    return "nothing" if value is None else value


@contextmanager
def _worker_deaths() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise WorkerKilledError from error


@contextmanager
def _progress() -> Iterator[Report]:
    """Tells of the steps: a bar for each on a terminal, else a line now and then, on standard error."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Report]:
    with Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(separator=" of "),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        tasks: dict[str, TaskID] = {}
        began: dict[str, tuple[float, int]] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total or None, rate="")
                began[step] = (time.monotonic(), done)
            since, first = began[step]
            seconds = time.monotonic() - since
            rate = f"{(done - first) / seconds:,.0f}/s" if seconds > SETTLING_SECONDS and done > first else ""
            progress.update(tasks[step], completed=done, total=total or None, rate=rate)

        yield report


class _PlainLines:
    def __init__(self) -> None:
        self._step = ""
        self._began = (0.0, 0)
        self._said = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self._step:
            self._step, self._began, self._said = step, (now, done), 0.0
        if now - self._said < PLAIN_SECONDS and (done < total or total == 0):
            return
        self._said = now
        since, first = self._began
        rate = (done - first) / (now - since) if now > since else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        of = f" of {total:,}" if total else ""
        speed = f", {rate:,.0f} a second" if rate else ""
        sys.stderr.write(f"{step}: {done:,}{of}{speed}{left}\n")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))  # noqa: T201
