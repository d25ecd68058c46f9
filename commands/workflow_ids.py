"""Ids of an order's workflows, as the Temporal contract has them: derived from the order, so that a repeated start
changes nothing.
"""


def payment_workflow_id(*, order_id: str, attempt: int) -> str:
    """`payment-{order}`; from the second attempt on with its number."""
    return numbered(f"payment-{order_id}", attempt)


def attempt_of(workflow_id: str, *, order_id: str) -> int | None:
    """The attempt whose payment workflow this is, None where it is another kind of workflow."""
    first = payment_workflow_id(order_id=order_id, attempt=1)
    if workflow_id == first:
        return 1
    number = workflow_id.removeprefix(f"{first}-")
    return int(number) if number != workflow_id and number.isdecimal() else None


def numbered(workflow_id: str, number: int) -> str:
    """The id of the n-th workflow of its kind: the first has none, later ones `-{n}`."""
    return workflow_id if number == 1 else f"{workflow_id}-{number}"
