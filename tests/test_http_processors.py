"""Processors: configured, ranked and removed; their credentials never leave, and are unreadable at rest."""

import asyncio

import pytest
from calling import Api, Merchant
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

from payloops.commands.cipher import Cipher, SealBroken
from payloops.commands.credentials import get_processor_credentials, get_webhook_secrets
from payloops.events.timestamps import utc_now
from payloops.settings import Settings

STRIPE = {"secretKey": "sk_stripe_secret", "publishableKey": "pk", "webhookSecret": "whsec"}
RAZORPAY = {"keyId": "rzp_id", "keySecret": "rzp_secret"}


@pytest.fixture
async def merchant(api: Api) -> Merchant:
    return await api.merchant(processors=False)


@pytest.fixture
def cipher(settings: Settings) -> Cipher:
    return Cipher(secret=settings.encryption_key.get_secret_value())


async def test_a_processor_is_configured_both_ways(merchant: Merchant) -> None:
    one = await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": STRIPE})
    two = await merchant.dashboard.post(
        "/api/processors/razorpay",
        {"credentials": RAZORPAY, "priority": 7, "enabled": False, "testMode": False},
    )
    assert (one.status, two.status) == (200, 200)
    listed = await merchant.dashboard.get("/api/processors")
    assert listed.json == [one.json, two.json]
    assert set(one.json) == {"id", "processor", "enabled", "priority", "testMode", "createdAt", "updatedAt"}
    assert (one.json["enabled"], one.json["priority"]) == (True, 1)
    assert [two.json[name] for name in ("enabled", "priority", "testMode")] == [False, 7, False]


async def test_credentials_never_leave_and_are_unreadable_at_rest(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, cipher: Cipher
) -> None:
    answers = [
        await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": STRIPE}),
        await merchant.dashboard.get("/api/processors"),
        await merchant.dashboard.call("PATCH", "/api/processors/stripe", {"priority": 2}),
    ]
    assert all(b"secret" not in answer.raw for answer in answers)
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT credentials FROM processor_configs")).fetchall()
        states = await (await connection.execute("SELECT state FROM stored_events")).fetchall()
    stored = b"".join(bytes(value) for (value,) in [*rows, *states])
    assert STRIPE["secretKey"].encode() not in stored
    found = await get_processor_credentials(pool, merchant_id=merchant.id, processor="stripe", cipher=cipher)
    assert found is not None
    assert (found.credentials, found.test_mode) == (STRIPE, True)
    assert "secret" not in repr(found)
    other = await api.merchant(processors=False)
    for merchant_id, processor in ((other.id, "stripe"), (merchant.id, "razorpay"), (uuid7(), "stripe")):
        assert (
            await get_processor_credentials(pool, merchant_id=merchant_id, processor=processor, cipher=cipher)
            is None
        )


async def test_credentials_copied_to_another_merchant_cannot_be_opened(
    api: Api, merchant: Merchant, pool: AsyncConnectionPool, cipher: Cipher
) -> None:
    thief = await api.merchant()
    await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": STRIPE})
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE processor_configs SET credentials = (SELECT credentials FROM processor_configs"
            " WHERE merchant_id = %s) WHERE merchant_id = %s AND processor = 'stripe'",
            (merchant.id, thief.id),
        )
    with pytest.raises(SealBroken):
        await get_processor_credentials(pool, merchant_id=thief.id, processor="stripe", cipher=cipher)


