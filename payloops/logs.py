"""Logs: event names with fields, one JSON object per line in production, readable in a terminal.

Whatever a line contains, no secret and no card number is written: fields with the names of secrets are masked, and so
is any text that looks like a card number, an API key or a token, also inside exception texts. Characters that would
control the terminal of whoever reads the log are escaped.
"""

import contextlib
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO, cast

import orjson
import structlog
from prometheus_client import Counter
from structlog.typing import EventDict, Processor

from payloops.commands.cards import holds_card_number
from payloops.control_characters import CONTROL, escaped
from payloops.http.request_context import REQUEST_EVENT, Level, LineWriter, RequestLines, merge_request
from payloops.settings import Environment, Settings

MASK = "[redacted]"
SECRET_NAMES = re.compile(
    r"secret|password|token$|authorization|api[_-]?key$|credential|cookie|signature|encryption|private|cvc|cvv|pan$|card",
    re.IGNORECASE,
)
HINTS = re.compile("k_|whsec_|eyJ|://|password=|DETAIL:")
"""Every match of `SECRET_TEXTS` contains one of these. Most texts contain none, which is found out ten times faster."""
SECRET_TEXTS = re.compile(
    r"\b(?:sk|rk|whsec)_[A-Za-z0-9_]{8,}"  # API keys, ours and Stripe's
    r"|\beyJ[A-Za-z0-9_-][A-Za-z0-9_.-]{15,}"  # JSON web tokens
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password in a URL
    r"|(?<=password=)\S+"
    # PostgreSQL's details quote rows: personal data, hashes of passwords
    r"|(?<=DETAIL:)[\s\S]*?(?=\n(?:HINT|QUERY|CONTEXT|STATEMENT|LOCATION):|\n\n(?:The above|During) |\Z)",
)

TEMPORAL_CORE = "temporalio.core"
"""Logger for lines of Temporal's SDK core, which is not Python; `daemons/temporal_client.py` forwards them."""
REPEATING_LOGGERS = ("psycopg.pool", TEMPORAL_CORE)
"""Loggers of libraries that try to connect several times a second, and warn each time."""
REPEATING_EVENTS = frozenset(
    {
        *("wakeups.reconnecting", "notifier.reconnecting", "projector.reconnecting", "sealer.reconnecting"),
        *("subscriber.interrupted", "subscriber.temporal_unavailable"),
    }
)
"""Events of this service that are logged as often."""
REPEATED_SECONDS = 10.0
"""How long a repeated message is suppressed."""
COMPARED_LENGTH = 60
"""Messages count as the same if they begin with the same characters, this many, digits aside."""
MAX_REMEMBERED = 100
DIGITS = re.compile("[0-9]+")

LOST = Counter("payloops_log_lines_lost", "Log lines that could not be written")


def configure_logs(settings: Settings, *, process: str) -> None:
    """Set up structlog, and route the standard library's loggers (aiohttp, temporalio, …) through it.

    Args:
        process: bound to every line: `api`, `projector`, `subscriber`, `worker`.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    production = settings.environment is Environment.PRODUCTION
    lines, repeated = _Lines(sys.stderr), Repeated()

    # Not a context variable: threads of libraries do not have the context.
    def add_process(_: Any, __: str, line: EventDict) -> EventDict:
        return {"process": process, **line}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        merge_request,
        add_process,
        structlog.processors.add_log_level,
    ]
    rendering: list[Processor] = [
        structlog.processors.format_exc_info,
        mask_secrets,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(serializer=_json)
        if production
        else cast("Processor", structlog.dev.ConsoleRenderer(colors=_are_colours_wanted(), pad_event_to=28)),
    ]
    structlog.configure(
        processors=[repeated.drop, *shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Writes a line with its line break at once, because several processes write here, and some may be killed.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", lines)),
        cache_logger_on_first_use=True,
    )
    RequestLines.writer = (
        _request_writer(process, lines.write) if production and level <= logging.INFO else None
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    handler.addFilter(shorten_slow_tasks)
    handler.addFilter(repeated.filter_record)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


def _are_colours_wanted() -> bool:
    """Whether to colour the output: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


class _Lines:
    """Standard error. A line that cannot be written (full disk, closed pipe) is dropped and counted, so that no request
    fails because of it.
    """

    def __init__(self, file: TextIO) -> None:
        self._write, self._flush = file.write, file.flush

    def write(self, text: str) -> None:
        try:
            self._write(text)
        except OSError:
            LOST.inc()

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._flush()


