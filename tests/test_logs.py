"""Whatever a log line is given, no secret and no card number leaves."""

import errno
import io
import json
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
import structlog
from masking import shows_card
from prometheus_client import REGISTRY
from psycopg_pool import AsyncConnectionPool
from pydantic import ValidationError
from temporalio.worker import WorkflowInstance
from temporalio.worker._workflow import _DeadlockError
from test_http_long_input import ending

from payloops.http import request_context
from payloops.http.request_context import REQUEST_EVENT, Level, RequestLines, begin_request, log_request
from payloops.http.routing import AnswerModel
from payloops.logs import configure_logs, mask_secrets
from payloops.settings import Environment, Settings

CARD = "4242 4242 4242 4242"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


class Answered(AnswerModel):
    secret: int


def test_an_answer_that_does_not_fit_its_model_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as failed:
        Answered.model_validate({"secret": "hunter2"})
    assert "hunter2" not in str(failed.value)


def masked(**fields: Any) -> dict[str, Any]:
    return dict(mask_secrets(None, "", fields))


@pytest.mark.parametrize(
    "name",
    [
        *("password", "newPassword", "secretKey", "clientSecret", "client_secret", "api_key", "X-API-Key"),
        *(
            "Authorization",
            "token",
            "webhookSecret",
            "credentials",
            "Stripe-Signature",
            "ENCRYPTION_KEY",
            "cvc",
        ),
    ],
)
def test_fields_of_secret_names_are_masked(name: str) -> None:
    assert masked(**{name: "whatever it is"}) == {name: "[redacted]"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"declined {CARD}", "[redacted]"),
        ("declined 4242424242424242", "[redacted]"),
        ("key sk_live_abcdefghijkl was used", "key [redacted] was used"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "[redacted]"),
        (f"Bearer {TOKEN}", "Bearer [redacted]"),
        ("postgresql://app:hunter2@db:5432/payloops", "postgresql://[redacted]@db:5432/payloops"),
        ("host=db password=hunter2 user=app", "host=db password=[redacted] user=app"),
        ("order 01a20936-852a-704c-b68e-7ea68a6b63fc of 4999", None),
        ("2026-11-23T16:21:37.705123Z", None),
    ],
)
def test_texts_are_masked_where_they_hold_a_secret(text: str, left: str | None) -> None:
    assert masked(error=text) == {"error": left or text}
    assert masked(deep={"er": [text]}) == {"deep": {"er": [left or text]}}