def test_older_keys_still_open_what_they_sealed() -> None:
    old, new = "an older key, of enough characters", "a newer key, of enough characters"
    sealed = Cipher(secret=old).seal(b"plain", identity="table:1")
    both = Cipher(secret=new, older=[old])
    assert both.open(sealed, identity="table:1") == b"plain"
    with pytest.raises(SealBroken):
        both.open(sealed, identity="table:2")
    resealed = both.seal(b"plain", identity="table:1")
    assert resealed[1:5] != sealed[1:5]
    for secret, value in (
        (new, sealed),
        (old, resealed),
        (old, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (old, sealed[:20]),
        (old, sealed[:10]),
        (old, b"\x02" + sealed[1:]),
    ):
        with pytest.raises(SealBroken):
            Cipher(secret=secret).open(value, identity="table:1")


def test_what_is_stored_already_opens_and_nothing_is_sealed_with_a_nonce_twice() -> None:
    """Two values of one key and one nonce would give away both, and the key of the tags."""
    cipher = Cipher(secret="a key of tests, long enough to encrypt")
    stored = bytes.fromhex("0149bdebc245252b824d248f8a483e6aa7558cfd8f25dcb3129716d578f7c8d7510b78fe133c")
    assert cipher.open(stored, identity="table:1") == b"plain"
    assert stored.startswith(cipher.mark)
    sealed = {cipher.seal(b"plain", identity="table:1")[5:17] for _ in range(100)}
    assert len(sealed) == 100


async def test_configuring_again_replaces_the_whole(
    merchant: Merchant, pool: AsyncConnectionPool, cipher: Cipher
) -> None:
    first = await merchant.dashboard.post(
        "/api/processors", {"processor": "stripe", "credentials": STRIPE, "priority": 9}
    )
    second = await merchant.dashboard.post(
        "/api/processors", {"processor": "stripe", "credentials": {"secretKey": "new"}}
    )
    assert (second.json["id"], second.json["priority"]) == (first.json["id"], 1)
    assert second.json["createdAt"] == first.json["createdAt"]
    found = await get_processor_credentials(pool, merchant_id=merchant.id, processor="stripe", cipher=cipher)
    assert found is not None
    assert found.credentials == {"secretKey": "new"}


async def test_credentials_that_nobody_can_read_any_more_are_replaced_by_others(
    merchant: Merchant, pool: AsyncConnectionPool, cipher: Cipher
) -> None:
    """After a key is lost: the webhook secret until then is lost with it, and so is the one before."""
    former = STRIPE | {"webhookSecret": "whsec_of_before"}
    for credentials in (former, STRIPE):
        await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": credentials})
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE processor_configs SET credentials = reverse(credentials),"
            " previous_webhook_secret = reverse(previous_webhook_secret)"
        )
    new = {"secretKey": "sk_new", "webhookSecret": "whsec_new"}
    replaced = await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": new})
    assert replaced.status == 200
    found = await get_processor_credentials(pool, merchant_id=merchant.id, processor="stripe", cipher=cipher)
    assert found is not None
    assert found.credentials == new
    secrets = await get_webhook_secrets(
        pool, merchant_id=merchant.id, processor="stripe", cipher=cipher, at=utc_now()
    )
    assert secrets == ["whsec_new"]


async def test_a_change_keeps_what_it_does_not_name(
    merchant: Merchant, pool: AsyncConnectionPool, cipher: Cipher
) -> None:
    await merchant.dashboard.post(
        "/api/processors", {"processor": "stripe", "credentials": STRIPE, "priority": 9}
    )
    changed = await merchant.dashboard.call("PATCH", "/api/processors/stripe", {"enabled": False})
    assert [changed.json[name] for name in ("enabled", "priority")] == [False, 9]
    found = await get_processor_credentials(pool, merchant_id=merchant.id, processor="stripe", cipher=cipher)
    assert found is not None
    assert found.credentials == STRIPE


@pytest.mark.parametrize("name", ["enabled", "priority", "testMode"])
async def test_a_change_to_null_is_refused(merchant: Merchant, name: str) -> None:
    configured = await merchant.dashboard.post(
        "/api/processors", {"processor": "stripe", "credentials": STRIPE}
    )
    refused = await merchant.dashboard.call("PATCH", "/api/processors/stripe", {name: None})
    assert (refused.status, refused.code, refused.fields) == (400, "validation_error", {name})
    assert (await merchant.dashboard.get("/api/processors")).json == [configured.json]


