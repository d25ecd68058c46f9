"""Accounts: registering, logging in, and the tokens that this gives."""

import asyncio
import base64
import json
import threading
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from uuid import uuid4

import bcrypt
import jwt
import pytest
from calling import PASSWORD, Answer, Api, running_api
from multidict import CIMultiDict
from projecting import eventually
from psycopg_pool import AsyncConnectionPool

from payloops.commands import tokens
from payloops.commands.hashing import Hasher
from payloops.commands.log_in import InvalidCredentials, log_in
from payloops.commands.tokens import AUDIENCE, ISSUER
from payloops.events.timestamps import utc_now
from payloops.http.admission import LEAST
from payloops.settings import Settings


def registration(**fields: Any) -> dict[str, Any]:
    return {"name": "Acme", "email": "acme@example.com", "password": PASSWORD, **fields}


async def test_a_merchant_registers_and_logs_in(api: Api, pool: AsyncConnectionPool) -> None:
    registered = await api.anyone.post("/api/auth/register", registration(email="Acme@Example.com"))
    assert registered.status == 201
    assert set(registered.json) == {"token", "merchant"}
    merchant = registered.json["merchant"]
    assert set(merchant) == {"id", "name", "email", "webhookUrl", "createdAt", "updatedAt"}
    logged_in = await api.anyone.post("/api/auth/login", {"email": "ACME@example.com", "password": PASSWORD})
    assert (logged_in.status, logged_in.json["merchant"]) == (200, merchant)
    for token in (registered.json["token"], logged_in.json["token"]):
        answer = await api.anyone.get("/api/api-keys", Authorization=f"Bearer {token}")
        assert answer.status == 200
    async with pool.connection() as connection:
        found = await (
            await connection.execute("SELECT convert_from(state, 'UTF8')::json->>'actor' FROM stored_events")
        ).fetchone()
        assert found == (f"merchant:{merchant['id']}",)
        rows = await (await connection.execute("SELECT m::text FROM merchants m")).fetchall()
        states = await (await connection.execute("SELECT state FROM stored_events")).fetchall()
    assert PASSWORD not in repr(rows)
    assert PASSWORD.encode() not in repr(states).encode()
    assert b"password" not in b"".join(bytes(state) for (state,) in states)


@pytest.mark.parametrize("email", ["acme@example.com", "ACME@EXAMPLE.COM", "Acme@example.com"])
async def test_an_email_has_one_account_whatever_its_case(api: Api, email: str) -> None:
    await api.anyone.post("/api/auth/register", registration())
    answer = await api.anyone.post("/api/auth/register", registration(email=email))
    assert (answer.status, answer.code) == (400, "email_exists")


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("ada@b\u00fccher.example", "ada@b\u00fccher.example"),
        ("ada@xn--bcher-kva.example", "ada@b\u00fccher.example"),
        ("Ren\u00e9@Example.com", "Ren\u00e9@example.com"),
        ("rene\u0301@example.com", "ren\u00e9@example.com"),
    ],
)
async def test_an_email_opens_its_account_as_typed_and_as_kept(api: Api, typed: str, kept: str) -> None:
    registered = await api.anyone.post("/api/auth/register", registration(email=typed))
    assert (registered.status, registered.json["merchant"]["email"]) == (201, kept)
    for email in (typed, kept):
        logged_in = await api.anyone.post("/api/auth/login", {"email": email, "password": PASSWORD})
        assert logged_in.status == 200, email


async def test_of_many_registrations_at_once_one_succeeds(api: Api, pool: AsyncConnectionPool) -> None:
    answers = await asyncio.gather(
        *(api.anyone.post("/api/auth/register", registration()) for _ in range(10))
    )
    assert sorted(answer.status for answer in answers) == [201] + [400] * 9
    async with pool.connection() as connection:
        found = await (await connection.execute("SELECT count(*) FROM stored_events")).fetchone()
    assert found == (1,)


async def test_a_registration_that_does_not_fit_is_refused(subtests: pytest.Subtests, api: Api) -> None:
    for field, value in [
        ("name", "A"),
        ("name", "  A  "),
        ("name", "x" * 256),
        ("email", "nobody"),
        ("email", "a@b@c"),
        ("email", "x" * 250 + "@example.com"),
        ("password", "seven77"),
        ("password", "x" * 73),
        ("password", "ü" * 37),
        ("password", 12345678),
        ("password", "12345678\0"),
        ("role", "admin"),
    ]:
        with subtests.test(field=field, value=value):
            answer = await api.anyone.post("/api/auth/register", registration(**{field: value}))
            assert answer.fields == {field}


