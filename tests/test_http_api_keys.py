"""API keys: shown once, verified once, refused soon after they end."""

import asyncio
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from types import NoneType
from typing import Any
from uuid import UUID

import aiohttp
import bcrypt
import psycopg
import pytest
from calling import Answer, Api, Caller, running_api
from multidict import CIMultiDict
from projecting import eventually
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands import authenticate_api_key, note_key_use
from payloops.commands.api_keys import make_key
from payloops.commands.authenticate_api_key import (
    ApiKeyGate,
    InvalidApiKey,
    KeyCheckUnavailable,
    TooManyGuesses,
)
from payloops.commands.hashing import Hasher, HashingOverloaded
from payloops.commands.note_key_use import KeyUses
from payloops.events.batch_loader import LOOKUPS
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.http.admission import LEAST
from payloops.settings import Environment, Settings


async def test_a_key_is_shown_once_and_then_by_its_prefix(api: Api, pool: AsyncConnectionPool) -> None:
    merchant = await api.merchant(processors=False)
    issued = await merchant.dashboard.post("/api/api-keys", {"name": "second"})
    assert set(issued.json) == {"apiKey", "secret"}
    assert set(issued.json["apiKey"]) == {"id", "name", "prefix", "expiresAt", "createdAt"}
    secret, prefix = issued.json["secret"], issued.json["apiKey"]["prefix"]
    assert secret.startswith(prefix)
    assert len(secret) <= 64
    listed = await merchant.dashboard.get("/api/api-keys")
    assert [row["name"] for row in listed.json] == ["second", "shop"]
    assert set(listed.json[0]) == {"id", "name", "prefix", "lastUsedAt", "expiresAt", "createdAt"}
    assert secret.encode() not in listed.raw
    async with pool.connection() as connection:
        stored = await (await connection.execute("SELECT k::text FROM api_keys k")).fetchall()
        events = await (await connection.execute("SELECT state FROM stored_events")).fetchall()
    assert secret not in repr(stored)
    assert secret.encode() not in b"".join(bytes(state) for (state,) in events)
    assert prefix.encode() in b"".join(bytes(state) for (state,) in events)


async def test_keys_are_of_the_environment(settings: Settings) -> None:
    async with running_api(settings.model_copy(update={"environment": Environment.PRODUCTION})) as api:
        merchant = await api.merchant(processors=False)
        assert merchant.shop.headers["X-API-Key"].startswith("sk_live_")
    async with running_api(settings) as api:
        live_key = Caller(api.anyone.session, merchant.shop.headers)
        assert (await live_key.get("/v1/orders")).code == "invalid_api_key"


async def test_what_is_no_key_of_ours_is_refused(subtests: pytest.Subtests, api: Api) -> None:
    for key in ["x", "sk_test_", make_key("test")[0], "sk_test_" + "x" * 500, "ü" * 52]:
        with subtests.test(key=key):
            answer = await api.anyone.get("/v1/orders", **{"X-API-Key": key})
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"]


async def test_of_two_keys_shown_neither_lets_anybody_in(api: Api) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    for shown in ([key, key], [key, "x"], ["x", key], [" "]):
        headers = CIMultiDict(("X-API-Key", each) for each in shown)
        async with api.anyone.session.get("/v1/orders", headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (401, "unauthorized"), shown


async def test_a_revoked_key_is_refused_within_a_second_in_every_process(settings: Settings) -> None:
    """Also in one that has not met it before."""
    async with running_api(settings) as one, running_api(settings) as two, running_api(settings) as three:
        merchant = await one.merchant(processors=False)
        elsewhere, new = [Caller(each.anyone.session, merchant.shop.headers) for each in (two, three)]
        for shop in (merchant.shop, elsewhere):
            assert (await shop.get("/v1/orders?status=failed")).status == 200
        [key] = (await merchant.dashboard.get("/api/api-keys")).json
        revoked = await merchant.dashboard.call("DELETE", f"/api/api-keys/{key['id']}")
        assert (revoked.status, revoked.raw) == (204, b"")
        await asyncio.sleep(1)
        for shop in (merchant.shop, elsewhere, new):
            assert (await shop.get("/v1/orders?status=failed")).status == 401
        again = await merchant.dashboard.call("DELETE", f"/api/api-keys/{key['id']}")
        assert (again.status, again.code) == (404, "not_found")
        assert (await merchant.dashboard.get("/api/api-keys")).json == []


async def test_a_row_is_read_again_after_half_a_second_and_a_revoked_key_is_refused_ever_after(
    api: Api, pool: AsyncConnectionPool
) -> None:
    merchant = await api.merchant(processors=False)
    key = merchant.shop.headers["X-API-Key"]
    now = 0.0
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)
        await gate.authenticate(key)
        for now, reads in ((0.4, 0), (0.5, 1), (0.9, 0), (1.0, 1)):
            before = pool.get_stats()["requests_num"]
            await gate.authenticate(key)
            assert pool.get_stats()["requests_num"] - before == reads, now
        [row] = (await merchant.dashboard.get("/api/api-keys")).json
        await merchant.dashboard.call("DELETE", f"/api/api-keys/{row['id']}")
        now = 2.0
        for _ in range(2):
            with pytest.raises(InvalidApiKey):
                await gate.authenticate(key)


