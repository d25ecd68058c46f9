"""Declaring a route: once, above its handler.

    @route("POST", "/v1/orders", auth="api_key", body=NewOrder, answers=OrderAnswer, status=201, idempotent=True,
           summary="Create an order")
    async def create_order(call: Call[NewOrder]) -> OrderAnswer: ...

The declaration says everything about the route: what it accepts, how it authenticates, what it answers. Both the
server (`endpoint`) and the OpenAPI document are made from it.

HTML pages are declared in the same way, by `page`: they answer with HTML, also for errors.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic.alias_generators import to_camel
from typing_extensions import TypeVar

from payloops.commands.idempotency import Reserved
from payloops.commands.staff_sessions import StaffSession
from payloops.events.appender import Receipt
from payloops.events.metadata import Metadata
from payloops.http.problems import not_found
from payloops.http.services import Services

JSON = "application/json"
HTML = "text/html"
FORM = "application/x-www-form-urlencoded"
EVENT_STREAM = "text/event-stream"
NO_NAMES: Mapping[str, Sequence[str]] = MappingProxyType({})

Auth = Literal["api_key", "bearer", "staff", "staff_session"]

UUID_FORM = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


class RequestModel(BaseModel):
    """Base of bodies and queries: camelCase, no coercion, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_enum_values=True,
    )


class AnswerModel(BaseModel):
    """Base of answers: camelCase; what does not apply is null, never absent."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=False,
        serialize_by_alias=True,
        frozen=True,
    )


class Nothing(RequestModel):
    """A body or query without fields."""


class SessionForm(RequestModel):
    """Base of forms on pages of a session, with a token that only these pages contain."""

    form_token: Annotated[str, StringConstraints(max_length=200), Field(repr=False)]


T = TypeVar("T")
B = TypeVar("B", default=Nothing)
Q = TypeVar("Q", default=Nothing)


@dataclass(slots=True, kw_only=True)
class Call(Generic[B, Q]):
    """A request, once it is known who sent it and that it fits.

    Attributes:
        actor: who acts, as events name it.
        owner: the merchant whose key or token was shown; none where it was a member of the staff.
        session: of a page for staff.
        viewed_merchant, viewed_order: of a route for staff: what is shown, for the record of it.
        wait: seconds the client would like the answer to wait (`Prefer: wait`), 0 where it did not say.
        status: of the answer, where it is not the route's: one of its `also`.
        media: type of the answer's bytes, where it is not the first that the route declares.
        headers: of the answer, for the handler to add to.
        raw: the body as it arrived, of a route that is `signed_by` something.
        reserved: the hold on the request's idempotency key, None where it has none.
    """

    services: Services
    route: "Route"
    request: web.Request
    body: B
    query: Q
    actor: str
    correlation_id: str
    owner: UUID | None
    staff_id: UUID | None = None
    session: StaffSession | None = None
    viewed_merchant: UUID | None = None
    viewed_order: UUID | None = None
    raw: bytes = b""
    wait: int = 0
    status: int | None = None
    media: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reserved: Reserved | None = None
    _by: Metadata | None = None

    @property
    def by(self) -> Metadata:
        """Who acts and when, for the events that the request leads to; the same whenever it is asked for."""
        if self._by is None:
            self._by = Metadata(at=self.services.now(), actor=self.actor, correlation_id=self.correlation_id)
        return self._by

    @property
    def merchant_id(self) -> UUID:
        assert self.owner is not None, "the route asks for no key or token"
        return self.owner

    def id(self, name: str = "id") -> UUID:
        """An id of the path.

        Raises:
            Problem: 404 where it is no UUID, as where it is unknown.
        """
        text = self.request.match_info[name]
        if UUID_FORM.fullmatch(text) is None:
            raise not_found()
        return UUID(text)

    def receipt_of(self, answer: Callable[[T], Any]) -> Callable[[T], Receipt] | None:
        """What stores the answer with the events, None where the request has no idempotency key.

        Args:
            answer: makes the answer of what was decided.
        """
        return None if self.reserved is None else lambda decided: self.receipt(answer(decided))

    def receipt(self, answer: Any) -> Receipt:
        """The answer, to be stored with the events under the request's idempotency key."""
        assert self.reserved is not None
        return self.reserved.receipt(status=self.route.status, body=self.route.render(answer))


