"""Shared by the pages of the support console. `/support`, by staff session.

The pages are read-only, and each view is recorded before the answer is sent (`endpoint`).
"""

from typing import Any
from urllib.parse import urlencode

from pydantic import model_validator

from payloops.http.html import rendered
from payloops.http.routing import Call, RequestModel


class SupportQuery(RequestModel):
    """Base of queries: a field that a form sends empty counts as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value.strip()}


def support_page(call: Call[Any, Any], template: str, **values: Any) -> bytes:
    """Render a page of the console, for the member of the staff who is signed in.

    Args:
        template: its file in `templates/`.
        values: the template's variables, besides `member`, `form_token` and `link`.
    """
    session = call.session
    assert session is not None, "pages of the console require a session"
    return rendered(template, member=session.member, form_token=session.form_token, link=link, **values)


def link(path: str, **query: Any) -> str:
    """A path with a query, without the parameters that are None."""
    given = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path