@pytest.mark.parametrize("password", ["8 chars.", "x" * 72, "ü" * 36])
async def test_a_password_may_reach_its_limits(api: Api, password: str) -> None:
    assert (await api.anyone.post("/api/auth/register", registration(password=password))).status == 201
    logged_in = await api.anyone.post("/api/auth/login", {"email": "acme@example.com", "password": password})
    assert logged_in.status == 200


async def test_unknown_email_and_wrong_password_are_answered_alike(api: Api) -> None:
    await api.anyone.post("/api/auth/register", registration())
    answers = [
        await api.anyone.post("/api/auth/login", {"email": email, "password": password})
        for email, password in (
            ("acme@example.com", "wrong password"),
            ("unknown@example.com", PASSWORD),
            ("acme@example.com", "x" * 100),
            ("acme@example.com", PASSWORD + " "),
            ("no email", PASSWORD),
            ("acme@example.com", ""),
        )
    ]
    assert {(answer.status, answer.code) for answer in answers} == {(401, "invalid_credentials")}
    assert all(answer.lasting == answers[0].lasting for answer in answers)


async def test_an_unknown_email_costs_as_much_as_a_wrong_password(
    api: Api, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.anyone.post("/api/auth/register", registration())
    costs: list[bytes] = []

    def checkpw(password: bytes, hashed: bytes) -> bool:
        costs.append(hashed[:7])
        return real(password, hashed)

    real = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    async with Hasher(rounds=4) as passwords:
        for email in ("acme@example.com", "unknown@example.com"):
            with pytest.raises(InvalidCredentials):
                await log_in(pool, email=email, password="wrong password", passwords=passwords)
    assert costs == [b"$2b$04$", b"$2b$04$"]


async def test_a_flood_of_logins_is_turned_away_and_hurts_nobody_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checking, released = threading.Event(), threading.Event()
    real = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        if password.startswith(b"wrong"):
            checking.set()
            released.wait(60)
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)

    async def turned_away(flood: list[asyncio.Task[Answer]]) -> bool:
        return sum(not login.done() for login in flood) <= LEAST / 2

    async with running_api(settings) as api:
        merchant = await api.merchant()
        login = {"email": "acme@example.com", "password": "wrong password"}
        flood = [asyncio.create_task(api.anyone.post("/api/auth/login", login)) for _ in range(100)]
        try:
            assert await asyncio.to_thread(checking.wait, 60)
            await eventually(lambda: turned_away(flood))
            assert (await merchant.shop.post("/v1/orders", {"amount": 1})).status == 201
            assert not all(login.done() for login in flood), "they wait while the order is made"
        finally:
            released.set()
        answers = await asyncio.gather(*flood)
    assert {answer.status for answer in answers} == {401, 503}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status == 503)


async def claims_of(api: Api) -> dict[str, Any]:
    registered = await api.anyone.post("/api/auth/register", registration(email=f"{uuid4()}@example.com"))
    claims: dict[str, Any] = jwt.decode(registered.json["token"], options={"verify_signature": False})
    return claims


async def accepts(api: Api, token: str) -> bool:
    answer = await api.anyone.get("/api/api-keys", Authorization=f"Bearer {token}")
    if answer.status != 200:
        assert (answer.status, answer.code) == (401, "invalid_token")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    return answer.status == 200


async def test_a_token_says_what_the_contract_names(api: Api) -> None:
    claims = await claims_of(api)
    assert set(claims) >= {"iss", "aud", "sub", "email", "iat", "exp", "jti"}
    assert claims["exp"] - claims["iat"] == 604_800


async def test_a_token_without_any_of_its_claims_is_refused(
    subtests: pytest.Subtests, api: Api, settings: Settings
) -> None:
    for missing in ["iss", "aud", "sub", "email", "iat", "exp", "jti", "ver"]:
        with subtests.test(missing=missing):
            secret = settings.jwt_secret.get_secret_value()
            claims = await claims_of(api)
            assert await accepts(api, jwt.encode(claims, secret, algorithm="HS256"))
            del claims[missing]
            assert not await accepts(api, jwt.encode(claims, secret, algorithm="HS256"))


async def test_a_token_with_other_claims_is_refused(
    subtests: pytest.Subtests, api: Api, settings: Settings
) -> None:
    faults: list[dict[str, Any]] = [
        {"iss": "another"},
        {"aud": "another"},
        {"aud": [AUDIENCE, "another"]},
        {"sub": "no-uuid"},
        {"sub": str(uuid4())},
        {"ver": 2},
        {"ver": True},
        {"exp": 1},
        {"exp": 10**30},
        {"exp": float("inf")},
        {"iat": 99_999_999_999},
        {"email": 5},
    ]
    for changed in faults:
        with subtests.test(changed=changed):
            claims = {**await claims_of(api), **changed}
            token = jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm="HS256")
            assert not await accepts(api, token)


