"""What clients asked for and what they were told: the other half of every check of the log."""

from collections import Counter
from dataclasses import dataclass, field

from calling import Answer

TOPICS = {
    "create": {"order.created"},
    "check out": {"checkout_session.created"},
    "pay": {"payment.requested"},
    "capture": {"payment.capture_requested"},
    "cancel": {"order.cancelled", "payment.cancel_requested", "payment.void_requested"},
    "refund": {"refund.requested"},
    "rename": {"merchant.profile_changed"},
    "issue a key": {"api_key.issued"},
    "revoke a key": {"api_key.revoked"},
    "rotate the secret": {"webhook_secret.rotated"},
    "rank a processor": {"processor.adjusted"},
}
"""By kind of command, the facts of which it makes one."""

UNKNOWN = 504
PAGES = {503: "unavailable", UNKNOWN: "outcome_unknown"}
"""What pages say in words."""
NOTHING_DONE = {401, 409, 413, 415, 429, 503}
"""Statuses that say: nothing was done (400, 403 and 404 say so too, for good)."""


@dataclass(slots=True, kw_only=True)
class Try:
    """A request as it was sent, and its answer; without one: `error`."""

    correlation_id: str
    answer: Answer | None = None
    error: str | None = None

    @property
    def acknowledged(self) -> bool:
        return self.answer is not None and self.answer.status < 300  # HTTP

    @property
    def refused(self) -> bool:
        """Whether the answer says that nothing was done."""
        return self.answer is not None and not self.acknowledged and self.answer.status != UNKNOWN

    @property
    def definite(self) -> bool:
        """Whether the answer says what became of the command; if not, it is sent again."""
        return self.answer is not None and self.answer.status not in {UNKNOWN, *NOTHING_DONE}

    @property
    def told(self) -> str:
        return self.error or "no answer" if self.answer is None else str(self.answer.status)


@dataclass(slots=True, kw_only=True)
class Command:
    """Something a client wants once, however often it asks: under one idempotency key, where it has one.

    Attributes:
        kind: key of `TOPICS`.
        order_id: of the order that it is about; None of the one that it makes.
    """

    kind: str
    order_id: str | None
    key: str | None
    tries: list[Try] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        return any(each.acknowledged for each in self.tries)

    @property
    def refused(self) -> bool:
        """Whether a client was told that it will not be done."""
        return any(each.definite and each.refused for each in self.tries)

    def told(self) -> str:
        """One line: what was answered to each try."""
        tries = ", ".join(each.told for each in self.tries)
        return f"{self.kind} of {self.order_id or 'a new order'} (key {self.key}): {tries}"


@dataclass(slots=True)
class Journal:
    """Of all clients of a run.

    Attributes:
        statuses: of all answers, reads included.
        wrong: what clients themselves saw and must not see.
    """

    commands: list[Command] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, answer: Answer) -> None:
        """Count an answer, and look at it as any client may."""
        self.statuses[str(answer.status)] += 1
        if answer.status < 500:  # HTTP
            return
        is_page = answer.headers["Content-Type"].startswith("text/html")
        code = PAGES.get(answer.status) if is_page else answer.code
        declared = {(503, "unavailable"), (504, "outcome_unknown")}
        if (answer.status, code) not in declared:
            self.wrong.append(f"answered {answer.status} {code}")
        elif answer.status == 503 and "Retry-After" not in answer.headers:  # HTTP
            self.wrong.append("answered 503 without Retry-After")
