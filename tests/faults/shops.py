"""Merchants' servers that call the API, as a careful client does: with keys, and again where an answer is missing."""

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from string import ascii_lowercase
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import aiohttp
import orjson
import psycopg
from calling import Answer
from signing import (
    Labels,
    razorpay_header,
    razorpay_payment,
    stripe_event,
    stripe_header,
    stripe_payment,
)
from uuid_utils.compat import uuid7

from faults.journal import NOTHING_DONE, UNKNOWN, Command, Try
from faults.world import CARD_NUMBER, World
from payloops.sandbox import ledger

AFTERWARDS = 1.0
"""Seconds that load goes on after trouble is over."""
UNAUTHORIZED = 401
PATIENCE = 60.0
"""Seconds that a client keeps asking: more than a dead owner holds an idempotency key."""


def new_id(kind: str) -> str:
    """Of letters alone: one with many digits may look like a card number, and would be replaced by the service."""
    return f"{kind}-{''.join(secrets.choice(ascii_lowercase) for _ in range(16))}"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A merchant with both processors, and everything that it keeps secret."""

    world: World
    id: UUID
    email: str
    password: str
    token: str
    key: str
    secrets: Mapping[str, str]

    @property
    def chance(self) -> random.Random:
        return self.world.chance

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        api: int | None = None,
    ) -> Answer:
        """One request to one of the API's processes, any where none is named.

        Raises:
            aiohttp.ClientError, TimeoutError: there was no answer.
        """
        apis = self.world.apis
        process = apis[self.chance.randrange(len(apis)) if api is None else api]
        data = raw if raw is not None else None if body is None else orjson.dumps(body)
        sent = {"Content-Type": "application/json", **(headers or {})}
        async with self.world.session.request(
            method, process.url + path, data=None if data is None else BytesIO(data), headers=sent
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.world.journal.note(answer)
        return answer

    async def command(
        self,
        kind: str,
        path: str,
        body: Any = None,
        *,
        order_id: str | None = None,
        keyed: bool = True,
        wait: int = 0,
        patience: float = PATIENCE,
        api: int | None = None,
        method: str = "POST",
    ) -> Answer | None:
        """Have something done once: ask until an answer says what became of it.

        Without a key a request is sent again only where its answer said that nothing was done.

        Returns:
            None where that is not known: no answer in all the time, or none to a request without a key.
        """
        command = self.new_command(kind, order_id=order_id, keyed=keyed)
        return await self.carry_out(command, path, body, wait=wait, patience=patience, api=api, method=method)

    def new_command(self, kind: str, *, order_id: str | None = None, keyed: bool = True) -> Command:
        """A command that is going to be asked for."""
        command = Command(kind=kind, order_id=order_id, key=new_id("key") if keyed else None)
        self.world.journal.commands.append(command)
        return command

    async def carry_out(
        self,
        command: Command,
        path: str,
        body: Any = None,
        *,
        wait: int = 0,
        patience: float = PATIENCE,
        api: int | None = None,
        method: str = "POST",
    ) -> Answer | None:
        """The same for a command that several may be asking for."""
        deadline = time.monotonic() + patience
        while True:
            tried = await self.try_once(command, path, body, wait=wait, api=api, method=method)
            if tried.definite:
                return tried.answer
            unknown = tried.answer is None or tried.answer.status == UNKNOWN
            if (unknown and command.key is None) or time.monotonic() > deadline:
                return None
            pause = 0.05 if tried.answer is None else float(tried.answer.headers.get("Retry-After", "1"))
            await asyncio.sleep(pause * self.chance.uniform(0.5, 1.5))

    async def try_once(
        self,
        command: Command,
        path: str,
        body: Any = None,
        *,
        wait: int = 0,
        api: int | None = None,
        method: str = "POST",
    ) -> Try:
        """Ask for a command once more."""
        tried = Try(correlation_id=new_id("try"))
        command.tries.append(tried)
        headers = (
            {"X-API-Key": self.key} if path.startswith("/v1") else {"Authorization": f"Bearer {self.token}"}
        )
        headers["X-Correlation-ID"] = tried.correlation_id
        if command.key is not None:
            headers["Idempotency-Key"] = command.key
        if wait:
            headers["Prefer"] = f"wait={wait}"
        try:
            tried.answer = await self.send(method, path, body, headers=headers, api=api)
        except (aiohttp.ClientError, TimeoutError) as error:
            tried.error = type(error).__name__
        if tried.answer is not None and tried.answer.status == UNAUTHORIZED:
            self.world.journal.wrong.append(f"{command.kind}: a key or token that is valid was refused")
        return tried

    async def read(self, path: str) -> Any | None:
        """What a GET answers; None where there was no answer, or none yet."""
        try:
            answer = await self.send("GET", path, headers={"X-API-Key": self.key})
        except (aiohttp.ClientError, TimeoutError):
            return None
        if answer.status in NOTHING_DONE:
            return None
        if answer.status != 200:  # HTTP
            self.world.journal.wrong.append(f"GET {path} answered {answer.status}")
            return None
        return answer.json

    async def becomes(
        self, order_id: str, reached: Callable[[dict[str, Any]], bool], *, seconds: float = 90
    ) -> dict[str, Any] | None:
        """The order, as soon as it has come so far; None where that takes too long."""
        return await self.shows(f"/v1/orders/{order_id}", reached, seconds=seconds)

    async def shows(
        self, path: str, reached: Callable[[dict[str, Any]], bool], *, seconds: float = PATIENCE
    ) -> dict[str, Any] | None:
        """What a GET answers, as soon as it has come so far; None where that takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            shown: dict[str, Any] | None = await self.read(path)
            if shown is not None and reached(shown):
                return shown
            await asyncio.sleep(0.1)
        return None

    async def log_in(self) -> Answer | None:
        """None where there was no answer."""
        body = {"email": self.email, "password": self.password}
        try:
            return await self.send("POST", "/api/auth/login", body)
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def tell_until_heard(self, processor: str, event: Any) -> None:
        """An event of a processor, again until it is received, as processors do."""
        deadline = time.monotonic() + PATIENCE
        while not await self.tell(processor, event):
            if time.monotonic() > deadline:
                self.world.journal.wrong.append(f"an event of {processor} was not received in {PATIENCE} s")
                return
            await asyncio.sleep(0.3 * self.chance.random())

    async def tell(self, processor: str, event: Any) -> bool:
        """An event of a processor, as it sends it; whether it was received."""
        raw = orjson.dumps(event)
        if processor == "stripe":
            signed = {"Stripe-Signature": stripe_header(raw, secret=self.secrets["stripe"])}
        else:
            signed = {"X-Razorpay-Signature": razorpay_header(raw, secret=self.secrets["razorpay"])}
        try:
            answer = await self.send("POST", f"/webhooks/{processor}", raw=raw, headers=signed)
        except (aiohttp.ClientError, TimeoutError):
            return False
        # A process whose clock is wrong takes a right signature for an old one, and is asked again.
        refusable = {400, *NOTHING_DONE} if self.world.skewed else NOTHING_DONE
        if answer.status not in {200, *refusable}:
            self.world.journal.wrong.append(f"an event of {processor} was answered {answer.status}")
        return answer.status == 200  # HTTP