async def test_a_change_to_what_it_is_already_leaves_no_fact(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    set_up = {"processor": "stripe", "credentials": STRIPE, "priority": 9}
    configured = (await merchant.dashboard.post("/api/processors", set_up)).json
    same = {"priority": 9, "enabled": configured["enabled"]}
    answer = await merchant.dashboard.call("PATCH", "/api/processors/stripe", same)
    assert (answer.status, answer.json) == (200, configured)
    async with pool.connection() as connection:
        found = await connection.execute("SELECT 1 FROM stored_events WHERE topic = 'processor.adjusted'")
        assert await found.fetchall() == []


async def test_a_removed_processor_is_gone_with_its_credentials(
    merchant: Merchant, pool: AsyncConnectionPool
) -> None:
    await merchant.dashboard.post("/api/processors", {"processor": "stripe", "credentials": STRIPE})
    removed = await merchant.dashboard.call("DELETE", "/api/processors/stripe")
    assert (removed.status, removed.raw) == (204, b"")
    assert (await merchant.dashboard.get("/api/processors")).json == []
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT 1 FROM processor_configs")).fetchall()
        topics = await (
            await connection.execute("SELECT topic FROM stored_events ORDER BY notification_id")
        ).fetchall()
    assert rows == []
    assert [topic for (topic,) in topics][-2:] == ["processor.configured", "processor.removed"]
    for method, body in (("DELETE", None), ("PATCH", {"enabled": True})):
        for name in ("stripe", "unheard-of"):
            answer = await merchant.dashboard.call(method, f"/api/processors/{name}", body)
            assert (answer.status, answer.code) == (404, "not_found")


async def test_a_configuration_that_does_not_fit_is_refused(
    subtests: pytest.Subtests, merchant: Merchant
) -> None:
    for body, field in [
        ({}, "credentials"),
        ({"credentials": {}}, "credentials.secretKey"),
        ({"credentials": {"secretKey": ""}}, "credentials.secretKey"),
        ({"credentials": {"secretKey": 5}}, "credentials.secretKey"),
        ({"credentials": {"secretKey": "sk_test_1\n"}}, "credentials.secretKey"),
        ({"credentials": {"secretKey": " sk_test_1"}}, "credentials.secretKey"),
        ({"credentials": {"secretKey": "sk_test\x7f_1"}}, "credentials.secretKey"),
        ({"credentials": {**STRIPE, "webhookSecret": "whsec\r\n"}}, "credentials.webhookSecret"),
        ({"credentials": {"secretKey": "x", "keyId": "x"}}, "credentials.keyId"),
        ({"credentials": STRIPE, "priority": 0}, "priority"),
        ({"credentials": STRIPE, "priority": 101}, "priority"),
        ({"credentials": STRIPE, "enabled": "yes"}, "enabled"),
        ({"credentials": STRIPE, "enabled": 1}, "enabled"),
        ({"credentials": "x"}, "credentials"),
        ({"credentials": STRIPE, "processor": "stripe"}, "processor"),
    ]:
        with subtests.test(body=body, field=field):
            answer = await merchant.dashboard.post("/api/processors/stripe", body)
            assert answer.fields == {field}


async def test_an_unheard_of_processor_is_refused(merchant: Merchant) -> None:
    by_path = await merchant.dashboard.post("/api/processors/paypal", {"credentials": {}})
    by_body = await merchant.dashboard.post("/api/processors", {"processor": "paypal", "credentials": {}})
    assert {(answer.status, answer.code) for answer in (by_path, by_body)} == {(400, "invalid_processor")}


async def test_adjustments_at_the_same_time_lose_nothing(merchant: Merchant) -> None:
    stripe = {"processor": "stripe", "credentials": {"secretKey": "sk_stripe"}}
    assert (await merchant.dashboard.post("/api/processors", stripe)).status == 200
    for number in range(2, 10):
        enabled = number % 2 == 0
        answers = await asyncio.gather(
            merchant.dashboard.call("PATCH", "/api/processors/stripe", {"enabled": enabled}),
            merchant.dashboard.call("PATCH", "/api/processors/stripe", {"priority": number}),
        )
        assert [answer.status for answer in answers] == [200, 200]
        [kept] = (await merchant.dashboard.get("/api/processors")).json
        assert (kept["enabled"], kept["priority"]) == (enabled, number)


async def test_a_processor_that_is_removed_while_it_is_adjusted_is_adjusted_before_or_not_found(
    merchant: Merchant,
) -> None:
    stripe = {"processor": "stripe", "credentials": {"secretKey": "sk_stripe"}}
    for number in range(1, 21):
        assert (await merchant.dashboard.post("/api/processors", stripe)).status == 200
        removed, *adjusted = await asyncio.gather(
            merchant.dashboard.call("DELETE", "/api/processors/stripe"),
            *(
                merchant.dashboard.call("PATCH", "/api/processors/stripe", {"priority": number})
                for _ in range(3)
            ),
        )
        assert removed.status == 204
        assert {answer.status for answer in adjusted} <= {200, 404}
        assert (await merchant.dashboard.get("/api/processors")).json == []