async def test_a_key_is_refused_from_the_moment_it_expires(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    merchant = await api.merchant(processors=False)
    expires_at = utc_now() + timedelta(hours=1)
    issued = await merchant.dashboard.post(
        "/api/api-keys", {"name": "short", "expiresAt": timestamp_text(expires_at)}
    )
    assert issued.status == 201, issued.raw
    assert issued.json["apiKey"]["expiresAt"] == timestamp_text(expires_at)
    shop = merchant.shop.with_headers(**{"X-API-Key": issued.json["secret"]})
    monkeypatch.setattr(api.services.gate, "_now", lambda: expires_at - timedelta(microseconds=1))
    assert (await shop.get("/v1/orders/x")).status == 404
    monkeypatch.setattr(api.services.gate, "_now", lambda: expires_at)
    assert (await shop.get("/v1/orders/x")).code == "invalid_api_key"


async def test_a_key_can_only_expire_in_the_future(subtests: pytest.Subtests, api: Api) -> None:
    for expires_at in ["2020-01-01T00:00:00Z", "2099-01-01", "soon", 5]:
        with subtests.test(expires_at=expires_at):
            merchant = await api.merchant(processors=False)
            answer = await merchant.dashboard.post("/api/api-keys", {"name": "x", "expiresAt": expires_at})
            assert answer.fields == {"expiresAt"}


async def test_another_merchants_key_cannot_be_revoked(api: Api) -> None:
    merchant, other = await api.merchant(processors=False), await api.merchant(processors=False)
    [key] = (await merchant.dashboard.get("/api/api-keys")).json
    theirs = await other.dashboard.call("DELETE", f"/api/api-keys/{key['id']}")
    unknown = await other.dashboard.call("DELETE", f"/api/api-keys/{uuid7()}")
    no_id = await other.dashboard.call("DELETE", "/api/api-keys/x")
    assert theirs.status == 404
    assert theirs.lasting == unknown.lasting == no_id.lasting
    assert (await merchant.shop.get("/v1/orders/x")).status == 404


class CountingHasher(Hasher):
    """A hasher that tells how often it was asked to check, and what it `has_hashed`, in that order. `held`: the
    beginnings of secrets that have to wait.
    """

    def __init__(self) -> None:
        super().__init__(rounds=4)
        self.checks = 0
        self.has_hashed: list[str] = []
        self.held: tuple[str, ...] = ()
        self.released = asyncio.Event()

    async def matches(self, secret: str, hashed: str | None, *, account: Hashable = None) -> bool:
        self.checks += 1
        if secret.startswith(self.held):
            await self.released.wait()
        same = await super().matches(secret, hashed, account=account)
        self.has_hashed.append(secret)
        return same


async def has_checked(hasher: CountingHasher, times: int) -> None:
    async with asyncio.timeout(20):
        while hasher.checks < times:
            await asyncio.sleep(0.01)


async def test_bcrypt_checks_a_key_once_also_for_many_requests_at_once(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        keys.held = (key,)
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        asking = [asyncio.create_task(gate.authenticate(key)) for _ in range(50)]
        await has_checked(keys, 1)
        keys.released.set()
        await asyncio.gather(*asking)
        await gate.authenticate(key)
        assert keys.checks == 1


@pytest.mark.parametrize("verified_before", [False, True])
async def test_a_request_that_is_given_up_does_not_end_the_check_that_others_wait_for(
    api: Api, pool: AsyncConnectionPool, verified_before: bool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    now = 0.0
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)
        if verified_before:
            await gate.authenticate(key)
            now = authenticate_api_key.TRUSTED_FOR
        keys.held = (key,)
        asking = [asyncio.create_task(gate.authenticate(key)) for _ in range(3)]
        await has_checked(keys, 1 + verified_before)
        asking[0].cancel()
        keys.released.set()
        await asyncio.gather(*asking[1:])


async def test_a_key_that_is_revoked_while_bcrypt_checks_it_lets_nobody_in(
    api: Api, pool: AsyncConnectionPool
) -> None:
    merchant = await api.merchant(processors=False)
    key = merchant.shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        keys.held = (key,)
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        asking = asyncio.create_task(gate.authenticate(key))
        await has_checked(keys, 1)
        [row] = (await merchant.dashboard.get("/api/api-keys")).json
        await merchant.dashboard.call("DELETE", f"/api/api-keys/{row['id']}")
        keys.released.set()
        with pytest.raises(InvalidApiKey):
            await asking


async def test_a_key_is_checked_anew_when_the_memory_of_it_is_old(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    now = 0.0
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)
        await gate.authenticate(key)
        now = authenticate_api_key.VERIFIED_FOR + 1
        await gate.authenticate(key)
        async with asyncio.timeout(60):
            while keys.checks < 2 or any(
                task.get_name() == authenticate_api_key.RENEWAL for task in asyncio.all_tasks()
            ):
                await asyncio.sleep(0.01)
        await gate.authenticate(key)
        now = now + authenticate_api_key.TRUSTED_FOR + 1
        await gate.authenticate(key)
        assert keys.checks == 3


async def test_a_right_key_is_checked_anew_past_all_guesses(api: Api, pool: AsyncConnectionPool) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    now = 0.0
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)
        await gate.authenticate(key)
        now = authenticate_api_key.TRUSTED_FOR + 1
        keys.held = (key[:-32] + "0",)
        guesses = [asyncio.create_task(gate.authenticate(key[:-32] + f"{n:032}")) for n in range(50)]
        await has_checked(keys, 2)
        await gate.authenticate(key)
        assert sum(not guess.done() for guess in guesses) == authenticate_api_key.WRONG_AT_A_TIME
        keys.released.set()
        refusals = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {InvalidApiKey, TooManyGuesses}


async def test_a_right_key_is_checked_anew_ahead_of_the_guesses_that_wait(
    api: Api, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    guesses = [key[:-32] + f"{n:032}" for n in range(authenticate_api_key.WRONG_AT_A_TIME)]
    now = 0.0
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)

        async def ask(each: str) -> None:
            with suppress(InvalidApiKey):
                await gate.authenticate(each)

        await ask(key)
        now = authenticate_api_key.TRUSTED_FOR
        with held_hashing(monkeypatch) as released:
            asking = [asyncio.create_task(ask(each)) for each in guesses]
            await has_checked(keys, 1 + len(guesses))
            asking.append(asyncio.create_task(ask(key)))
            await has_checked(keys, 2 + len(guesses))
            released.set()
            await asyncio.gather(*asking)
    assert keys.has_hashed[1:].index(key) <= 2


class FullHasher(CountingHasher):
    """A hasher with a long queue."""

    async def matches(self, secret: str, hashed: str | None, *, account: Hashable = None) -> bool:
        if self.checks > 0:
            raise HashingOverloaded("too many secrets wait to be checked")
        return await super().matches(secret, hashed, account=account)


async def test_a_known_key_does_not_depend_on_the_hasher(api: Api, pool: AsyncConnectionPool) -> None:
    merchant = await api.merchant(processors=False)
    key = merchant.shop.headers["X-API-Key"]
    now = 0.0
    async with FullHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test", clock=lambda: now)
        await gate.authenticate(key)
        now = authenticate_api_key.VERIFIED_FOR + 1
        for _ in range(3):
            await gate.authenticate(key)
            await asyncio.sleep(0.01)
        [row] = (await merchant.dashboard.get("/api/api-keys")).json
        await merchant.dashboard.call("DELETE", f"/api/api-keys/{row['id']}")
        now += authenticate_api_key.FRESH_FOR
        with pytest.raises(InvalidApiKey):
            await gate.authenticate(key)


async def test_many_made_up_keys_take_one_connection_and_few_queries(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        before = pool.get_stats()
        flood = [asyncio.create_task(gate.authenticate(make_key("test")[0])) for _ in range(2_000)]
        await asyncio.sleep(0)
        await gate.authenticate(key)
        refusals = await asyncio.gather(*flood, return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {InvalidApiKey}
        after = pool.get_stats()
        assert not gate._checking, "what is counted of a prefix goes with its last check"
    assert after["requests_num"] - before.get("requests_num", 0) <= 2_000 // LOOKUPS + 2
    assert after.get("requests_queued", 0) == before.get("requests_queued", 0)


async def test_rows_that_cannot_be_read_let_nobody_in_and_are_read_again(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        async with pool.connection() as connection:
            await connection.execute("ALTER TABLE api_keys RENAME TO elsewhere")
        for _ in range(2):
            with pytest.raises(KeyCheckUnavailable):
                await gate.authenticate(key)
        async with pool.connection() as connection:
            await connection.execute("ALTER TABLE elsewhere RENAME TO api_keys")
        await gate.authenticate(key)


async def test_a_row_that_is_locked_is_not_waited_for(
    api: Api, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        async with pool.connection() as connection, connection.transaction():
            await connection.execute("LOCK TABLE api_keys")
            with monkeypatch.context() as patch:
                patch.setattr(authenticate_api_key, "ROW_DEADLINE", 0.1)
                with pytest.raises(KeyCheckUnavailable):
                    await gate.authenticate(key)
        await gate.authenticate(key)


async def test_made_up_keys_never_reach_bcrypt_and_wrong_ones_only_once(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        for _ in range(20):
            with pytest.raises(InvalidApiKey):
                await gate.authenticate(make_key("test")[0])
        assert keys.checks == 0
        wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
        for _ in range(20):
            with pytest.raises(InvalidApiKey):
                await gate.authenticate(wrong)
        assert keys.checks == 1


async def test_a_flood_of_guesses_at_one_key_holds_up_no_other(api: Api, pool: AsyncConnectionPool) -> None:
    target = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    other = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher() as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        prefix = target[:-32]
        keys.held = (prefix,)
        guesses = [asyncio.create_task(gate.authenticate(prefix + f"{n:032}")) for n in range(200)]
        await has_checked(keys, 1)
        await gate.authenticate(other)
        assert sum(not guess.done() for guess in guesses) == authenticate_api_key.WRONG_AT_A_TIME
        keys.released.set()
        refusals = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {InvalidApiKey, TooManyGuesses}
        assert keys.checks <= authenticate_api_key.WRONG_AT_A_TIME + 1
        await gate.authenticate(target)


@contextmanager
def held_hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A thread that hashes goes on only when this event is set, as it is at the end."""
    released = threading.Event()
    for name in ("hashpw", "checkpw"):
        real = getattr(bcrypt, name)

        def held(secret: bytes, other: bytes, real: Any = real) -> Any:
            released.wait(60)
            return real(secret, other)

        monkeypatch.setattr(bcrypt, name, held)
    try:
        yield released
    finally:
        released.set()


@pytest.mark.parametrize("by", ["guesses", "new keys"])
async def test_a_flood_of_one_account_leaves_room_for_the_keys_of_all_others(
    api: Api, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    flooding, other = await api.merchant(processors=False), await api.merchant(processors=False)
    for _ in range(11):
        await flooding.dashboard.post("/api/api-keys", {"name": "one of many"})
    prefixes = [row["prefix"] for row in (await flooding.dashboard.get("/api/api-keys")).json]
    async with aiohttp.ClientSession(api.url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def act(prefix: str, number: int) -> Answer:
            if by == "guesses":
                wrong = {"X-API-Key": prefix + f"{number:032}"}
                return await Caller(session, wrong).get("/v1/orders/x")
            return await Caller(session, flooding.dashboard.headers).post("/api/api-keys", {"name": "more"})

        with held_hashing(monkeypatch) as released:
            flood = [asyncio.create_task(act(prefix, number)) for number in range(8) for prefix in prefixes]

            def waiting() -> int:
                return sum(not each.done() for each in flood)

            async def most_are_turned_away() -> bool:
                return waiting() <= LEAST / 2

            async def one_makes_room() -> bool:
                return asking.done() or waiting() < before

            await eventually(most_are_turned_away)
            before = waiting()
            asking = asyncio.create_task(other.shop.get("/v1/orders/x"))
            await eventually(one_makes_room)
            assert not asking.done(), asking.result().raw
            released.set()
            assert (await asking).status == 404
            answers = await asyncio.gather(*flood)
        done = {401} if by == "guesses" else {201, 409}
        assert {answer.status for answer in answers} - done == {503}


async def test_accounts_take_turns_and_who_has_left_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def hash_for(hasher: Hasher, account: str) -> None:
        await hasher.hash("a secret", account=account)
        done.append(account)

    async with Hasher(rounds=4, max_waiting=5) as hasher:
        with held_hashing(monkeypatch) as released:
            tasks = [asyncio.create_task(hash_for(hasher, each)) for each in "aaaabb"]
            await asyncio.sleep(0)
            with pytest.raises(HashingOverloaded):
                await hash_for(hasher, "a")
            tasks.pop(2).cancel()
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(hash_for(hasher, each)) for each in "cd"]
            await asyncio.sleep(0)
            released.set()
            refusals = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in refusals] == [NoneType, NoneType, HashingOverloaded, *[NoneType] * 4]
    assert done == ["a", "a", "b", "c", "d", "b"]


async def test_use_of_a_key_is_noted(api: Api) -> None:
    merchant = await api.merchant(processors=False)
    [key] = (await merchant.dashboard.get("/api/api-keys")).json
    assert key["lastUsedAt"] is None
    await merchant.shop.get("/v1/orders/x")
    async with asyncio.timeout(60):
        while key["lastUsedAt"] is None:
            await asyncio.sleep(0.05)
            [key] = (await merchant.dashboard.get("/api/api-keys")).json
    assert key["lastUsedAt"].endswith("Z")


async def test_what_was_noted_is_written_when_the_process_ends(
    settings: Settings, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(note_key_use, "PAUSE", 600.0)
    async with running_api(settings) as api:
        merchant = await api.merchant(processors=False)
        await merchant.shop.get("/v1/orders/x")
        assert await last_uses(pool) == [None]
    [used_at] = await last_uses(pool)
    assert used_at is not None
    assert timedelta() <= utc_now() - used_at < timedelta(seconds=60)


async def last_uses(pool: AsyncConnectionPool) -> list[datetime | None]:
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT last_used_at FROM api_keys ORDER BY id")).fetchall()
    return [row[0] for row in rows]


async def key_ids(api: Api, pool: AsyncConnectionPool, count: int) -> list[UUID]:
    for _ in range(count):
        await api.merchant(processors=False)
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT id FROM api_keys ORDER BY id")).fetchall()
    return [row[0] for row in rows]


async def test_many_uses_of_many_keys_are_one_statement_and_a_minute_apart(
    api: Api, pool: AsyncConnectionPool
) -> None:
    ids = await key_ids(api, pool, 3)
    now, at = 0.0, utc_now()
    uses = KeyUses(pool, clock=lambda: now)
    before = pool.get_stats()["requests_num"]
    for second in range(1_000):
        uses.note(ids[second % 3], at=at + timedelta(microseconds=second))
    await uses.write_due()
    assert pool.get_stats()["requests_num"] == before + 1
    assert await last_uses(pool) == [at + timedelta(microseconds=n) for n in (999, 997, 998)]
    later = at + timedelta(seconds=30)
    uses.note(ids[0], at=later)
    now = 59.0
    await uses.write_due()
    assert (await last_uses(pool))[0] != later
    now = 60.0
    await uses.write_due()
    assert (await last_uses(pool))[0] == later
    assert uses._uses == {}
    uses.note(ids[0], at=at)  # another process was later
    now = 200.0
    await uses.write_due()
    assert (await last_uses(pool))[0] == later


async def test_a_row_that_somebody_holds_is_written_later_and_keeps_no_other(
    api: Api, pool: AsyncConnectionPool
) -> None:
    held, free = await key_ids(api, pool, 2)
    at = utc_now()
    uses = KeyUses(pool)
    async with asyncio.timeout(60):
        async with pool.connection() as connection, connection.transaction():
            await connection.execute("SELECT FROM api_keys WHERE id = %s FOR UPDATE", (held,))
            for id in (held, free):
                uses.note(id, at=at)
            await uses.write_due()
            assert await last_uses(pool) == [None, at]
        await uses.write_due()
        assert await last_uses(pool) == [at, at]


async def test_what_is_noted_is_bounded_and_outlives_a_failure(
    api: Api, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await key_ids(api, pool, 3)
    monkeypatch.setattr(note_key_use, "REMEMBERED", 2)
    at = utc_now()
    uses = KeyUses(pool)
    for id in (*ids, ids[0]):
        uses.note(id, at=at)
    assert list(uses._uses) == ids[:2]
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE api_keys RENAME TO elsewhere")
        with pytest.raises(psycopg.Error):
            await uses.write_due()
        await connection.execute("ALTER TABLE elsewhere RENAME TO api_keys")
    await uses.write_due()
    assert await last_uses(pool) == [at, at, None]
