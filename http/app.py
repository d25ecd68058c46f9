"""The HTTP application: all routes, and the middleware around them."""

import re
from functools import partial

from aiohttp import web

from payloops.http import (
    accounts,
    api_keys,
    checkout,
    checkout_sessions,
    dashboard_orders,
    documentation,
    events,
    health,
    merchant_webhooks,
    merchants,
    orders,
    payments,
    processor_webhooks,
    processors,
    refunds,
    staff,
    staff_processor_events,
    static_files,
    stats,
    support_operations,
    support_orders,
    support_session,
    support_volume,
)
from payloops.http.endpoint import endpoint, expect
from payloops.http.middleware import frame
from payloops.http.plain_requests import PLAIN_ROUTES, PlainRoutes
from payloops.http.request_metrics import expect_errors
from payloops.http.routing import Route
from payloops.http.services import Services

MAX_BODY = 1024 * 1024

ROUTES: tuple[Route, ...] = (
    orders.create_order,
    orders.read_orders,
    orders.read_order,
    payments.pay_order,
    payments.capture_payment,
    payments.cancel_order,
    payments.read_transactions,
    refunds.refund_payment,
    refunds.read_refunds,
    orders.read_order_events,
    events.read_events,
    checkout_sessions.create_checkout_session,
    checkout_sessions.read_checkout_session,
    accounts.register,
    accounts.log_in,
    accounts.change_password,
    merchants.read_profile,
    merchants.set_profile,
    merchants.read_webhook_endpoint,
    merchants.read_webhook_secret,
    merchants.rotate_webhook_secret,
    api_keys.read_api_keys,
    api_keys.issue_api_key,
    api_keys.revoke_api_key,
    processors.read_processors,
    processors.set_processor,
    processors.set_named_processor,
    processors.change_processor,
    processors.remove_processor,
    dashboard_orders.read_dashboard_orders,
    dashboard_orders.read_dashboard_order,
    dashboard_orders.read_dashboard_transactions,
    dashboard_orders.read_dashboard_order_events,
    stats.read_stats,
    merchant_webhooks.read_webhooks,
    merchant_webhooks.read_webhook,
    merchant_webhooks.send_webhook_again,
    staff.log_in_staff,
    staff.read_staff_orders,
    staff.read_staff_order,
    staff.read_staff_transactions,
    staff.read_staff_order_events,
    staff.read_staff_order_explanation,
    staff_processor_events.read_processor_events,
    staff_processor_events.read_processor_event,
    support_session.read_sign_in,
    support_session.sign_in,
    support_session.sign_out,
    support_orders.read_support_orders,
    support_orders.read_support_order,
    support_orders.read_support_processor_event,
    support_operations.read_support_operations,
    support_volume.read_support_volume,
    processor_webhooks.receive_stripe_webhook,
    processor_webhooks.receive_razorpay_webhook,
    processor_webhooks.receive_merchant_webhook,
    health.health,
    health.ready,
    health.read_metrics,
    checkout.read_checkout,
    checkout.pay_checkout,
    checkout.follow_checkout,
    documentation.read_openapi,
    documentation.read_docs,
    documentation.read_docs_file,
    static_files.read_static_file,
)


def create_app(services: Services) -> web.Application:
    """The application. The caller opens its services before it starts, and closes them after it ends."""
    expect_errors((route.method, route.path) for route in ROUTES)
    processor_webhooks.expect_effects()
    framed = frame(services)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[framed])
    app[documentation.ROUTES_KEY] = ROUTES
    handlers = [(route, endpoint(route, services)) for route in ROUTES]
    for route, handler in handlers:
        # The pattern accepts any text as an id, so that the route itself answers a malformed one.
        path = re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", route.path)
        app.router.add_route(route.method, path, handler, expect_handler=expect)
        if route.method == "GET":
            app.router.add_route("HEAD", path, handler, expect_handler=expect)
    app[PLAIN_ROUTES] = PlainRoutes((route, partial(framed, handler=handler)) for route, handler in handlers)
    return app