def shorten_slow_tasks(record: logging.LogRecord) -> bool:
    """A filter that shortens the report of a slow workflow task to one line, as a warning, because it is retried.

    The SDK reports every task that takes more than two seconds as a deadlock (TMPRL1101), which may also mean that the
    machine is overloaded.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and "[TMPRL1101]" in str(error):
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}:{last.lineno} in {last.name}"
        record.msg, record.args = f"A workflow task was slow, at {where}, and is done again: {error}", ()
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


class Repeated:
    """Suppresses messages that are repeated while a server is down, to one every few seconds."""

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, str], float] = {}

    def filter_record(self, record: logging.LogRecord) -> bool:
        """A logging filter, for messages of libraries."""
        if record.levelno > logging.WARNING or not record.name.startswith(REPEATING_LOGGERS):
            return True
        return self._is_news(record.name, record.msg)

    def drop(self, _: Any, __: str, line: EventDict) -> EventDict:
        """A structlog processor, for events of this service."""
        if line["event"] in REPEATING_EVENTS:
            reader = line.get("projection") or line.get("subscription")
            error = line.get("error") or line.get("errors") or line.get("reason")
            if not self._is_news(line["event"], f"{reader} {error}"):
                raise structlog.DropEvent
        return line

    def _is_news(self, name: str, message: object) -> bool:
        """Whether no similar message was logged within the last seconds."""
        key, now = (name, DIGITS.sub("", str(message)[:COMPARED_LENGTH])), time.monotonic()
        if now - self._logged_at.get(key, -math.inf) < REPEATED_SECONDS:
            return False
        if len(self._logged_at) >= MAX_REMEMBERED:
            self._logged_at.clear()
        self._logged_at[key] = now
        return True


def mask_secrets(_: Any, __: str, line: EventDict) -> EventDict:
    """A structlog processor that masks secrets and card numbers, and escapes control characters."""
    return cast("EventDict", _masked_fields(line))


def _masked_fields(fields: Any) -> dict[str, Any]:
    return {name: MASK if _is_secret(name) and value else _masked(value) for name, value in fields.items()}


@lru_cache(maxsize=1_024)
def _is_secret(name: str) -> bool:
    return SECRET_NAMES.search(name) is not None


def _masked(value: Any) -> Any:
    match value:
        case str():
            return _masked_text(value)
        case dict():
            return _masked_fields(value)
        case list() | tuple():
            return [_masked(item) for item in value]
        case _:
            return value


SHORT = 64
"""Maximum length of texts that are cached as harmless: names of events and routes, ids of merchants and keys."""


class _Suspect(Exception):
    """A text may contain a secret, or contains control characters."""


def _masked_text(text: str) -> str:
    try:
        (_check_short if len(text) <= SHORT else _check)(text)
    except _Suspect:
        return MASK if holds_card_number(text) else escaped(SECRET_TEXTS.sub(MASK, text))
    return text


def _check(text: str) -> None:
    if holds_card_number(text) or HINTS.search(text) or CONTROL.search(text):
        raise _Suspect


# Calls that raise are not cached, so no secret is kept in memory.
_check_short = lru_cache(maxsize=2_048)(_check)


# A UUID contains no secret. Other correlation ids, which clients may choose, are masked.
_PLAIN_ID = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def _request_writer(process: str, write: Callable[[str], None]) -> LineWriter:
    """Writes requests' lines as the structlog processors would, in a tenth of the time.

    Only two of its fields come from the client, and need masking: the correlation id and the address.
    """

    def write_request(level: Level, bound: Mapping[str, object], fields: dict[str, Any]) -> None:
        line = {"process": process, **bound, **fields, "event": REQUEST_EVENT, "level": level}
        line["timestamp"] = datetime.now(UTC)
        correlation_id, remote = line["correlation_id"], line["remote"]
        if _PLAIN_ID.fullmatch(correlation_id) is None:
            line["correlation_id"] = _masked_text(correlation_id)
        if remote is not None:
            line["remote"] = _masked_text(remote)
        write(orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE).decode())

    return write_request


def _json(line: Any, default: Callable[[Any], Any], **_: Any) -> str:
    return orjson.dumps(line, default=default).decode()
