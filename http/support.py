"""Shared by the pages of the support console. `/support`, by staff session.

The pages are read-only, and each view is recorded before the answer is sent (`endpoint`).
"""

from typing import Any
from urllib.parse import urlencode

from pydantic import model_validator

from payloops.http.html import rendered
from payloops.http.routing import Call, RequestModel


class SupportQuery(RequestModel):
    """Base of queries: a field that a form sends empty is as good as none."""

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value.strip()}


def support_page(call: Call[Any, Any], template: str, **values: Any) -> bytes:
    """A page of the console, for whoever is signed in.

    Args:
        template: its file in `templates/`.
        values: what the template names, beside `member` and `form_token`.
    """
    session = call.session
    assert session is not None, "pages of the console ask for a session"
    return rendered(template, member=session.member, form_token=session.form_token, link=link, **values)


def link(path: str, **query: Any) -> str:
    """A path with a query of the parameters that have a value."""
    given = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path
