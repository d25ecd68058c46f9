"""A merchant's own account: password, profile and webhook secret."""

import asyncio
import base64
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from calling import PASSWORD, Answer, Api, Caller, Merchant, running_api
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from payloops.commands.cipher import Cipher, SealBroken
from payloops.commands.merchants import change_account
from payloops.commands.webhook_secrets import get_webhook_secret
from payloops.events.event_store import EventStore
from payloops.events.merchants import Merchant as Account
from payloops.events.merchants import ProfileChanged
from payloops.events.metadata import Metadata
from payloops.events.timestamps import utc_now
from payloops.settings import Settings

NEW_PASSWORD = "battery horse correct"


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await api.merchant(processors=False)


async def change(
    merchant: Merchant, *, current: Any = PASSWORD, new: Any = NEW_PASSWORD, by: Caller | None = None
) -> Answer:
    return await (by or merchant.dashboard).post(
        "/api/auth/password", {"currentPassword": current, "newPassword": new}
    )


async def facts(pool: AsyncConnectionPool, merchant: Merchant) -> list[tuple[str, dict[str, Any]]]:
    """Topic and state of the account's facts, as another connection sees them."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT topic, state FROM stored_events WHERE originator_id = %s ORDER BY originator_version",
            (merchant.id,),
        )
        return [(topic, json.loads(bytes(state))) for topic, state in await cursor.fetchall()]


async def test_a_new_password_ends_every_older_token_at_once(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    login = {"email": merchant.email, "password": PASSWORD}
    other = (await api.anyone.post("/api/auth/login", login)).json["token"]
    answer = await change(merchant)
    assert (answer.status, set(answer.json)) == (200, {"token"})
    for old in (merchant.dashboard, api.anyone.with_headers(Authorization=f"Bearer {other}")):
        refused = await old.get("/api/merchants/me")
        assert (refused.status, refused.code) == (401, "invalid_token")
    new = api.anyone.with_headers(Authorization=f"Bearer {answer.json['token']}")
    assert (await new.get("/api/merchants/me")).status == 200
    assert (await merchant.shop.get("/v1/orders")).status == 200  # keys are not tokens
    assert (await api.anyone.post("/api/auth/login", login)).code == "invalid_credentials"
    logged_in = await api.anyone.post("/api/auth/login", {**login, "password": NEW_PASSWORD})
    assert logged_in.status == 200
    topic, fact = (await facts(pool, merchant))[-1]
    assert (topic, fact["token_version"]) == ("merchant.password_changed", 2)
    assert fact["actor"] == f"merchant:{merchant.id}"
    assert "password" not in repr(fact).replace("password_changed", "")


async def test_a_wrong_current_password_changes_nothing(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    before = await facts(pool, merchant)
    for current in ("wrong password", "", "x" * 100, PASSWORD + " "):
        answer = await change(merchant, current=current)
        assert (answer.status, answer.code) == (401, "invalid_credentials")
    assert await facts(pool, merchant) == before
    assert (await merchant.dashboard.get("/api/merchants/me")).status == 200


async def test_a_new_password_that_does_not_fit_is_refused(
    subtests: pytest.Subtests, merchant: Merchant
) -> None:
    for new in ("seven77", "x" * 73, "ü" * 37, 12345678, None):
        with subtests.test(new=new):
            assert (await change(merchant, new=new)).fields == {"newPassword"}
    missing = await merchant.dashboard.post("/api/auth/password", {"newPassword": NEW_PASSWORD})
    assert missing.fields == {"currentPassword"}


async def test_of_many_changes_at_once_one_is_made(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    answers = await asyncio.gather(*(change(merchant, new=f"{NEW_PASSWORD} {n}") for n in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401, 401]
    assert [topic for topic, _ in await facts(pool, merchant)].count("merchant.password_changed") == 1


async def test_the_profile_is_read_and_changed(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    before = (await merchant.dashboard.get("/api/merchants/me")).json
    assert set(before) == {"id", "name", "email", "webhookUrl", "createdAt", "updatedAt"}
    assert (before["id"], before["email"], before["webhookUrl"]) == (str(merchant.id), merchant.email, None)
    url = "https://shop.example/hooks?a=b"
    changed = await merchant.dashboard.call(
        "PUT", "/api/merchants/me", {"name": " New name ", "webhookUrl": url}
    )
    assert (changed.status, changed.json["name"], changed.json["webhookUrl"]) == (200, "New name", url)
    assert changed.json["updatedAt"] > before["updatedAt"]
    assert (await merchant.dashboard.get("/api/merchants/me")).json == changed.json
    topic, fact = (await facts(pool, merchant))[-1]
    assert (topic, fact["name"], fact["webhook_url"]) == ("merchant.profile_changed", "New name", url)


async def test_what_is_absent_stays_and_null_clears(
    merchant: Merchant, pool: AsyncConnectionPool, store: EventStore
) -> None:
    url = "http://localhost:8080/hooks"

    async def put(body: dict[str, Any]) -> list[Any]:
        answer = await merchant.dashboard.call("PUT", "/api/merchants/me", body)
        assert answer.status == 200
        return [answer.json["name"], answer.json["webhookUrl"]]

    assert await put({"webhookUrl": url}) == ["Merchant", url]
    assert await put({"name": "Other"}) == ["Other", url]
    count = len(await facts(pool, merchant))
    assert await put({}) == ["Other", url]
    assert await put({"name": "Other", "webhookUrl": url}) == ["Other", url]
    assert len(await facts(pool, merchant)) == count  # nothing changed, nothing to tell
    assert await put({"webhookUrl": None}) == ["Other", None]
    account = await store.load(Account, merchant.id)
    assert account is not None
    assert (account.name, account.webhook_url) == ("Other", None)


async def test_a_name_of_null_is_refused_and_changes_nothing(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    count = len(await facts(pool, merchant))
    body = {"name": None, "webhookUrl": "https://shop.example/hooks"}
    refused = await merchant.dashboard.call("PUT", "/api/merchants/me", body)
    assert (refused.status, refused.code, refused.fields) == (400, "validation_error", {"name"})
    assert len(await facts(pool, merchant)) == count


async def test_changes_of_different_parts_at_once_are_all_kept(merchant: Merchant) -> None:
    bodies = [{"name": "Other"}, {"webhookUrl": "https://shop.example/hooks"}]
    answers = await asyncio.gather(
        *(merchant.dashboard.call("PUT", "/api/merchants/me", body) for body in bodies)
    )
    assert [answer.status for answer in answers] == [200, 200]
    now = (await merchant.dashboard.get("/api/merchants/me")).json
    assert (now["name"], now["webhookUrl"]) == ("Other", "https://shop.example/hooks")


async def test_many_changes_at_once_meet_no_conflict(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    """In one process they take turns."""
    answers = await asyncio.gather(
        *(merchant.dashboard.call("PUT", "/api/merchants/me", {"name": f"Name {n}"}) for n in range(40))
    )
    assert {answer.status for answer in answers} == {200}
    assert [topic for topic, _ in await facts(pool, merchant)].count("merchant.profile_changed") == 40


async def test_an_account_that_others_change_meanwhile_is_changed_on_its_fresh_state(
    merchant: Merchant, store: EventStore, pool: AsyncConnectionPool, by: Metadata
) -> None:
    attempts = 0

    def decide(account: Account) -> None:
        account.record(ProfileChanged, by=by, name="Mine", webhook_url=account.webhook_url)

    async def write(_: AsyncConnection[TupleRow]) -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= 10:
            account = await store.load(Account, merchant.id)
            assert account is not None
            account.record(ProfileChanged, by=by, name="Theirs", webhook_url=f"https://{attempts}.example")
            await store.append(account.collect_events())
        return attempts

    assert await change_account(store, merchant_id=merchant.id, decide=decide, write=write) == 11
    _, last = (await facts(pool, merchant))[-1]
    assert (last["name"], last["webhook_url"]) == ("Mine", "https://10.example")


async def test_an_address_that_no_webhook_is_sent_to_is_refused_at_once(
    subtests: pytest.Subtests, merchant: Merchant
) -> None:
    hosts = ["127.0.0.1", "10.1", "0x7f.1", "2130706433", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"]
    for host in hosts:
        with subtests.test(host=host):
            url = f"http://{host}:8080/hooks"
            refused = await merchant.dashboard.call("PUT", "/api/merchants/me", {"webhookUrl": url})
            assert (refused.status, refused.fields) == (400, {"webhookUrl"})
    for host in ("93.184.215.14", "[2606:4700::1111]", "shop.example"):
        url = f"https://{host}/hooks"
        assert (await merchant.dashboard.call("PUT", "/api/merchants/me", {"webhookUrl": url})).status == 200


async def test_this_machines_own_addresses_are_taken_where_webhooks_may_go_there(settings: Settings) -> None:
    async with running_api(settings.model_copy(update={"webhook_allow_loopback": True})) as api:
        merchant = await api.merchant(processors=False)
        for host, status in (("127.0.0.1:8080", 200), ("[::1]", 200), ("10.0.0.1", 400)):
            body = {"webhookUrl": f"http://{host}/"}
            assert (await merchant.dashboard.call("PUT", "/api/merchants/me", body)).status == status


async def test_a_profile_that_does_not_fit_is_refused(subtests: pytest.Subtests, merchant: Merchant) -> None:
    for field, value in [
        ("name", "A"),
        ("name", "x" * 256),
        ("name", 5),
        ("webhookUrl", ""),
        ("webhookUrl", "shop.example"),
        ("webhookUrl", "ftp://shop.example/"),
        ("webhookUrl", "javascript:alert(1)"),
        ("webhookUrl", "https://user:password@shop.example/"),
        ("webhookUrl", "https://user@shop.example/"),
        ("webhookUrl", "https://"),
        ("webhookUrl", "https://shop.example/" + "x" * 2_048),
        ("webhookUrl", "https://shop.example/a b"),
        ("webhookUrl", "https://shop.example/\r\nX: y"),
        ("webhookUrl", 5),
        ("email", "other@example.com"),
    ]:
        with subtests.test(field=field, value=value):
            answer = await merchant.dashboard.call("PUT", "/api/merchants/me", {field: value})
            assert answer.fields == {field}


SECRET = "/api/merchants/me/webhook-secret"


async def test_a_webhook_secret_is_made_when_it_is_first_shown(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    shown = await asyncio.gather(*(merchant.dashboard.get(SECRET) for _ in range(5)))
    assert all(answer.json == shown[0].json for answer in shown)
    secret = shown[0].json["secret"]
    assert shown[0].json == {"secret": secret, "previousSecret": None, "previousExpiresAt": None}
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    other = await api.merchant(processors=False)
    assert (await other.dashboard.get(SECRET)).json["secret"] != secret


async def test_after_a_rotation_both_secrets_count_for_a_day(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    first = (await merchant.dashboard.get(SECRET)).json["secret"]
    began = utc_now()
    rotated = await merchant.dashboard.post(f"{SECRET}/rotate")
    assert (rotated.status, rotated.json["previousSecret"]) == (200, first)
    assert rotated.json["secret"] not in (None, first)
    expires_at = datetime.fromisoformat(rotated.json["previousExpiresAt"])
    assert timedelta(0) <= expires_at - began - timedelta(hours=24) < timedelta(minutes=1)
    assert (await merchant.dashboard.get(SECRET)).json == rotated.json
    cipher = api.services.cipher
    for now, previous in ((expires_at - timedelta(seconds=1), first), (expires_at, None)):
        seen = await get_webhook_secret(pool, merchant_id=merchant.id, cipher=cipher, now=now)
        assert (seen.secret, seen.previous_secret) == (rotated.json["secret"], previous)
        assert (seen.previous_expires_at is None) == (previous is None)
        assert "whsec" not in repr(seen)
    again = (await merchant.dashboard.post(f"{SECRET}/rotate")).json
    assert again["previousSecret"] == rotated.json["secret"]


async def test_a_secret_that_was_never_shown_can_be_rotated(merchant: Merchant) -> None:
    rotated = await merchant.dashboard.post(f"{SECRET}/rotate", {})
    assert (rotated.status, rotated.json["previousSecret"] is None) == (200, False)


async def test_a_secret_that_nobody_can_read_any_more_is_rotated_and_signs_no_longer(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    """After a key is lost: else the merchant could never be told of anything again."""
    await merchant.dashboard.get(SECRET)
    async with pool.connection() as connection:
        await connection.execute("UPDATE webhook_secrets SET secret = reverse(secret)")
    rotated = await merchant.dashboard.post(f"{SECRET}/rotate")
    assert (rotated.status, rotated.json["previousSecret"]) == (200, None)
    assert (await merchant.dashboard.get(SECRET)).json == rotated.json
    again = (await merchant.dashboard.post(f"{SECRET}/rotate")).json
    assert again["previousSecret"] == rotated.json["secret"]


async def test_of_rotations_at_once_each_is_on_record(merchant: Merchant, pool: AsyncConnectionPool) -> None:
    answers = await asyncio.gather(*(merchant.dashboard.post(f"{SECRET}/rotate") for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3
    topics = [topic for topic, _ in await facts(pool, merchant)]
    assert topics.count("webhook_secret.rotated") == 3


async def test_webhook_secrets_are_unreadable_at_rest(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, settings: Settings
) -> None:
    rotated = (await merchant.dashboard.post(f"{SECRET}/rotate")).json
    thief = await api.merchant(processors=False)
    await thief.dashboard.get(SECRET)
    async with pool.connection() as connection:
        kept = await (
            await connection.execute(
                "SELECT secret, previous_secret FROM webhook_secrets WHERE merchant_id = %s", (merchant.id,)
            )
        ).fetchone()
        states = await (await connection.execute("SELECT state FROM stored_events")).fetchall()
        assert kept is not None
        everything = b"".join(bytes(value) for value in (*kept, *(state for (state,) in states)))
        for name in ("secret", "previousSecret"):
            assert rotated[name].encode() not in everything
        assert b"whsec" not in everything
        await connection.execute(
            "UPDATE webhook_secrets SET secret = %s WHERE merchant_id = %s", (kept[0], thief.id)
        )
    cipher = Cipher(secret=settings.encryption_key.get_secret_value())
    with pytest.raises(SealBroken):
        await get_webhook_secret(pool, merchant_id=thief.id, cipher=cipher, now=utc_now())


async def test_the_account_needs_a_token(subtests: pytest.Subtests, api: Api, merchant: Merchant) -> None:
    for method, path in [
        ("POST", "/api/auth/password"),
        ("GET", "/api/merchants/me"),
        ("PUT", "/api/merchants/me"),
        ("GET", SECRET),
        ("POST", f"{SECRET}/rotate"),
    ]:
        for caller in (api.anyone, merchant.shop):
            with subtests.test(method=method, path=path):
                answer = await caller.call(method, path)
                assert (answer.status, answer.code) == (401, "unauthorized")
