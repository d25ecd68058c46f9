"""`payloops audit search`: finds orders of all merchants by any reference that support staff may have."""

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from payloops.audit.reading import reading
from payloops.events.money import money_text
from payloops.http.staff import StaffOrderAnswer, staff_order_answer
from payloops.printing import WIDE, make_console, plain_table, print_json
from payloops.projections.order_wording import exact_time
from payloops.projections.orders import OrderRow
from payloops.projections.staff_orders import StaffSearch, search_all_orders


async def show_found(*, database_url: str, search: StaffSearch, limit: int, as_json: bool) -> bool:
    """Print matching orders, newest first. Returns whether there are any.

    Args:
        limit: maximum number to print.
    """
    async with reading(database_url) as store:
        rows, more = await search_all_orders(store, search, page=1, limit=limit)
    if as_json:
        print_json(TypeAdapter(list[StaffOrderAnswer]), [staff_order_answer(row) for row in rows])
        return bool(rows)
    console = make_console()
    if not rows:
        console.print("no order matches")
    elif console.width >= WIDE:
        console.print(_table(rows))
    else:
        for row in rows:
            console.print(_block(row))
    if more:
        console.print(
            f"and more, older than these {limit}: use --limit to show more, --to to continue from a time"
        )
    return bool(rows)


def _table(rows: list[OrderRow]) -> Table:
    table = plain_table("Created (UTC)", "Order", "Status", "Amount", "External id", "Merchant", "Customer")
    for row in rows:
        table.add_row(
            exact_time(row.created_at),
            str(row.id),
            row.status,
            money_text(row.amount, row.currency),
            row.external_id,
            str(row.merchant_id),
            row.customer_email or row.customer_id or "",
        )
    return table


def _block(row: OrderRow) -> Text:
    head = f"{exact_time(row.created_at)}  {money_text(row.amount, row.currency)}  {row.status}"
    customer = row.customer_email or row.customer_id
    lines = [f"order {row.id}, {row.external_id}", f"merchant {row.merchant_id}"]
    lines += [f"customer {customer}"] if customer else []
    return Text(head, style="bold").append("".join(f"\n   {line}" for line in lines), style="not bold")
