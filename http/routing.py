"""Declaring a route: once, above its handler.

    @route("POST", "/v1/orders", auth="api_key", body=NewOrder, answers=OrderAnswer, status=201, idempotent=True,
           summary="Create an order")
    async def create_order(call: Call[NewOrder]) -> OrderAnswer: ...

The declaration says everything about the route: what it accepts, how it authenticates, what it returns. Both the
server (`endpoint`) and the OpenAPI document are made from it.

HTML pages are declared in the same way, by `page`: they answer with HTML, also for errors.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Generic, Literal, ParamSpec
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

if TYPE_CHECKING:  # commands of the operator print answers, and need nothing that answers requests
    from payloops.http.services import Services

JSON = "application/json"
HTML = "text/html"
FORM = "application/x-www-form-urlencoded"
EVENT_STREAM = "text/event-stream"

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
    """Base of response bodies: camelCase; a field without a value is null, never absent.

    `model_validate` makes one of any object that has attributes of the same names.
    """

    model_config = ConfigDict(
        from_attributes=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=False,
        serialize_by_alias=True,
        frozen=True,
        hide_input_in_errors=True,
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
    """An authenticated and validated request, for its handler.

    Attributes:
        actor: who acts, as in events (`Metadata.actor`).
        owner: the merchant whose API key or token was presented; None for staff and for public routes.
        staff_id: the member of the staff, on a route for staff.
        session: of the staff member, on a page of the support console.
        viewed_merchant, viewed_order: on a route for staff, set by the handler: what is shown, to be recorded.
        raw: the body as it arrived, on a route with `signed_by`.
        wait: seconds for which the response may wait for the outcome (`Prefer: wait`); 0 without the header.
        status: set by the handler, if it is not the route's `status` but one of its `also`.
        media: set by the handler, if the content type is not the first of the route's `media`.
        headers: of the response; the handler may add some.
        reserved: the reservation of the request's idempotency key; None if it has none.
    """

    services: "Services"
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
        """The metadata of events that the request causes; always the same object."""
        if self._by is None:
            self._by = Metadata(at=self.services.now(), actor=self.actor, correlation_id=self.correlation_id)
        return self._by

    @property
    def merchant_id(self) -> UUID:
        assert self.owner is not None, "the route requires no key or token"
        return self.owner

    def id(self, name: str = "id") -> UUID:
        """An id in the path.

        Raises:
            Problem: 404 if it is not a UUID, as if it were unknown.
        """
        text = self.request.match_info[name]
        if UUID_FORM.fullmatch(text) is None:
            raise not_found()
        return UUID(text)

    def receipt_of(self, answer: Callable[[T], Any]) -> Callable[[T], Receipt] | None:
        """A function for commands that makes the receipt to store with the events; None without an idempotency key.

        Args:
            answer: makes the response from the command's result.
        """
        return None if self.reserved is None else lambda decided: self.receipt(answer(decided))

    def receipt(self, answer: Any) -> Receipt:
        """The response, to be stored with the events under the request's idempotency key."""
        assert self.reserved is not None
        return self.reserved.receipt(status=self.route.status, body=self.route.render(answer))


Handler = Callable[[Call[Any, Any]], Awaitable[Any]]


@dataclass(frozen=True, eq=False)
class Route:
    """A route as declared.

    Attributes:
        auth: how the caller authenticates; None if the route is public.
        body: model of a JSON body; None if there is none.
        body_required: if False, an empty body counts as `{}`.
        form: model of a form that a page submits, instead of `body`.
        query: model of the query; None if the query is ignored.
        answers: type of the response body; None if there is none.
        status: of a successful response.
        also: further statuses that the same response may have.
        media: content types that the response may have; unless it is JSON, handlers return bytes.
        errors: codes of errors that are particular to this route.
        limits: names of the rate limits that apply.
        sheds: whether requests are refused under overload. Probes are not.
        signed_by: headers that may contain a signature of the body. The body is then read as bytes, whatever its
            content type.
        headers: further headers of the request that the handler reads.
        named: allowed values of path parameters that are not ids.
        idempotent: whether `Idempotency-Key` is honoured.
        waits: whether `Prefer: wait=N` is honoured.
        streams: seconds that a streamed response may last; handlers then return a prepared response.
        long: whether its query may take long. A process runs few of these at a time, and callers take turns, so that
            connections to the database are left for everything else.
        replays: adds to a response stored under an idempotency key what is never stored: secrets.
        page: whether it is a page for people: errors are HTML, too, and forms are accepted only from pages of this
            origin, and if `auth` requires a session, only from pages of that session (`SessionForm`).
        adapter: serializes `answers`.
    """

    handler: Handler
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    _: KW_ONLY
    summary: str
    auth: Auth | None
    body: type[BaseModel] | None = None
    body_required: bool = True
    form: type[BaseModel] | None = None
    query: type[BaseModel] | None = Nothing
    answers: Any = None
    status: int = 200
    also: tuple[int, ...] = ()
    media: tuple[str, ...] = (JSON,)
    errors: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    sheds: bool = True
    signed_by: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    named: Mapping[str, Sequence[str]] = field(default_factory=dict)
    idempotent: bool = False
    waits: bool = False
    streams: int = 0
    long: bool = False
    replays: Callable[["Call[Any, Any]", bytes], Awaitable[Any]] | None = None
    page: bool = False
    adapter: TypeAdapter[Any] | None = field(init=False)

    def __post_init__(self) -> None:
        adapter = None if self.answers is None else TypeAdapter(self.answers)
        object.__setattr__(self, "adapter", adapter)

    @property
    def model(self) -> type[BaseModel] | None:
        """Model of the body, whether JSON or a form; None if there is none, or it is read as bytes."""
        return self.body or self.form

    def render(self, answer: Any) -> bytes:
        """Serialize a response body.

        Args:
            answer: of the declared type; or bytes; or a dict that serializes as the declared type does.
        """
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, dict):
            return orjson.dumps(answer, option=orjson.OPT_UTC_Z)
        return b"" if self.adapter is None else self.adapter.dump_json(answer, by_alias=True)


P = ParamSpec("P")


def _decorator(declared: Callable[Concatenate[Handler, P], Route]) -> Callable[P, Callable[[Handler], Route]]:
    def route(*args: P.args, **options: P.kwargs) -> Callable[[Handler], Route]:
        return lambda handler: declared(handler, *args, **options)

    return route


route = _decorator(Route)
"""Declares a route: takes what `Route` takes, and makes one of the decorated handler."""


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
    long: bool = False,
    named: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Callable[[Handler], Route]:
    """Declare a page, or the target of a page's form. Handlers return HTML as bytes (`html.rendered`).

    The handler of a form returns `html.see_other(call, path)`, and its route has `status=303`, so that the page shown
    afterwards can be reloaded without submitting the form again.

    Args:
        query: if None, parameters are ignored: links that are passed on often have some added.
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
        long=long,
        named=named,
        page=True,
    )
