"""The commands of `payloops staff`."""

from typing import Annotated
from uuid import UUID

import typer

from payloops.cli.execution import database_url_of, fail, run_async
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

staff = typer.Typer(help="Manage support staff, who can read every merchant's orders.", no_args_is_help=True)


@staff.command("add")
def staff_add(
    email: Annotated[str, typer.Argument(help="Email address with which the member logs in.")],
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the member.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Add a member. Prompts for the password; without a terminal it is read from a line of standard input.

    Needs only DATABASE_URL, or a running `payloops dev`.
    """
    from payloops.commands.add_staff import StaffEmailTaken  # noqa: PLC0415
    from payloops.operating.staff import (  # noqa: PLC0415
        NotAcceptable,
        add,
        check_email,
        check_name,
        read_password,
    )

    database_url = database_url_of(data_dir)
    try:
        email, name = check_email(email), check_name(name)  # before the password is asked for
        row = run_async(add(database_url=database_url, email=email, name=name, password=read_password()))
    except (NotAcceptable, StaffEmailTaken) as error:
        fail(str(error))
    typer.echo(f"added {row.email} ({row.id})")


@staff.command("list")
def staff_list(*, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List present and former members."""
    from payloops.operating.staff import show  # noqa: PLC0415

    run_async(show(database_url=database_url_of(data_dir), as_json=as_json))


@staff.command("remove")
def staff_remove(
    email: Annotated[str, typer.Argument(help="Email address of the member.")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Remove a member and revoke their tokens at once. The record of what they viewed is kept."""
    from payloops.commands.staff import StaffNotFound  # noqa: PLC0415
    from payloops.operating.staff import remove  # noqa: PLC0415

    try:
        run_async(remove(database_url=database_url_of(data_dir), email=email))
    except StaffNotFound as error:
        fail(str(error))
    typer.echo(f"removed {email}")


@staff.command("views")
def staff_views(
    *,
    email: Annotated[
        str | None, typer.Option("--email", help="Only views by this present or former member.")
    ] = None,
    order_id: Annotated[UUID | None, typer.Option("--order", help="Only views of this order.")] = None,
    merchant_id: Annotated[
        UUID | None, typer.Option("--merchant", help="Only views of this merchant's orders.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Maximum number of views to show.")
    ] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show what staff viewed, newest first."""
    from payloops.commands.staff import StaffNotFound  # noqa: PLC0415
    from payloops.operating.staff import show_views  # noqa: PLC0415

    try:
        run_async(
            show_views(
                database_url=database_url_of(data_dir),
                as_json=as_json,
                limit=limit,
                email=email,
                order_id=order_id,
                merchant_id=merchant_id,
            )
        )
    except StaffNotFound as error:
        fail(str(error))