Handler = Callable[[Call[Any, Any]], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """A route as declared.

    Attributes:
        auth: what has to be shown; None: nothing.
        body: model of the body; None: the method has none.
        body_required: where not, an empty body is as good as `{}`.
        form: model of the body where it is a form that a page has sent, in place of JSON.
        query: model of the query; None: whatever it is, it is not looked at.
        answers: type of the answer; None: it has no body.
        also: statuses that the same answer may have beside `status`.
        media: types that the answer may have; where it is not JSON, handlers answer with bytes.
        errors: codes of the refusals that are its own, beside those that any route has.
        limits: names of the limits that each request counts against: 429 where one has no room.
        sheds: whether it is turned away when the process has too much to do; probes are not.
        signed_by: headers that sign the body, which is then taken in bytes, whatever type it is said to have;
            of several, the one of whoever sends it.
        named: what may stand in the path, by parameter, where it is one of a few names and no id.
        idempotent: whether `Idempotency-Key` is honoured.
        waits: whether `Prefer: wait=N` is honoured.
        streams: seconds for which an answer may go on piece by piece; handlers then answer with a prepared response.
        long: whether its query may take long. A process makes few of them at a time, and merchants take turns, so that
            connections to the database are left for everything else.
        replays: completes an answer stored under an idempotency key with what is not stored: secrets.
        page: whether people look at it: refusals are HTML, too, and forms are taken from this origin's pages only;
            where it asks for a session, from pages of that session (`SessionForm`).
    """

    method: str
    path: str
    summary: str
    handler: Handler
    auth: Auth | None
    body: type[BaseModel] | None
    body_required: bool
    form: type[BaseModel] | None
    query: type[BaseModel] | None
    answers: Any
    status: int
    also: tuple[int, ...]
    media: tuple[str, ...]
    errors: tuple[str, ...]
    limits: tuple[str, ...]
    sheds: bool
    signed_by: tuple[str, ...]
    named: Mapping[str, Sequence[str]]
    idempotent: bool
    waits: bool
    streams: int
    long: bool
    replays: Callable[["Call[Any, Any]", bytes], Awaitable[Any]] | None
    page: bool
    adapter: TypeAdapter[Any] | None

    @property
    def model(self) -> type[BaseModel] | None:
        """Of the body, whichever way it is written; None: there is none, or it is taken in bytes."""
        return self.body or self.form

    def render(self, answer: Any) -> bytes:
        """The answer's body as it is sent.

        Args:
            answer: of the declared type; its bytes; or a dict that orjson writes as the declared type would be.
        """
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, dict):
            return orjson.dumps(answer, option=orjson.OPT_UTC_Z)
        return b"" if self.adapter is None else self.adapter.dump_json(answer, by_alias=True)


def route(
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
    path: str,
    *,
    summary: str,
    auth: Auth | None,
    body: type[BaseModel] | None = None,
    body_required: bool = True,
    form: type[BaseModel] | None = None,
    query: type[BaseModel] | None = Nothing,
    answers: Any = None,
    status: int = 200,
    also: tuple[int, ...] = (),
    media: tuple[str, ...] = (JSON,),
    errors: tuple[str, ...] = (),
    limits: tuple[str, ...] = (),
    sheds: bool = True,
    signed_by: tuple[str, ...] = (),
    named: Mapping[str, Sequence[str]] = NO_NAMES,
    idempotent: bool = False,
    waits: bool = False,
    streams: int = 0,
    long: bool = False,
    replays: Callable[[Call[Any, Any], bytes], Awaitable[Any]] | None = None,
    page: bool = False,
) -> Callable[[Handler], Route]:
    """Declare a route; the handler below becomes its `Route`. See there for what the arguments mean."""

    def declare(handler: Handler) -> Route:
        return Route(
            method=method,
            path=path,
            summary=summary,
            handler=handler,
            auth=auth,
            body=body,
            body_required=body_required,
            form=form,
            query=query,
            answers=answers,
            status=status,
            also=also,
            media=media,
            errors=errors,
            limits=limits,
            sheds=sheds,
            signed_by=signed_by,
            named=named,
            idempotent=idempotent,
            waits=waits,
            streams=streams,
            long=long,
            replays=replays,
            page=page,
            adapter=None if answers is None else TypeAdapter(answers),
        )

    return declare


def page(
    method: Literal["GET", "POST"],
    path: str,
    *,
    summary: str,
    auth: Auth | None,
    form: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    status: int = 200,
    also: tuple[int, ...] = (),
    errors: tuple[str, ...] = (),
    limits: tuple[str, ...] = (),
    named: Mapping[str, Sequence[str]] = NO_NAMES,
) -> Callable[[Handler], Route]:
    """Declare a page, or what a page's form is sent to; handlers answer with HTML in bytes (`html.rendered`).

    After a form has done something, its handler returns `html.see_other(call, path)`, of a route with `status=303`:
    what is seen then can be loaded again without doing it twice.

    Args:
        query: where it has no model it is not looked at: whoever hands links on hangs something to them.
    """
    return route(
        method,
        path,
        summary=summary,
        auth=auth,
        form=form,
        query=query,
        answers=str,
        status=status,
        also=also,
        media=(HTML,),
        errors=(*errors, "forbidden") if method == "POST" else errors,
        limits=limits,
        named=named,
        page=True,
    )
