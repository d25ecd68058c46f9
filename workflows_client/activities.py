"""The activities that workflows call on `backend-operations`: each parses its one object and calls a command.

Activities run at least once, so they may run twice; the commands behind them change nothing the second time.
What can never succeed (a malformed object, an order that does not exist) fails without a retry and shows in
the workflow; everything else is tried again by Temporal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from temporalio import activity
from temporalio.exceptions import ApplicationError

from payloops.commands.cipher import Cipher
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.credentials import get_processor_credentials
from payloops.commands.refusals import ContradictsRecord, OrderNotFound, UnknownAttempt, UnknownRefund
from payloops.commands.update_order_status import update_order_status
from payloops.commands.update_refund_status import update_refund_status
from payloops.events.event_store import EventStore
from payloops.events.metadata import Metadata
from payloops.events.orders import Order
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.projections.orders import OrderRow, row_from_order
from payloops.workflows_client.payments import attempt_of

REFUSALS = (OrderNotFound, UnknownAttempt, UnknownRefund, ContradictsRecord)
LONGEST_MESSAGE = 1_000


def _storable(value: Any) -> Any:
    """Text as PostgreSQL stores it: a processor's odd message must not keep its truth from being recorded."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "").encode(errors="replace").decode()


Text = Annotated[str, BeforeValidator(_storable)]
Message = Annotated[Text, AfterValidator(lambda text: text[:LONGEST_MESSAGE])]


class Input(BaseModel):
    """What an activity is called with. Workers of others may send more than is read here."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True
    )


class ProcessorConfigInput(Input):
    merchant_id: UUID
    processor: Text


class OrderInput(Input):
    order_id: UUID


class OrderStatusInput(Input):
    order_id: UUID
    status: Literal["processing", "requires_action", "authorized", "captured", "failed", "cancelled"]
    processor_order_id: Text | None = None
    processor_transaction_id: Text | None = None
    redirect_url: Text | None = None
    client_secret: Text | None = None
    error_code: Text | None = None
    error_message: Message | None = None


class RefundStatusInput(Input):
    order_id: UUID
    refund_id: UUID
    status: Literal["success", "failed"]
    processor_transaction_id: Text | None = None
    error_code: Text | None = None
    error_message: Message | None = None


I = TypeVar("I", bound=Input)  # noqa: E741


class BackendActivities:
    """The activities, over the store. `now` is the clock."""

    def __init__(
        self,
        *,
        store: EventStore,
        cipher: Cipher,
        client_secrets: ClientSecrets,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._cipher = cipher
        self._client_secrets = client_secrets
        self._now = now

    def all(self) -> list[Callable[..., Any]]:
        return [
            self.get_processor_config,
            self.update_order_status,
            self.update_refund_status,
            self.get_order,
        ]

    @activity.defn(name="getProcessorConfig")
    async def get_processor_config(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """The merchant's credentials at a processor; encrypted on their way where TEMPORAL_CODEC_KEY is set."""
        asked = _parsed(ProcessorConfigInput, given)
        config = await get_processor_credentials(
            self._store.pool, merchant_id=asked.merchant_id, processor=asked.processor, cipher=self._cipher
        )
        if config is None:
            return None
        return {
            "merchantId": str(config.merchant_id),
            "processor": config.processor,
            "testMode": config.test_mode,
            "credentials": config.credentials,
        }

    @activity.defn(name="updateOrderStatus")
    async def update_order_status(self, given: dict[str, Any]) -> None:
        report = _parsed(OrderStatusInput, given)
        with _refusals_are_final():
            await update_order_status(
                self._store,
                **report.model_dump(),
                attempt=attempt_of(_workflow_id(), order_id=str(report.order_id)),
                client_secrets=self._client_secrets,
                by=self._by(),
            )

    @activity.defn(name="updateRefundStatus")
    async def update_refund_status(self, given: dict[str, Any]) -> None:
        report = _parsed(RefundStatusInput, given)
        with _refusals_are_final():
            await update_refund_status(
                self._store,
                order_id=report.order_id,
                refund_id=str(report.refund_id),
                succeeded=report.status == "success",
                processor_transaction_id=report.processor_transaction_id,
                error_code=report.error_code,
                error_message=report.error_message,
                by=self._by(),
            )

    @activity.defn(name="getOrder")
    async def get_order(self, given: dict[str, Any]) -> dict[str, Any] | None:
        order = await self._store.load(Order, _parsed(OrderInput, given).order_id)
        return None if order is None else order_json(row_from_order(order))

    def _by(self) -> Metadata:
        """The workflow acts. An activity does not see its memo: the command takes the order's correlation id."""
        return Metadata(at=self._now(), actor=f"workflow:{_workflow_id()}", correlation_id="")


def order_json(row: OrderRow) -> dict[str, Any]:
    """An order as the HTTP API gives it."""
    fields = asdict(row)
    code, message = fields.pop("last_error_code"), fields.pop("last_error_message")
    del fields["merchant_id"], fields["version"]
    return {to_camel(name): _json_value(value) for name, value in fields.items()} | {
        "lastError": None if code is None and message is None else {"code": code, "message": message}
    }


def _json_value(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return timestamp_text(value)
        case _:
            return value


def _workflow_id() -> str:
    return activity.info().workflow_id or ""


def _parsed(model: type[I], given: dict[str, Any]) -> I:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ApplicationError(str(error), type="InvalidInput", non_retryable=True) from None


@contextmanager
def _refusals_are_final() -> Iterator[None]:
    try:
        yield
    except REFUSALS as refusal:
        raise ApplicationError(str(refusal), type=type(refusal).__name__, non_retryable=True) from refusal