async def test_a_token_of_a_process_whose_clock_is_ahead_is_as_good_as_any(
    api: Api, settings: Settings
) -> None:
    claims = await claims_of(api)
    claims |= {name: claims[name] + 3_600 for name in ("iat", "exp")}
    assert await accepts(api, jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm="HS256"))


async def test_only_our_algorithm_and_our_secret_count(api: Api, settings: Settings) -> None:
    claims = await claims_of(api)
    secret = settings.jwt_secret.get_secret_value()

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    assert not await accepts(api, f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.")
    assert not await accepts(api, jwt.encode(claims, secret * 2, algorithm="HS512"))
    assert not await accepts(api, jwt.encode(claims, "another secret, as long as ours is", algorithm="HS256"))
    for nonsense in ("x", "a.b.c", "x" * 5_000, "ü"):
        assert not await accepts(api, nonsense)


async def test_a_token_has_one_spelling(subtests: pytest.Subtests, api: Api) -> None:
    """Base64url without padding (RFC 7515, 2), and with no bit that decoders ignore."""
    token = (await api.anyone.post("/api/auth/register", registration())).json["token"]
    head, claims, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(signature[-1]) + 1]  # its last two bits are zero, and mean nothing
    assert await accepts(api, token)
    for other in (
        *(f"{token}{padding}" for padding in ("=", "==", "====", "%3D", ".", "!")),
        *(f"{head}={claims}.{signature}", f"{head}.{claims}=.{signature}", f"{head}.{claims}!.{signature}"),
        f"{head}.{claims}.{signature[:-1]}{last}",
        *(f"{head}.{claims}.{signature[:4]}{other}{signature[4:]}" for other in (" ", "ü")),
    ):
        with subtests.test(other=other.replace(signature, "…")):
            assert not await accepts(api, other)


async def test_a_token_ends(api: Api, settings: Settings) -> None:
    claims = await claims_of(api)
    past = utc_now() - timedelta(seconds=1)
    token = jwt.encode({**claims, "exp": past}, settings.jwt_secret.get_secret_value(), algorithm="HS256")
    assert not await accepts(api, token)


async def test_a_token_ends_also_where_it_was_shown_before(
    api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = await claims_of(api)
    ends_at = datetime.fromtimestamp(claims["exp"], UTC)
    now = ends_at - timedelta(microseconds=1)

    class Clock(datetime):
        @classmethod
        def now(cls, _: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return now

    monkeypatch.setattr(tokens, "datetime", Clock)
    token = jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm="HS256")
    assert [await accepts(api, token) for _ in range(2)] == [True, True]
    now = ends_at
    assert not await accepts(api, token)


async def test_two_tokens_and_what_is_no_bearer_token_let_nobody_in(api: Api) -> None:
    registered = await api.anyone.post("/api/auth/register", registration())
    token = registered.json["token"]
    for shown in (
        [f"Bearer {token}", f"Bearer {token}"],
        [f"Bearer {token}", "Bearer x"],
        [f"Basic {token}"],
        [token],
        ["Bearer"],
    ):
        headers = CIMultiDict(("Authorization", each) for each in shown)
        async with api.anyone.session.get("/api/merchants/me", headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (401, "unauthorized"), shown
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await api.anyone.get("/api/merchants/me", Authorization=f"bearer  {token} ")).status == 200


async def test_of_tokens_shown_at_the_same_time_each_stands_for_its_own_merchant(
    api: Api, pool: AsyncConnectionPool
) -> None:
    emails = [f"shop-{number}@example.com" for number in range(4)]
    registered = [await api.anyone.post("/api/auth/register", registration(email=each)) for each in emails]
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE merchants SET token_version = token_version + 1 WHERE email = %s", emails[:1]
        )
    shown = [each.json["token"] for each in registered] * 5
    answers = await asyncio.gather(
        *(api.anyone.get("/api/merchants/me", Authorization=f"Bearer {token}") for token in shown)
    )
    assert [answer.json.get("email") for answer in answers] == [None, *emails[1:]] * 5
    assert {answer.status for answer in answers[::4]} == {401}


async def test_older_tokens_end_when_the_token_version_moves_on(api: Api, pool: AsyncConnectionPool) -> None:
    registered = await api.anyone.post("/api/auth/register", registration())
    async with pool.connection() as connection:
        await connection.execute("UPDATE merchants SET token_version = token_version + 1")
    assert not await accepts(api, registered.json["token"])
    again = await api.anyone.post("/api/auth/login", {"email": "acme@example.com", "password": PASSWORD})
    assert await accepts(api, again.json["token"])
    assert jwt.decode(again.json["token"], options={"verify_signature": False})["iss"] == ISSUER
