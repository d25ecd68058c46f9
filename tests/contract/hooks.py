"""What schemathesis has to be told about the contract, because JSON Schema cannot say it."""

import html
import json
import os
import re
import zlib
from typing import Any

import schemathesis
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.generation.meta import TestPhase
from schemathesis.openapi.checks import RejectedPositiveData

IDS: dict[str, list[str]] = json.loads(os.environ["CONTRACT_IDS"])
"""By path of the collection: ids of what whoever calls there has, orders in every state; by that of a route:
ids for it alone."""
LOGINS: dict[str, dict[str, str]] = json.loads(os.environ["CONTRACT_LOGINS"])
"""By path: an email address and password that are right."""

BEYOND_SCHEMAS = {
    "Looks like a card number: send a token in its place": "the Luhn check",
    "Looks like a card number: only tokens are accepted": "the Luhn check",
    "Must be at most 16 KiB of JSON": "the size of an object",
    "Must be at most 72 bytes": "bytes, where schemas count characters",
    "Must be in the future": "the time of day",
    "Must be a time between the years 1 and 9999": "a time zone moves a time out of them",
    "Must be before to": "a rule about two parameters",
    "Must be at most 366 days before to": "a rule about two parameters",
    "Give starting_after or ending_before, not both": "a rule about two parameters",
    "The order has no such version": "how much has happened to the order",
    "The order did not exist then": "when the order was made",
    "Must not be before createdFrom": "a rule about two parameters",
    "Must not be before from": "a rule about two parameters",
    "Must be an amount with its currency: 49.99 USD": "which currencies there are, and their decimals",
    "Must be at a public address": "which addresses are public",
    "Nested too deep": "depth",
    "Must be a whole number": "12.0 is an integer to JSON Schema, and none to us",
    "Must be a whole number, in the currency's minor unit: 4999 for 49.99 USD": "as above",
}
"""Messages of the rules about shape that no schema can express, and what each is about."""


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Keep a failure, unless good data was refused for a reason that the schema could not know."""
    if isinstance(failure, AcceptedNegativeData):
        # A form that is sent by GET names every field, also those that were left empty.
        return not (is_page(response) and any(not str(value).strip() for value in case.query.values()))
    if not isinstance(failure, RejectedPositiveData):
        return True
    errors = errors_of(response)
    # None: the state of things: the order is not captured, the email is taken. The code is declared, or
    # response_schema_conformance has seen it.
    return errors is not None and not all(is_beyond_schemas(*error) for error in errors)


def errors_of(response: Response) -> list[tuple[str, str]] | None:
    """Field and message of each fault that was found with a request's shape, None where it was refused otherwise."""
    if is_page(response):
        found = re.findall(r"<li><strong>(.*?)</strong>: (.*?)</li>", response.content.decode())
        return [(html.unescape(field), html.unescape(message)) for field, message in found] or None
    problem: dict[str, Any] = json.loads(response.content)
    if problem["code"] != "validation_error":
        return None
    return [(error["field"], error["message"]) for error in problem["errors"]]


def is_page(response: Response) -> bool:
    return response.content.startswith(b"<!doctype html>")


def is_beyond_schemas(field: str, message: str) -> bool:
    # Which credentials fit depends on the processor, which may stand in the path. What is in metadata has no schema.
    return message in BEYOND_SCHEMAS or field.startswith(("credentials.", "metadata."))


def number_of(case: Case[Any]) -> int:
    """Always the same for the same case: hypothesis gives up on what is not."""
    given = (case.operation.label, case.path_parameters, case.query, case.headers, case.body)
    return zlib.crc32(repr(given).encode(errors="replace"))


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Give cases what makes them go further than the schema alone would let them."""
    number = number_of(case)
    if "Prefer" in case.headers:
        case.headers["Prefer"] = "wait=0"  # nobody plays the processor
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and 0 < len(key) < 200 and key.isascii() and key.isprintable():
        # The one key of all examples would make every other request a mismatch; the same one is a replay.
        case.headers["Idempotency-Key"] = f"{key}-{number}"
    if case.meta is not None and case.meta.generation.mode.is_positive:
        # What is good stays good, and more often than not also meets the rules that no schema can express.
        meet_rules_of_path_and_query(case, number)
        if isinstance(case.body, dict):
            meet_rules_of_body(case, case.body, number)
    return case


def meet_rules_of_path_and_query(case: Case[Any], number: int) -> None:
    path, query = case.operation.path, case.query
    ids = IDS.get(path) or IDS.get(path.partition("/{id}")[0], [])
    linked = case.meta is not None and case.meta.phase.name is TestPhase.STATEFUL
    if ids and not linked and number % 4 and "id" in case.path_parameters:
        case.path_parameters["id"] = ids[number % len(ids)]
    if "starting_after" in query and "ending_before" in query:
        del query["starting_after" if number % 2 else "ending_before"]
    for cursor in ("starting_after", "ending_before"):
        if cursor in query and number % 3:
            query[cursor] = ids[number % len(ids)]
    if path == "/api/dashboard/stats" and number % 4:
        # Of three months to choose from, whatever today is.
        query["from"], query["to"] = f"2026-0{number % 3 + 1}-01T00:00:00Z", "2026-04-01T00:00:00Z"


def meet_rules_of_body(case: Case[Any], body: dict[str, Any], number: int) -> None:
    path = case.operation.path
    if path == "/api/auth/register" and number % 4:
        body["email"] = f"merchant-{number}@contract.example"
    if path.endswith(("/capture", "/refund")) and isinstance(body.get("amount"), int) and number % 4:
        body["amount"] = body["amount"] % 100 + 1  # as much as there is, more often than not
    if path in LOGINS and number % 4:
        body.update(LOGINS[path])
    processor = body.get("processor", case.path_parameters.get("processor", ""))
    if "credentials" in body and number % 4:
        body["credentials"] = {
            "stripe": {"secretKey": "sk"},
            "razorpay": {"keyId": "id", "keySecret": "secret"},
        }[processor]
