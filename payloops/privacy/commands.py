"""The commands of `payloops privacy`. Each imports what it runs, so that `--help` is quick."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from payloops.command_line import (
    DEFAULT_DATA_DIR,
    WRONG_SETTINGS,
    AsJson,
    DataDir,
    database_url_of,
    fail,
    run_async,
    store_settings_of,
)

if TYPE_CHECKING:
    from payloops.commands.personal_keys import Customer

privacy = typer.Typer(
    help="What is held of merchants' customers, and its erasure: for operators.", no_args_is_help=True
)
Merchant = Annotated[UUID | None, typer.Option("--merchant", help="Whose customer it is.")]
CustomerId = Annotated[
    str | None, typer.Option("--customer-id", help="The customerId that the merchant gave.")
]
Email = Annotated[str | None, typer.Option("--email", help="The customer's address, in whatever case.")]
OrderId = Annotated[
    UUID | None, typer.Option("--order", help="One order or checkout session, and no other of its customer.")
]


@privacy.command("show")
def privacy_show(
    *,
    merchant_id: Merchant = None,
    customer_id: CustomerId = None,
    email: Email = None,
    order_id: OrderId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show how much is held of a customer, or in an order. Changes nothing.

    Name --merchant with --customer-id or --email, or an --order. Needs DATABASE_URL alone, or a `payloops dev` on
    the data directory.
    """
    from payloops.commands.merchants import MerchantNotFound  # noqa: PLC0415
    from payloops.commands.refusals import OrderNotFound  # noqa: PLC0415
    from payloops.privacy.erasing import show  # noqa: PLC0415

    whom = _whom(merchant_id, customer_id, email, order_id)
    try:
        run_async(show(database_url=database_url_of(data_dir), whom=whom, as_json=as_json))
    except (OrderNotFound, MerchantNotFound) as error:
        fail(str(error))


@privacy.command("erase")
def privacy_erase(
    *,
    merchant_id: Merchant = None,
    customer_id: CustomerId = None,
    email: Email = None,
    order_id: OrderId = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Erase what is held of a customer, or in an order: email, description, metadata, and all copies of them.

    Name --merchant with --customer-id or --email, or an --order. Shows what there is and asks. It cannot be undone,
    but interrupted and run again. The orders stay, without what named the customer. Ends with 1 where something is
    left. Needs DATABASE_URL and AUDIT_KEY, or a `payloops dev` on the data directory.
    """
    from payloops.commands.merchants import MerchantNotFound  # noqa: PLC0415
    from payloops.commands.refusals import OrderNotFound  # noqa: PLC0415
    from payloops.events.errors import OutcomeUnknown, StoreUnavailable, VersionConflict  # noqa: PLC0415
    from payloops.privacy.erasing import NotConfirmed, erase  # noqa: PLC0415

    whom = _whom(merchant_id, customer_id, email, order_id)
    if as_json and not yes:
        fail("--json asks nothing: give --yes, too", status=WRONG_SETTINGS)
    try:
        done = run_async(erase(store_settings_of(data_dir), whom=whom, ask=not yes, as_json=as_json))
    except (OrderNotFound, MerchantNotFound) as error:
        fail(str(error))
    except NotConfirmed:
        fail("nothing was erased")
    except (OutcomeUnknown, StoreUnavailable, VersionConflict) as error:
        fail(f"interrupted: {error}: run it again")
    if not done:
        raise typer.Exit(1)


def _whom(
    merchant_id: UUID | None, customer_id: str | None, email: str | None, order_id: UUID | None
) -> "Customer | UUID":
    from payloops.commands.personal_keys import Customer  # noqa: PLC0415

    named = [name for name in (customer_id, email, order_id) if name is not None]
    if len(named) != 1 or (order_id is None) != (merchant_id is not None):
        fail("give --merchant with one of --customer-id and --email, or --order alone", status=WRONG_SETTINGS)
    if order_id is not None:
        return order_id
    assert merchant_id is not None
    return Customer(
        merchant_id=merchant_id,
        customer_id=customer_id,
        email=email.strip() if email is not None else None,
    )
