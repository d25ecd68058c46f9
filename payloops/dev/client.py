"""A small HTTP client for this service's API, for `payloops demo` and `payloops dev`."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from payloops.http.answers import CORRELATION_HEADER

JSON = dict[str, Any]
TIMEOUT = aiohttp.ClientTimeout(total=45, connect=5)


class ServiceAbsent(Exception):
    """The service cannot be reached."""

    def __init__(self, *, url: str, why: str) -> None:
        super().__init__(f"no PayLoops service answers at {url} ({why})")
        self.url = url


class RequestRefused(Exception):
    """The service answered with an error."""

    def __init__(self, *, method: str, path: str, status: int, body: Any) -> None:
        problem = body if isinstance(body, dict) else {}
        code, message = problem.get("code", "?"), problem.get("message", str(body)[:200])
        super().__init__(f"{method} {path} was answered {status} {code}: {message}")
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: Any
    milliseconds: float


class Client:
    """Sends requests to one service, with fixed headers such as an API key. Use as an async context manager."""

    def __init__(self, *, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = url.rstrip("/")
        self._session = aiohttp.ClientSession(headers=headers, timeout=TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str, *, headers: dict[str, str] | None = None) -> Answer:
        """Raises ServiceAbsent, RequestRefused."""
        return await self._request("GET", path, body=None, headers=headers)

    async def post(
        self, path: str, *, body: JSON | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Raises ServiceAbsent, RequestRefused."""
        return await self._request("POST", path, body=body, headers=headers)

    async def _request(
        self, method: str, path: str, *, body: JSON | None, headers: dict[str, str] | None
    ) -> Answer:
        began = time.perf_counter()
        try:
            async with self._session.request(method, self.url + path, json=body, headers=headers) as response:
                answered = await _body_of(response)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ServiceAbsent(url=self.url, why="that is no URL of http or https") from error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: a part of the URL
            raise ServiceAbsent(url=self.url, why=str(error) or type(error).__name__) from error
        if CORRELATION_HEADER not in response.headers:
            why = f"what answered {response.status} there is another program"
            raise ServiceAbsent(url=self.url, why=why)
        if response.status >= 400:  # noqa: PLR2004
            raise RequestRefused(method=method, path=path, status=response.status, body=answered)
        return Answer(
            status=response.status, body=answered, milliseconds=(time.perf_counter() - began) * 1000
        )


async def _body_of(response: aiohttp.ClientResponse) -> Any:
    if "json" in response.content_type:
        return await response.json(content_type=None)
    return await response.text()
