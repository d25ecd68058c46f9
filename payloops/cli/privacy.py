"""The commands of `payloops privacy`."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from payloops.cli.execution import WRONG_SETTINGS, database_url_of, fail, run_async, settings_of
from payloops.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

if TYPE_CHECKING:
    from payloops.commands.personal_keys import Customer

privacy = typer.Typer(help="Show and erase personal data of merchants' customers.", no_args_is_help=True)
Merchant = Annotated[UUID | None, typer.Option("--merchant", help="Id of the customer's merchant.")]
CustomerId = Annotated[
    str | None, typer.Option("--customer-id", help="The customerId that the merchant gave the customer.")
]
Email = Annotated[
    str | None, typer.Option("--email", help="The customer's email address; case does not matter.")
]
OrderId = Annotated[
    UUID | None,
    typer.Option("--order", help="Id of a single order, or of the checkout session that placed it."),
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
    """Show how much personal data of a customer, or in an order, is stored. Changes nothing.

    Give --merchant with --customer-id or --email, or --order alone. Needs only DATABASE_URL, or a running
    `payloops dev`.
    """
    from payloops.commands.merchants import MerchantNotFound  # noqa: PLC0415
    from payloops.commands.refusals import OrderNotFound  # noqa: PLC0415
    from payloops.operating.privacy import show  # noqa: PLC0415

    subject = _subject(merchant_id, customer_id, email, order_id)
    try:
        run_async(show(database_url=database_url_of(data_dir), subject=subject, as_json=as_json))
    except (OrderNotFound, MerchantNotFound) as error:
        fail(str(error))


@privacy.command("erase")
def privacy_erase(
    *,
    merchant_id: Merchant = None,
    customer_id: CustomerId = None,
    email: Email = None,
    order_id: OrderId = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Erase the personal data of a customer, or in an order: email, description, metadata, and all copies of them.

    Give --merchant with --customer-id or --email, or --order alone. Shows what is stored, and asks for confirmation.
    This cannot be undone; if interrupted, run it again. The orders themselves are kept. Exits with status 1 if
    something is left. Needs DATABASE_URL and AUDIT_KEY, or a running `payloops dev`.
    """
    from payloops.commands.merchants import MerchantNotFound  # noqa: PLC0415
    from payloops.commands.refusals import OrderNotFound  # noqa: PLC0415
    from payloops.events.errors import OutcomeUnknown, StoreUnavailable, VersionConflict  # noqa: PLC0415
    from payloops.operating.confirming import NotConfirmed  # noqa: PLC0415
    from payloops.operating.privacy import erase  # noqa: PLC0415
    from payloops.settings import StoreSettings  # noqa: PLC0415

    subject = _subject(merchant_id, customer_id, email, order_id)
    if as_json and not yes:
        fail("--json cannot ask for confirmation: give --yes as well", status=WRONG_SETTINGS)
    try:
        done = run_async(
            erase(settings_of(StoreSettings, data_dir), subject=subject, ask=not yes, as_json=as_json),
            interrupted="a part may be erased, which cannot be undone; run it again to erase the rest",
        )
    except (OrderNotFound, MerchantNotFound) as error:
        fail(str(error))
    except NotConfirmed:
        fail("nothing was erased")
    except (OutcomeUnknown, StoreUnavailable, VersionConflict) as error:
        fail(f"interrupted: {error}; run it again")
    if not done:
        raise typer.Exit(1)


def _subject(
    merchant_id: UUID | None, customer_id: str | None, email: str | None, order_id: UUID | None
) -> "Customer | UUID":
    """The customer, or the order, that the options name."""
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
