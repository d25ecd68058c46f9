"""The sandbox's bank: the page at the `redirectUrl` of `tok_3ds`, where a customer approves or declines a payment.

As at a real processor, the decision is taken there, the merchant is notified of it by a signed webhook, and then the
browser is sent back to where it came from. Only a process that simulates the processors serves it.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from jinja2 import FileSystemLoader

from payloops.commands.merchants import find_merchant
from payloops.http import html
from payloops.http.answers import CORRELATION_HEADER, SECURITY_HEADERS
from payloops.http.connections import connection_factory
from payloops.http.problems import (
    FieldError,
    Problem,
    internal_error,
    not_found,
    problem_of,
    validation_error,
)
from payloops.http.static_files import static_file
from payloops.sandbox import ledger
from payloops.sandbox.ledger import Charge
from payloops.sandbox.merchant_notifier import MerchantNotifier

FORM_SECONDS = 10.0
LARGEST_FORM = 4_096
SHOP_UNKNOWN = "the shop"

log = structlog.get_logger(__name__)

_templates = html.templates.overlay(
    loader=FileSystemLoader([Path(__file__).with_name("templates"), html.FOLDER])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The bank's pages."""

    pool: ledger.Pool
    notifier: MerchantNotifier

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_frame], client_max_size=LARGEST_FORM)
        app.router.add_get("/authenticate/{charge}", self.show)
        app.router.add_post("/authenticate/{charge}", self.decide)
        app.router.add_get("/static/{file}", _static_file)
        return app

    async def show(self, request: web.Request) -> web.Response:
        """Ask the customer, or show the decision. After it, the browser goes on once the merchant was notified."""
        charge = await self._charge(request)
        body = _templates.get_template("bank.html").render(
            charge=charge,
            shop=await self._shop(charge),
            path=request.path,
            known=charge.decided_at is None or charge.told_at is not None,
        )
        return web.Response(
            body=body.encode(), content_type="text/html", charset="utf-8", headers=html.PAGE_HEADERS
        )

    async def decide(self, request: web.Request) -> web.Response:
        """Record the decision, notify the merchant, and show the decision. Only the first decision counts."""
        html.refuse_foreign_forms(request)
        try:
            async with asyncio.timeout(FORM_SECONDS):
                form = await request.post()
        except TimeoutError:
            raise Problem(408, "request_timeout", "The form did not arrive in time") from None
        if form.get("decision") not in ("approve", "decline"):
            raise validation_error(FieldError("decision", "Must be approve or decline"))
        charge = await self._charge(request)
        decided = await ledger.complete_action(
            self.pool,
            order_id=charge.order_id,
            attempt=charge.attempt,
            success=form["decision"] == "approve",
            processor_transaction_id=None,
            at_bank=True,
        )
        if decided.decided_at is not None and decided.told_at is None:
            await self.notifier.notify(decided)
        return web.Response(status=303, headers={hdrs.LOCATION: request.path})

    async def _charge(self, request: web.Request) -> Charge:
        charge = await ledger.find_action(self.pool, processor_order_id=request.match_info["charge"])
        if charge is None:
            raise not_found()
        return charge

    async def _shop(self, charge: Charge) -> str:
        if charge.merchant_id is None:
            return SHOP_UNKNOWN
        merchant = await find_merchant(self.pool, merchant_id=UUID(charge.merchant_id))
        return merchant.name if merchant is not None else SHOP_UNKNOWN


async def _static_file(request: web.Request) -> web.Response:
    body, media, headers = static_file(request.match_info["file"], version=request.query.get("v"))
    return web.Response(body=body, content_type=media, headers=headers)


@web.middleware
async def _frame(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add security headers, and show errors as pages."""
    correlation_id = str(uuid4())
    response: web.StreamResponse
    try:
        response = await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            log.exception("sandbox.bank_failed", correlation_id=correlation_id)
        response = html.refusal_page(problem or internal_error(), request, correlation_id=correlation_id)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[CORRELATION_HEADER] = correlation_id
    return response


async def serve_bank(bank: Bank, listener: socket.socket, *, stop: asyncio.Event) -> None:
    """Serve the bank's pages until `stop` is set."""
    runner = web.AppRunner(bank.app(), shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    assert runner.server is not None
    factory: Callable[[], Any] = connection_factory(runner.server)
    server = await asyncio.get_running_loop().create_server(factory, sock=listener)
    try:
        await stop.wait()
    finally:
        server.close()
        await runner.cleanup()