async def open_shop(world: World, *, webhook_url: str | None = None) -> Shop:
    """Register a merchant, with processors, an API key and, where given, a webhook URL."""
    number = len([name for name in world.canaries if name.endswith("password of a merchant")])
    email, password = f"shop-{number}@example.com", secrets.token_urlsafe(18)
    given = {name: f"{name}{secrets.token_hex(16)}" for name in ("sk_", "whsec_", "rzp", "rzs")}
    api = world.apis[0].url
    session = world.session

    async def call(method: str, path: str, body: Any, token: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with session.request(method, api + path, json=body, headers=headers) as answer:
            assert answer.status < 300, await answer.text()  # HTTP
            return await answer.json()

    registered = await call(
        "POST",
        "/api/auth/register",
        {"name": "Shop", "email": email, "password": password},
    )
    token = registered["token"]
    stripe = {"secretKey": given["sk_"], "webhookSecret": given["whsec_"]}
    razorpay = {"keyId": "rzp_id", "keySecret": given["rzp"], "webhookSecret": given["rzs"]}
    for name, credentials in (("stripe", stripe), ("razorpay", razorpay)):
        await call("POST", "/api/processors", {"processor": name, "credentials": credentials}, token)
    if webhook_url is not None:
        await call("PUT", "/api/merchants/me", {"webhookUrl": webhook_url}, token)
        shown = await call("GET", "/api/merchants/me/webhook-secret", None, token)
        world.canaries[f"{number} webhook secret"] = shown["secret"]
    issued = await call("POST", "/api/api-keys", {"name": "shop"}, token)
    world.canaries |= {
        f"{number} password of a merchant": password,
        f"{number} dashboard token": token,
        f"{number} API key": issued["secret"],
        **{f"{number} {name}": value for name, value in given.items()},
    }
    return Shop(
        world=world,
        id=UUID(registered["merchant"]["id"]),
        email=email,
        password=password,
        token=token,
        key=issued["secret"],
        secrets={"stripe": given["whsec_"], "razorpay": given["rzs"]},
    )


async def create_order(shop: Shop, *, amount: int = 1_000) -> str:
    """A new order; its id."""
    created = await shop.command("create", "/v1/orders", {"amount": amount})
    assert created is not None
    assert created.status == 201, created.raw  # HTTP
    return str(created.json["id"])


TOKENS = {
    "tok_visa": 10,
    "tok_chargeDeclined": 2,
    "tok_authorize": 3,
    "tok_3ds": 2,
    "tok_lost": 2,
}
"""How often a customer pays with which."""
CHECKOUTS = 0.2
"""Of orders: how many come of a checkout session."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """One order from its creation to its end, whatever that is. Amounts in minor units.

    Attributes:
        details: of the order or session, beside its amount.
    """

    shop: Shop
    tokens: Mapping[str, int]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chance(self) -> random.Random:
        return self.shop.chance

    async def live(self) -> None:
        if self.chance.random() < CHECKOUTS:
            await self.check_out()
        else:
            await self.order()

    async def order(self) -> None:
        created = await self.shop.command(
            "create", "/v1/orders", self.wanted(), keyed=self.chance.random() < 0.9
        )
        if created is None or created.status != 201:  # HTTP
            return
        order_id = created.json["id"]
        order = await self.pay(order_id, self.token())
        if order is not None and order["status"] == "failed":
            order = await self.pay(order_id, "tok_visa")
        await self.finish(order_id, order)

    def wanted(self) -> dict[str, Any]:
        amount = self.chance.randrange(1_000, 100_000)
        return {
            "amount": amount,
            "currency": self.chance.choice(["USD", "USD", "INR", "JPY"]),
            **self.details,
        }

    def token(self) -> str:
        return self.chance.choices([*self.tokens], [*self.tokens.values()])[0]

    async def check_out(self) -> None:
        """A customer pays on the checkout page, in several tabs at once; after a decline once more."""
        urls = {"successUrl": "https://shop.example/thanks", "cancelUrl": "https://shop.example/cart"}
        created = await self.shop.command("check out", "/v1/checkout/sessions", self.wanted() | urls)
        if created is None or created.status != 201:  # HTTP
            return
        path = f"/v1/checkout/sessions/{created.json['id']}"
        order: dict[str, Any] | None = None
        for attempt, token in enumerate((self.token(), "tok_visa"), start=1):
            tabs = (self.send_form(created.json["id"], attempt, token) for _ in range(3))
            await asyncio.gather(*tabs)
            session = await self.shop.shows(path, lambda _: True)
            if session is None or session["orderId"] is None:
                return  # nobody got through, or the session had run out by a wrong clock
            order = await self.shop.becomes(
                session["orderId"], lambda order: order["status"] not in {"pending", "processing"}
            )
            if order is None or order["status"] != "failed":
                break
        if order is None:
            return
        if order["status"] in {"captured", "authorized"}:
            session = await self.shop.shows(path, lambda session: session["status"] == "completed")
            if session is None:
                self.shop.world.journal.wrong.append(
                    f"order {order['id']} is paid, and its session not completed"
                )
        await self.finish(order["id"], order)

    async def send_form(self, session_id: str, attempt: int, token: str) -> None:
        """Send the page's form until it is taken. Which attempt it is to be is part of it: it counts once."""
        form = urlencode({"attempt": attempt, "method": "card", "token": token}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                answer = await self.shop.send(
                    "POST", f"/checkout/{session_id}/pay", raw=form, headers=headers
                )
                if answer.status in {200, 410}:  # sent on to the page; the session may have ended
                    return
                if answer.status not in {UNKNOWN, *NOTHING_DONE}:
                    self.shop.world.journal.wrong.append(f"a form of checkout was answered {answer.status}")
                    return
            await asyncio.sleep(0.3 * self.chance.uniform(0.5, 1.5))

    async def pay(self, order_id: str, token: str) -> dict[str, Any] | None:
        """Pay, and wait until the payment has got somewhere; the order, None where that is not known."""
        if self.chance.random() < 0.05:
            await self.refuse_a_card(order_id)
        body: dict[str, Any] = {"paymentMethod": {"type": "card", "token": token}}
        if self.chance.random() < 0.15:
            body["capture"] = "manual"
        paid = await self.shop.command(
            "pay",
            f"/v1/orders/{order_id}/pay",
            body,
            order_id=order_id,
            keyed=self.chance.random() < 0.9,
            wait=self.chance.choice([0, 0, 0, 2]),
        )
        if paid is not None and paid.status == 200:  # HTTP
            order = await self.shop.read(f"/v1/orders/{order_id}")
            if order is not None and order["status"] == "pending":
                self.shop.world.journal.wrong.append(f"order {order_id} is pending after it was paid")
        return await self.shop.becomes(
            order_id, lambda order: order["status"] not in {"pending", "processing"}
        )

    async def refuse_a_card(self, order_id: str) -> None:
        """Card numbers are refused and leave no trace."""
        body = {"paymentMethod": {"type": "card", "token": CARD_NUMBER}}
        headers = {"X-API-Key": self.shop.key}
        try:
            answer = await self.shop.send("POST", f"/v1/orders/{order_id}/pay", body, headers=headers)
        except (aiohttp.ClientError, TimeoutError):
            return
        if answer.status not in {400, *NOTHING_DONE}:
            self.shop.world.journal.wrong.append(f"a card number was answered {answer.status}")

    async def finish(self, order_id: str, order: dict[str, Any] | None) -> None:
        known = order or {}
        match known:
            case {"status": "captured", "amountCaptured": captured}:
                await self.refund(order_id, captured)
            case {"status": "authorized", "amount": amount}:
                await self.capture_or_cancel(order_id, amount)
            case {"status": "requires_action"}:
                await self.act(order_id, known)
            case _:
                pass  # failed twice, or not known: the invariants are asked all the same

    async def refund(self, order_id: str, captured: int) -> None:
        if self.chance.random() < 0.3:
            return
        amounts: list[int | None] = [
            self.chance.choice([None, captured, self.chance.randrange(1, captured + 1), captured // 2])
            for _ in range(self.chance.randrange(1, 4))
        ]
        answers = await asyncio.gather(*(self.ask_refund(order_id, amount) for amount in amounts))
        made = [answer.json["refundId"] for answer in answers if answer is not None and answer.status == 201]
        listed = await self.shop.read(f"/v1/orders/{order_id}/refunds")
        if listed is not None and not set(made) <= {each["refundId"] for each in listed}:
            self.shop.world.journal.wrong.append(f"refunds of order {order_id} are not listed: {made}")

    async def ask_refund(self, order_id: str, amount: int | None) -> Answer | None:
        body = {} if amount is None else {"amount": max(amount, 1)}
        return await self.shop.command(
            "refund",
            f"/v1/orders/{order_id}/refund",
            body,
            order_id=order_id,
            keyed=self.chance.random() < 0.9,
        )

    async def capture_or_cancel(self, order_id: str, amount: int) -> None:
        if self.chance.random() < 0.4:
            await self.shop.command("cancel", f"/v1/orders/{order_id}/cancel", {}, order_id=order_id)
            return
        body = self.chance.choice([{}, {"amount": self.chance.randrange(1, amount + 1)}])
        captured = await self.shop.command(
            "capture", f"/v1/orders/{order_id}/capture", body, order_id=order_id
        )
        if captured is not None and captured.status == 200:  # HTTP
            order = await self.shop.becomes(order_id, lambda order: order["status"] == "captured")
            if order is not None:
                await self.refund(order_id, order["amountCaptured"])

    async def act(self, order_id: str, order: dict[str, Any]) -> None:
        """The customer does what the bank asks for, or the merchant cancels, or both at once."""
        doing = self.chance.choice(["acts", "cancels", "both"])
        cancelling = self.shop.command("cancel", f"/v1/orders/{order_id}/cancel", {}, order_id=order_id)
        acting = self.tell_end(order_id, order, succeeded=self.chance.random() < 0.7)
        match doing:
            case "acts":
                cancelling.close()
                await acting
            case "cancels":
                acting.close()
                await cancelling
            case _:
                await asyncio.gather(acting, cancelling)

    async def tell_end(self, order_id: str, order: dict[str, Any], *, succeeded: bool) -> None:
        """The customer acts at the processor, which tells of it until it is heard."""
        charge = await self.act_at_bank(order_id, order["attempt"], succeeded=succeeded)
        event = event_of(charge, self.shop.id)
        if event is not None:
            await self.shop.tell_until_heard(order["processor"], event)

    async def act_at_bank(self, order_id: str, attempt: int, *, succeeded: bool) -> ledger.Charge:
        """The processor's own database is the one that may be away just now."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await ledger.complete_action(
                    self.shop.world.store.pool,
                    order_id=order_id,
                    attempt=attempt,
                    success=succeeded,
                    processor_transaction_id=f"ch_{uuid7()}",
                )
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.3)


STRIPE_KINDS = {
    "captured": "succeeded",
    "authorized": "amount_capturable_updated",
    "declined": "payment_failed",
    "cancelled": "canceled",
}
RAZORPAY_KINDS = {"captured": "captured", "authorized": "authorized", "declined": "failed"}


def event_of(charge: ledger.Charge, merchant_id: UUID) -> dict[str, Any] | None:
    """What the processor sends of a charge as it stands; None where it says nothing of that."""
    labels = Labels(merchant_id, charge.order_id)
    money: dict[str, Any] = {"amount": charge.amount, "currency": charge.currency}
    if charge.processor == "stripe":
        return stripe_payment(
            STRIPE_KINDS[charge.status],
            labels,
            **money,
            id=charge.processor_order_id,
            latest_charge=charge.processor_transaction_id,
            amount_received=charge.amount_captured,
            amount_capturable=charge.amount if charge.status == "authorized" else 0,
        )
    if charge.status not in RAZORPAY_KINDS:
        return None
    return razorpay_payment(
        RAZORPAY_KINDS[charge.status],
        labels,
        **money,
        id=charge.processor_transaction_id,
        order_id=charge.processor_order_id,
    )


def refund_events(
    charge: ledger.Charge,
    made: Sequence[ledger.Operation],
    merchant_id: UUID,
    *,
    chance: random.Random,
    failed: bool = False,
) -> list[dict[str, Any]]:
    """What the processor sends of a charge's refunds as they stand. Not all workers label a refund with our id.

    Args:
        failed: whether these have come back.
    """
    labels = Labels(merchant_id, charge.order_id).json
    events = []
    for refund in made:
        assert refund.processor_transaction_id is not None
        ours = {} if refund.request_id.startswith("dashboard") else {"refund_id": refund.request_id}
        own = {**labels, **(ours if chance.random() < 0.5 else {})}
        shown = {"id": refund.processor_transaction_id, "amount": refund.amount, "currency": charge.currency}
        if charge.processor == "stripe":
            references = {
                "charge": charge.processor_transaction_id,
                "payment_intent": charge.processor_order_id,
            }
            outcome = (
                {"status": "failed", "failure_reason": "expired_or_canceled_card"}
                if failed
                else {"status": "succeeded"}
            )
            subject = {**shown, **references, **outcome, "object": "refund", "metadata": own}
            events.append(stripe_event("refund.updated", subject))
        else:
            kind = "refund.failed" if failed else "refund.processed"
            events.append(_razorpay_refund(kind, charge, shown, labels=labels, notes=own))
    if made and charge.processor == "stripe" and not failed:
        references = {"id": charge.processor_transaction_id, "payment_intent": charge.processor_order_id}
        total = {"amount_refunded": charge.amount_refunded, "currency": charge.currency}
        subject = {**references, **total, "object": "charge", "metadata": labels}
        events.append(stripe_event("charge.refunded", subject))
    return events


def _razorpay_refund(
    kind: str, charge: ledger.Charge, shown: dict[str, Any], *, labels: dict[str, str], notes: dict[str, str]
) -> dict[str, Any]:
    payment = {
        "id": charge.processor_transaction_id,
        "order_id": charge.processor_order_id,
        "amount": charge.amount,
        "amount_refunded": charge.amount_refunded,
        "currency": charge.currency,
        "notes": labels,
    }
    refund = {**shown, "entity": "refund", "payment_id": charge.processor_transaction_id, "notes": notes}
    return {
        "event": kind,
        "entity": "event",
        "payload": {"payment": {"entity": payment}, "refund": {"entity": refund}},
    }


@dataclass(frozen=True, kw_only=True)
class Clerk:
    """Changes a merchant's account, in the dashboard: no request has an idempotency key there."""

    shop: Shop

    async def work(self, over: asyncio.Event) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            chore = self.shop.chance.choice([self.rename, self.rank, self.rotate, self.keep_keys])
            await chore(number)
            await asyncio.sleep(0.2 * self.shop.chance.random())

    async def rename(self, number: int) -> None:
        body = {"name": f"Shop {number}"}
        await self.shop.command("rename", "/api/merchants/me", body, keyed=False, method="PUT")

    async def rank(self, number: int) -> None:
        path = f"/api/processors/{self.shop.chance.choice(['stripe', 'razorpay'])}"
        body = {"priority": 2 + number % 99}  # not what it has from the beginning: that would be no change
        await self.shop.command("rank a processor", path, body, keyed=False, method="PATCH")

    async def rotate(self, _: int) -> None:
        """The former secret signs beside the new one: who is told both has not lost what receivers know."""
        shown = await self._secret()
        path = "/api/merchants/me/webhook-secret/rotate"
        rotated = await self.shop.command("rotate the secret", path, {}, keyed=False)
        if shown is not None and rotated is not None and rotated.json["previousSecret"] != shown:
            self.shop.world.journal.wrong.append("a secret was rotated once, and the former is another")

    async def _secret(self) -> str | None:
        headers = {"Authorization": f"Bearer {self.shop.token}"}
        try:
            answer = await self.shop.send("GET", "/api/merchants/me/webhook-secret", headers=headers)
        except (aiohttp.ClientError, TimeoutError):
            return None
        return answer.json["secret"] if answer.status == 200 else None  # HTTP

    async def keep_keys(self, number: int) -> None:
        """A key is issued and revoked; from then on, within a second, it opens nothing."""
        issued = await self.shop.command("issue a key", "/api/api-keys", {"name": f"{number}"}, keyed=False)
        if issued is None:
            return
        made = issued.json
        self.shop.world.canaries[f"API key {made['apiKey']['id']}"] = made["secret"]
        path = f"/api/api-keys/{made['apiKey']['id']}"
        revoked = await self.shop.command("revoke a key", path, keyed=False, method="DELETE")
        if revoked is None:
            return
        await asyncio.sleep(1.0)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            answer = await self.shop.send("GET", "/v1/orders", headers={"X-API-Key": made["secret"]})
            if answer.status == 200:  # HTTP
                self.shop.world.journal.wrong.append("a key opens orders a second after it was revoked")


async def shopping(shop: Shop, *, orders: int, at_once: int, tokens: Mapping[str, int] = TOKENS) -> None:
    """So many orders are lived through, some at a time."""
    left = iter(range(orders))

    async def customer() -> None:
        for _ in left:
            await Life(shop=shop, tokens=tokens).live()

    await asyncio.gather(*(customer() for _ in range(at_once)))


async def under_load(
    shop: Shop,
    trouble: Awaitable[None],
    *,
    at_once: int = 6,
    tokens: Mapping[str, int] = TOKENS,
    clerk: bool = True,
) -> None:
    """Orders are lived through for as long as there is trouble, and a little longer; begun ones to their end."""
    over = asyncio.Event()

    async def customer() -> None:
        while not over.is_set():
            await Life(shop=shop, tokens=tokens).live()
            await asyncio.sleep(0.3 * shop.chance.random())

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(customer())
        if clerk:
            group.create_task(Clerk(shop=shop).work(over))
        await trouble
        await asyncio.sleep(AFTERWARDS)
        over.set()
