"""Pagination of the dashboard's lists, by page number."""

from typing import Annotated

from pydantic import Field

from payloops.http.fields import QueryNumber
from payloops.http.routing import AnswerModel, RequestModel


class PageQuery(RequestModel):
    page: Annotated[QueryNumber, Field(ge=1, le=999_999_999)] = 1
    limit: Annotated[QueryNumber, Field(ge=1, le=100)] = 20


class Pagination(AnswerModel):
    """`totalPages` is 0 if there are no items; a page after the last is empty."""

    page: int
    limit: int
    total: int
    total_pages: int


def pagination(query: PageQuery, *, total: int) -> Pagination:
    """The pagination of a response. `total`: number of items on all pages."""
    return Pagination(page=query.page, limit=query.limit, total=total, total_pages=-(-total // query.limit))
