"""API keys: shown once, verified once, refused soon after they end."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from calling import Api, Caller, running_api
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands import authenticate_api_key
from payloops.commands.api_keys import make_key
from payloops.commands.authenticate_api_key import ApiKeyGate, InvalidApiKey, TooManyGuesses
from payloops.commands.hashing import Hasher
from payloops.events.timestamps import timestamp_text, utc_now
from payloops.settings import Environment, Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


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


async def test_a_revoked_key_is_refused_within_a_second_in_every_process(settings: Settings) -> None:
    async with running_api(settings) as one, running_api(settings) as two:
        merchant = await one.merchant(processors=False)
        elsewhere = Caller(two.anyone.session, merchant.shop.headers)
        for shop in (merchant.shop, elsewhere):
            assert (await shop.get("/v1/orders?status=failed")).status == 200
        [key] = (await merchant.dashboard.get("/api/api-keys")).json
        revoked = await merchant.dashboard.call("DELETE", f"/api/api-keys/{key['id']}")
        assert (revoked.status, revoked.raw) == (204, b"")
        await asyncio.sleep(1)
        for shop in (merchant.shop, elsewhere):
            assert (await shop.get("/v1/orders?status=failed")).status == 401
        again = await merchant.dashboard.call("DELETE", f"/api/api-keys/{key['id']}")
        assert (again.status, again.code) == (404, "not_found")
        assert (await merchant.dashboard.get("/api/api-keys")).json == []


async def test_a_key_is_refused_from_the_moment_it_expires(api: Api) -> None:
    merchant = await api.merchant(processors=False)
    expires_at = utc_now() + timedelta(seconds=1)
    issued = await merchant.dashboard.post(
        "/api/api-keys", {"name": "short", "expiresAt": timestamp_text(expires_at)}
    )
    assert issued.status == 201, issued.raw
    assert issued.json["apiKey"]["expiresAt"] == timestamp_text(expires_at)
    shop = merchant.shop.with_headers(**{"X-API-Key": issued.json["secret"]})
    assert (await shop.get("/v1/orders/x")).status == 404
    while utc_now() < expires_at:
        await asyncio.sleep(0.005)
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
    """A hasher that tells how often it was asked to check, and takes a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(rounds=4)
        self.checks = 0
        self.seconds = seconds

    async def matches(self, secret: str, hashed: str | None) -> bool:
        self.checks += 1
        await asyncio.sleep(self.seconds)
        return await super().matches(secret, hashed)


async def test_bcrypt_checks_a_key_once_also_for_many_requests_at_once(
    api: Api, pool: AsyncConnectionPool
) -> None:
    key = (await api.merchant(processors=False)).shop.headers["X-API-Key"]
    async with CountingHasher(seconds=0.05) as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        await asyncio.gather(*(gate.authenticate(key) for _ in range(50)))
        await gate.authenticate(key)
        assert keys.checks == 1


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
        assert keys.checks == 2


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
    async with CountingHasher(seconds=0.1) as keys:
        gate = ApiKeyGate(pool, keys=keys, mode="test")
        prefix = target[:-32]
        guesses = [asyncio.create_task(gate.authenticate(prefix + f"{n:032}")) for n in range(200)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.5):
            await gate.authenticate(other)
        refusals = await asyncio.gather(*guesses, return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {InvalidApiKey, TooManyGuesses}
        assert keys.checks <= authenticate_api_key.WRONG_AT_A_TIME + 1
        await gate.authenticate(target)


async def test_use_of_a_key_is_noted(api: Api) -> None:
    merchant = await api.merchant(processors=False)
    [unused] = (await merchant.dashboard.get("/api/api-keys")).json
    await merchant.shop.get("/v1/orders/x")
    [used] = (await merchant.dashboard.get("/api/api-keys")).json
    assert unused["lastUsedAt"] is None
    assert used["lastUsedAt"].endswith("Z")