@pytest.mark.parametrize(
    "piece", ["-eyJ-", "eyJa.", "sk_", "://", "://a:", "password=", "DETAIL:", "\n\n", "4 "]
)
def test_a_long_text_is_soon_masked(piece: str) -> None:
    for start in ("", "sk_", "eyJ", "DETAIL:"):
        with ending():
            masked(text=start + piece * (1_000_000 // len(piece)))


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's logging as it was."""
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    # A logger keeps the configuration that it was first used with: this one is of the test alone.
    monkeypatch.setattr(request_context, "log", structlog.get_logger())
    yield
    logging.getLogger().handlers, logging.getLogger().level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    RequestLines.writer = None
    request_context._bound.set({})


@pytest.mark.usefixtures("restored")
def test_production_writes_json_lines_with_the_context_and_without_secrets_of_exceptions(
    settings: Settings,
) -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        production = settings.model_copy(update={"environment": Environment.PRODUCTION, "log_level": "info"})
        configure_logs(production, process="api")
        structlog.contextvars.bind_contextvars(correlation_id="c-1")
        try:
            int(f"card {CARD} for sk_test_abcdefghijkl")
        except ValueError:
            structlog.get_logger().exception("payment.refused", order_id="o-1")
        logging.getLogger("somebody").error("cannot reach %s", "redis://:hunter2@cache")
        structlog.get_logger().debug("not.shown")
    first, second = map(json.loads, written.getvalue().splitlines())
    assert (first["event"], first["level"], first["order_id"]) == ("payment.refused", "error", "o-1")
    assert (first["process"], first["correlation_id"]) == ("api", "c-1")
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "cannot reach redis://[redacted]@cache"
    assert not shows_card(written.getvalue())
    for secret in ("sk_test_abc", "hunter2"):
        assert secret not in written.getvalue()
    assert sys.stderr is not written


@pytest.mark.usefixtures("restored")
async def test_a_row_that_postgresql_quotes_is_not_logged(
    settings: Settings, pool: AsyncConnectionPool
) -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs(settings, process="api")
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE kept (email text UNIQUE, hash text CHECK (hash < 'x'))")
            for row in (("ada@example.com", "secret"), ("ada@example.com", "a"), ("b\n\nada@", "xsecret")):
                try:
                    await connection.execute("INSERT INTO kept VALUES (%s, %s)", row)
                except psycopg.Error:
                    try:
                        settings.model_dump().pop("at the failure")
                    except KeyError:
                        structlog.get_logger().exception("insert.failed")
    assert written.getvalue().count("DETAIL:[redacted]") == 2
    assert written.getvalue().count("KeyError: 'at the failure'") == 2
    assert written.getvalue().count("violates") == 2
    for quoted in ("ada@", "secret"):
        assert quoted not in written.getvalue()


@pytest.mark.parametrize("environment", list(Environment))
@pytest.mark.usefixtures("restored")
def test_what_a_client_wrote_controls_no_terminal(settings: Settings, environment: Environment) -> None:
    wrote = "a\x1b[2J\x9b31m\u202e\rb"
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs(settings.model_copy(update={"environment": environment}), process="api")
        structlog.get_logger().error("webhook.received", type=wrote, many=[wrote], exc_info=Exception(wrote))
        logging.getLogger("somebody").error("got %s", wrote)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", written.getvalue())
    assert written.getvalue().replace("\\\\", "\\").count(r"a\u001b[2J\u009b31m\u202e\u000db") >= 4


@pytest.mark.usefixtures("restored")
def test_a_workflow_task_that_was_slow_is_one_line_and_no_error(settings: Settings) -> None:
    """The SDK logs it as a deadlock, with a traceback."""
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs(settings.model_copy(update={"environment": Environment.PRODUCTION}), process="worker")
        for error in (
            _DeadlockError.from_deadlocked_workflow(cast("WorkflowInstance", Stuck()), 2),
            RuntimeError("something else"),
        ):
            try:
                raise error
            except type(error):
                logging.getLogger("temporalio.worker").exception("Failed handling activation")
    slow, other = map(json.loads, written.getvalue().splitlines())
    assert (slow["level"], "exception" in slow) == ("warning", False)
    assert re.search(r"slow, at .*test_logs\.py:\d+ in .*TMPRL1101", slow["event"])
    assert (other["level"], "something else" in other["exception"]) == ("error", True)


class Stuck:
    """What the SDK asks of a workflow's instance."""

    def get_thread_id(self) -> int:
        return threading.get_ident()


class Unbuffered(io.StringIO):
    """Like standard error under PYTHONUNBUFFERED: each write by itself. `writes`: what they were of."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.mark.usefixtures("restored")
def test_a_line_is_one_write_so_that_those_of_other_processes_stand_beside_it(settings: Settings) -> None:
    written = Unbuffered()
    with redirect_stderr(written):
        configure_logs(settings.model_copy(update={"environment": Environment.PRODUCTION}), process="api")
        structlog.get_logger().warning("one")
        logging.getLogger("somebody").warning("two")
    assert [json.loads(text)["event"] for text in written.writes] == ["one", "two"]
    assert all(text.endswith("\n") for text in written.writes)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "correlation_id",
    ["01a20936-852a-704c-b68e-7ea68a6b63fc", "mine", "sk_test_abcdefghijkl", f"x-{CARD.replace(' ', '.')}"],
)
@pytest.mark.parametrize("remote", ["127.0.0.1", "2001:db8::1", None])
def test_the_line_of_a_request_is_the_one_that_structlog_would_write(
    settings: Settings, correlation_id: str, remote: str | None
) -> None:
    """Whether or not anybody is known, and also where a client chose an id that must not be written."""
    written = io.StringIO()
    with redirect_stderr(written):
        production = settings.model_copy(update={"environment": Environment.PRODUCTION, "log_level": "info"})
        configure_logs(production, process="api")
        for status, known in ((200, True), (404, False), (503, True)):
            context = begin_request(correlation_id)
            if known:
                context.bound |= {"actor": f"api_key:{uuid4()}", "merchant_id": uuid4()}
            level: Level = "error" if status >= 500 else "info"
            fields = {"method": "GET", "route": "/v1/orders/{id}", "status": status, "milliseconds": 1.5}
            log_request(context, level, {**fields, "remote": remote})
            getattr(structlog.get_logger(), level)(REQUEST_EVENT, **fields, remote=remote)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    times = [line.pop("timestamp") for line in lines]
    assert lines[::2] == lines[1::2]
    assert [line["status"] for line in lines] == [200, 200, 404, 404, 503, 503]
    assert [re.sub("[0-9]+", "0", at) for at in times] == ["0-0-0T0:0:0.0Z"] * 6


@pytest.mark.usefixtures("restored")
def test_the_line_of_a_request_is_one_write_and_none_where_the_level_is_higher(settings: Settings) -> None:
    written = Unbuffered()
    with redirect_stderr(written):
        for level in ("info", "warning"):
            production = settings.model_copy(
                update={"environment": Environment.PRODUCTION, "log_level": level}
            )
            configure_logs(production, process="api")
            fields = {"method": "GET", "route": None, "status": 404, "milliseconds": 1.5, "remote": None}
            log_request(begin_request("mine"), "info", fields)
    [line] = written.writes
    assert line.endswith("\n")
    assert json.loads(line)["status"] == 404


@pytest.mark.usefixtures("restored")
def test_what_a_library_repeats_while_a_server_is_away_is_said_once_in_a_while(settings: Settings) -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs(settings, process="worker")
        for attempt in range(50):
            logging.getLogger("psycopg.pool").warning(
                "error connecting in %r: %s", "pool", f"refused {attempt}"
            )
            logging.getLogger("temporalio.core-sdk").warning(f"call retried {attempt} times")  # noqa: G004  # as the SDK does
            logging.getLogger("temporalio.activity").warning("activity failed")
            log = structlog.get_logger()
            log.warning("wakeups.reconnecting", error="OperationalError")
            for projection in ("orders", "daily_volume"):
                log.warning("projector.reconnecting", projection=projection, error=f"port {attempt}")
            log.warning("subscriber.temporal_unavailable", position=attempt, reason="unreachable")
            log.warning("order.moved_on")
        logging.getLogger("psycopg.pool").warning("rolling back returned connection")
        logging.getLogger("psycopg.pool").error("error connecting in the end")
    said = Counter(line.split("]")[1].split()[0] for line in written.getvalue().splitlines())
    assert said == {
        "error": 2,
        "call": 1,
        "activity": 50,
        "rolling": 1,
        "wakeups.reconnecting": 1,
        "projector.reconnecting": 2,
        "subscriber.temporal_unavailable": 1,
        "order.moved_on": 50,
    }


@pytest.mark.usefixtures("restored")
def test_lines_of_threads_that_are_not_ours_say_of_which_process_they_are(settings: Settings) -> None:
    """Temporal's SDK logs from one of its own."""
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs(settings.model_copy(update={"environment": Environment.PRODUCTION}), process="worker")
        thread = threading.Thread(target=logging.getLogger("temporalio.core").warning, args=["retried"])
        thread.start()
        thread.join()
    assert json.loads(written.getvalue())["process"] == "worker"


LOST = "payloops_log_lines_lost_total"


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("restored")
def test_a_disk_that_is_full_costs_log_lines_and_nothing_else(settings: Settings) -> None:
    lost = REGISTRY.get_sample_value(LOST) or 0
    production = settings.model_copy(update={"environment": Environment.PRODUCTION, "log_level": "info"})
    with redirect_stderr(Full()):
        configure_logs(production, process="api")
        structlog.get_logger().warning("payment.captured")
        logging.getLogger("somebody").error("one")
        fields = {"method": "GET", "route": None, "status": 404, "milliseconds": 1.5, "remote": None}
        log_request(begin_request("mine"), "info", fields)
    assert REGISTRY.get_sample_value(LOST) == lost + 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_of_those_who_want_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    written = Terminal()
    with redirect_stderr(written):
        configure_logs(settings.model_copy(update={"environment": Environment.DEVELOPMENT}), process="api")
        structlog.get_logger().warning("payment.captured")
    assert ("\x1b[" in written.getvalue()) is coloured
