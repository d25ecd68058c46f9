"""The commands of `payloops projections`."""

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from payloops.cli.execution import WRONG_SETTINGS, database_url_of, fail, run_async
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

if TYPE_CHECKING:
    from collections.abc import Iterator

projections = typer.Typer(
    help="Inspect, rebuild and verify the tables built from the log.", no_args_is_help=True
)
Names = Annotated[
    list[str] | None, typer.Argument(help="Names of projections; all if none is given.", show_default=False)
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=64, help="Number of worker processes; one per core if not given."),
]


@projections.command("status")
def projections_status(
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the position and lag of each projection and subscriber, and the events that it parked.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.operating.projections import show_projections_status  # noqa: PLC0415

    run_async(show_projections_status(database_url=database_url_of(data_dir), as_json=as_json))


@projections.command("list")
def projections_list(*, as_json: AsJson = False) -> None:
    """List the projections of this version of the code, their versions and tables. Needs no database."""
    from payloops.operating.projections import show_projections  # noqa: PLC0415

    show_projections(as_json=as_json)


@projections.command("rebuild")
def projections_rebuild(
    names: Names = None,
    *,
    workers: Workers = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over instead of resuming an interrupted rebuild.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Rebuild tables from the log beside the live ones, and swap them in at the end, while the service runs.

    An interrupted rebuild resumes when it is run again. Until the swap the live tables are unchanged. Replaying
    events has no side effects: no webhook is sent, no workflow started, no processor called.
    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.operating.projections import run_rebuild  # noqa: PLC0415

    with _projection_errors():
        run_async(
            run_rebuild(
                database_url=database_url_of(data_dir),
                names=names or [],
                workers=workers or os.cpu_count() or 1,
                restart=restart,
                as_json=as_json,
            ),
            interrupted="the live tables are as they were, or rebuilt already; run it again to resume",
        )


@projections.command("verify")
def projections_verify(
    names: Names = None,
    *,
    workers: Workers = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Compare the live tables with the log, row by row. Exits with status 1 if something differs.

    Builds a second copy of the tables to compare with, and does not change the live ones. Needs only DATABASE_URL,
    or a running `payloops dev`.
    """
    from payloops.operating.projections import run_verify  # noqa: PLC0415

    with _projection_errors():
        agrees = run_async(
            run_verify(
                database_url=database_url_of(data_dir),
                names=names or [],
                workers=workers or os.cpu_count() or 1,
                as_json=as_json,
            ),
            interrupted="run it again; it begins anew",
        )
    if not agrees:
        raise typer.Exit(1)


@projections.command("retry-parked")
def projections_retry_parked(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of projections and subscribers; all if none is given.", show_default=False
        ),
    ] = None,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Apply parked events again, and have the subscribers forward theirs again.

    A parked event is one that a projection could not apply, or a subscriber could not forward. Exits with status 1
    if some are still parked afterwards. Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.operating.projections import run_retry_parked  # noqa: PLC0415

    with _projection_errors():
        done = run_async(
            run_retry_parked(database_url=database_url_of(data_dir), names=names or [], as_json=as_json),
            interrupted="run it again to retry the rest",
        )
    if not done:
        raise typer.Exit(1)


@contextmanager
def _projection_errors() -> "Iterator[None]":
    from payloops.operating.projections import UnknownReader  # noqa: PLC0415
    from payloops.projections.building import BuildUnderWay, TablesBusy  # noqa: PLC0415
    from payloops.projections.projection import UnknownProjection  # noqa: PLC0415
    from payloops.projections.verifying import VersionsDiffer  # noqa: PLC0415

    try:
        yield
    except (UnknownProjection, UnknownReader) as error:
        fail(str(error), status=WRONG_SETTINGS)
    except (BuildUnderWay, TablesBusy, VersionsDiffer) as error:
        fail(str(error))
