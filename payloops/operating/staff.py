"""`payloops staff`: adds, lists and removes support staff, and lists their views. Needs only the database."""

import sys
from uuid import UUID

import orjson
from pydantic import TypeAdapter, ValidationError

from payloops.commands.add_staff import add_staff
from payloops.commands.hashing import Hasher
from payloops.commands.remove_staff import remove_staff
from payloops.commands.staff import StaffNotFound, StaffRow, list_staff
from payloops.commands.staff_views import list_staff_views
from payloops.events.pools import command_pool
from payloops.events.timestamps import utc_now
from payloops.http.fields import Email, Password, PresentedEmail
from payloops.printing import camel_case, make_console, print_plain_json, print_rows
from payloops.projections.order_wording import exact_time

LONGEST_NAME = 255
BCRYPT_ROUNDS = 12
"""Cost of password hashes."""


class NotAcceptable(Exception):
    """An email address, name or password is not allowed; the message says which rule it breaks."""


def read_password() -> str:
    """Prompt for a new password, twice, on a terminal; otherwise read the first line of standard input.

    Raises:
        NotAcceptable: shorter than 8 characters or longer than 72 bytes.
    """
    if sys.stdin.isatty():
        import typer  # noqa: PLC0415  # quick `--help`

        password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    return _checked("password", TypeAdapter(Password), password)


def check_email(email: str) -> str:
    """The email address of a new member, normalized.

    Raises:
        NotAcceptable: it is none.
    """
    return _checked("email", TypeAdapter(Email), email)


def check_name(name: str) -> str:
    """The name of a new member, without spaces around it.

    Raises:
        NotAcceptable: nobody can be recognized by it.
    """
    name = name.strip()
    if not name.isprintable() or not 1 <= len(name) <= LONGEST_NAME:
        raise NotAcceptable(f"name: Must have 1 to {LONGEST_NAME} characters, and no control characters")
    return name


async def add(*, database_url: str, email: str, name: str, password: str) -> StaffRow:
    """Add a member of the staff.

    Raises:
        StaffEmailTaken: see there.
    """
    async with (
        command_pool(database_url, application_name="payloops staff") as pool,
        Hasher(rounds=BCRYPT_ROUNDS) as passwords,
    ):
        return await add_staff(
            pool, name=name, email=email, password=password, passwords=passwords, at=utc_now()
        )


async def remove(*, database_url: str, email: str) -> None:
    """Remove a member of the staff; their tokens become invalid at once.

    Raises:
        StaffNotFound: see there.
    """
    email = TypeAdapter(PresentedEmail).validate_python(email)
    async with command_pool(database_url, application_name="payloops staff") as pool:
        await remove_staff(pool, email=email, at=utc_now())


async def show(*, database_url: str, as_json: bool) -> None:
    """Print all members of the staff, including those removed."""
    async with command_pool(database_url, application_name="payloops staff") as pool:
        rows = await list_staff(pool)
    if as_json:
        print_plain_json([camel_case(row) for row in rows])
        return
    cells = [
        (
            row.email,
            row.name,
            str(row.id),
            exact_time(row.created_at),
            exact_time(row.removed_at) if row.removed_at else "",
        )
        for row in rows
    ]
    print_rows(make_console(), "Email", "Name", "Id", "Since (UTC)", "Removed (UTC)", rows=cells)


async def show_views(
    *,
    database_url: str,
    as_json: bool,
    limit: int,
    email: str | None,
    order_id: UUID | None,
    merchant_id: UUID | None,
) -> None:
    """Print the views of staff, newest first.

    Raises:
        StaffNotFound: nobody with this address is or was a member, so that a mistyped one does not look like one who
            viewed nothing.
    """
    email = TypeAdapter(PresentedEmail | None).validate_python(email)
    async with command_pool(database_url, application_name="payloops staff") as pool:
        views = await list_staff_views(
            pool, limit=limit, email=email, order_id=order_id, merchant_id=merchant_id
        )
        if email is not None and not views:
            known = {each.email.lower() for each in await list_staff(pool)}
            if email.lower() not in known:
                raise StaffNotFound
    if as_json:
        print_plain_json([camel_case(view) for view in views])
        return
    cells = [
        (
            exact_time(view.viewed_at),
            view.staff_email,
            view.route,
            str(view.order_id or ""),
            str(view.merchant_id or ""),
            orjson.dumps(view.query).decode() if view.query else "",
            view.correlation_id,
        )
        for view in views
    ]
    columns = ("When (UTC)", "Who", "Route", "Order", "Merchant", "Searched for", "Correlation id")
    print_rows(make_console(), *columns, rows=cells)


def _checked(what: str, adapter: TypeAdapter[str], value: str) -> str:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise NotAcceptable(f"{what}: {reason}") from None
