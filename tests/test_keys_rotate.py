"""A new encryption key: everything that is sealed is moved to it while the service runs."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from calling import Api, Merchant, running_api
from processes import run_command
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

from payloops.commands import rotate_keys as rotation
from payloops.commands.cipher import Cipher, SealBroken
from payloops.commands.client_secrets import ClientSecrets
from payloops.commands.credentials import get_processor_credentials, get_webhook_secrets
from payloops.commands.rotate_keys import OF_MERCHANTS, SEALED, KeyUsage, RotatedBatch, key_usage, rotate_keys
from payloops.commands.webhook_secrets import get_webhook_secret
from payloops.daemons.start_checks import check_at_start, opens_nothing
from payloops.events.timestamps import utc_now
from payloops.settings import InvalidSettings, Settings, read_settings
from payloops.wiring import make_audit_keys

NEW = "a newer key of tests, long enough to encrypt"


@pytest.fixture
def old(settings: Settings) -> str:
    return settings.encryption_key.get_secret_value()


@pytest.fixture
def cipher(old: str) -> Cipher:
    """With the new key, and the old one beside it."""
    return Cipher(secret=NEW, older=[old])


def moved(settings: Settings) -> Settings:
    """Settings of a process that has the new key, and opens what the old one sealed."""
    return settings.model_copy(
        update={
            "encryption_key": SecretStr(NEW),
            "encryption_keys_older": (settings.encryption_key,),
        }
    )


async def rotate(pool: AsyncConnectionPool, cipher: Cipher) -> tuple[int, list[str]]:
    batches = [batch async for batch in rotate_keys(pool, cipher=cipher)]
    unreadable = [identity for batch in batches for identity in batch.unreadable]
    return sum(batch.rotated for batch in batches), unreadable


async def fill(api: Api, pool: AsyncConnectionPool, *, key: str) -> Merchant:
    """Every sealed column has a value."""
    merchant = await api.merchant()
    for secret in ("whsec_1", "whsec_2"):
        answer = await merchant.dashboard.post(
            "/api/processors/stripe", {"credentials": {"secretKey": "sk", "webhookSecret": secret}}
        )
        assert answer.status == 200
    path = "/api/merchants/me/webhook-secret"
    assert (await merchant.dashboard.get(path)).status == 200
    assert (await merchant.dashboard.call("POST", f"{path}/rotate")).status == 200
    secrets = ClientSecrets(pool, Cipher(secret=key))
    await secrets.keep(order_id=merchant.id, attempt=1, secret="a client secret")
    return merchant


async def everything(pool: AsyncConnectionPool, merchant_id: UUID, cipher: Cipher) -> list[object]:
    """What is sealed for a merchant, opened."""
    now = utc_now()
    webhook = await get_webhook_secret(pool, merchant_id=merchant_id, cipher=cipher, now=now)
    credentials = [
        await get_processor_credentials(pool, merchant_id=merchant_id, processor=processor, cipher=cipher)
        for processor in ("stripe", "razorpay")
    ]
    return [
        [found.credentials for found in credentials if found is not None],
        await get_webhook_secrets(pool, merchant_id=merchant_id, processor="stripe", cipher=cipher, at=now),
        (webhook.secret, webhook.previous_secret),
        await ClientSecrets(pool, cipher).find(order_id=merchant_id, attempt=1),
    ]


async def test_everything_sealed_opens_with_the_new_key_alone_and_is_what_it_was(
    settings: Settings, pool: AsyncConnectionPool, old: str, cipher: Cipher
) -> None:
    async with running_api(settings) as api:
        merchants = [(await fill(api, pool, key=old)).id for _ in range(3)]
    before = [await everything(pool, id, Cipher(secret=old)) for id in merchants]
    for each in before:
        assert len(each[1]) == 2  # type: ignore[arg-type]
    usage = await key_usage(pool, cipher=cipher)
    assert [each.column for each in usage] == [each.name for each in SEALED]
    assert all(each.present == 0 and each.older >= 3 for each in usage)
    rotated, unreadable = await rotate(pool, cipher)
    assert (rotated, unreadable) == (sum(each.older for each in usage), [])
    assert [await everything(pool, id, Cipher(secret=NEW)) for id in merchants] == before
    with pytest.raises(SealBroken):
        await everything(pool, merchants[0], Cipher(secret=old))
    after = await key_usage(pool, cipher=cipher)
    assert after == [KeyUsage(column=each.column, present=each.older, older=0) for each in usage]
    assert await rotate(pool, cipher) == (0, [])


async def test_keys_that_do_not_open_what_is_stored_are_told_of_at_start(
    settings: Settings, pool: AsyncConnectionPool, old: str, cipher: Cipher
) -> None:
    async def told(cipher: Cipher) -> list[object]:
        with capture_logs() as lines:
            await check_at_start(pool, cipher=cipher, audit_keys=make_audit_keys(settings))
        assert {line["log_level"] for line in lines} == {"error"}
        wrong = [line for line in lines if line["event"] == "encryption_key.wrong"]
        return [(line["column"], line["unreadable"], line["of"]) for line in wrong]

    alone = settings.model_copy(update={"encryption_key": SecretStr(NEW)})
    assert await told(Cipher(secret=NEW)) == []
    assert not await opens_nothing(pool, Cipher(secret=NEW))
    async with running_api(settings) as api:
        await fill(api, pool, key=old)
    assert await told(Cipher(secret=old)) == await told(cipher) == []
    usage = await key_usage(pool, cipher=cipher, columns=OF_MERCHANTS)
    assert all(each.older and not each.unknown for each in usage)
    assert await told(Cipher(secret=NEW)) == [(each.column, each.older, each.older) for each in usage]
    assert await opens_nothing(pool, Cipher(secret=NEW))
    assert not await opens_nothing(pool, cipher)
    async with running_api(alone) as api:  # merchants replace what is lost
        await fill(api, pool, key=NEW)
    assert await told(Cipher(secret=NEW)) == [(each.column, each.older, 2 * each.older) for each in usage]
    assert not await opens_nothing(pool, Cipher(secret=NEW))


async def test_rotation_knows_every_column_of_bytes(pool: AsyncConnectionPool) -> None:
    """A new one is sealed, and named in `SEALED`, or it is none of these."""
    plain = {
        *("stored_events.state", "stored_events.content_hash", "stored_events.mac"),
        *("personal_keys.key", "personal_keys.customer_digest", "personal_keys.email_digest"),
        *("idempotency_keys.fingerprint", "idempotency_keys.response_body"),
        *("seals.previous", "seals.root", "seals.leaves", "seals.signature"),
    }
    async with pool.connection() as connection:
        rows = await (
            await connection.execute(
                "SELECT table_name || '.' || column_name FROM information_schema.columns"
                " JOIN information_schema.tables USING (table_schema, table_name)"
                " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND data_type = 'bytea'"
            )
        ).fetchall()
    assert {name for (name,) in rows} == plain | {each.name for each in SEALED}


async def some_client_secrets(pool: AsyncConnectionPool, key: str, count: int) -> list[UUID]:
    orders = [uuid7() for _ in range(count)]
    secrets = ClientSecrets(pool, Cipher(secret=key))
    for order in orders:
        for attempt in (1, 2):
            await secrets.keep(order_id=order, attempt=attempt, secret=f"{order} {attempt}")
    return orders


def test_every_secret_is_sealed_for_its_own_row_alone() -> None:
    """One that was copied to another row is of no use there."""
    of_table: dict[str, str] = {}
    for each in SEALED:
        key = {name: uuid7() for name in each.key}
        identity = each.identity(**key)
        for name in each.key:
            assert each.identity(**{**key, name: uuid7()}) != identity, (each.name, name)
        kind = each.identity(**dict.fromkeys(each.key, 0))
        assert of_table.setdefault(kind, each.table) == each.table


async def test_an_interrupted_rotation_goes_on_where_it_stopped(
    pool: AsyncConnectionPool, old: str, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 7)
    orders = await some_client_secrets(pool, old, 20)
    rotating = rotate_keys(pool, cipher=cipher)
    assert await anext(rotating) == RotatedBatch(column="client_secrets.secret", rotated=7, unreadable=())
    await anext(rotating)
    assert isinstance(rotating, AsyncGenerator)
    await rotating.aclose()
    [usage] = [each for each in await key_usage(pool, cipher=cipher) if each.older]
    assert (usage.present, usage.older) == (14, 26)
    for order in orders:  # meanwhile everything can be read
        assert await ClientSecrets(pool, cipher).find(order_id=order, attempt=1) == f"{order} 1"
    assert await rotate(pool, cipher) == (26, [])
    for order in orders:
        for attempt in (1, 2):
            secrets = ClientSecrets(pool, Cipher(secret=NEW))
            assert await secrets.find(order_id=order, attempt=attempt) == f"{order} {attempt}"


async def test_several_rotations_at_once_do_the_work_once(
    pool: AsyncConnectionPool, old: str, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 5)
    await some_client_secrets(pool, old, 30)
    outcomes = await asyncio.gather(*(rotate(pool, cipher) for _ in range(4)))
    assert sum(rotated for rotated, _ in outcomes) == 60
    assert all(each.older == 0 for each in await key_usage(pool, cipher=cipher))


async def test_what_no_key_opens_is_told_and_left_as_it_is(
    pool: AsyncConnectionPool, old: str, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 3)
    orders = await some_client_secrets(pool, old, 5)
    lost = (await some_client_secrets(pool, "a key that nobody has any more, long enough", 1))[0]
    moved_row = orders[2]
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE client_secrets SET secret = (SELECT secret FROM client_secrets WHERE order_id = %s"
            " AND attempt = 1) WHERE order_id = %s AND attempt = 1",
            (orders[1], moved_row),
        )
        before = await client_secret(connection, moved_row)
    rotated, unreadable = await rotate(pool, cipher)
    assert rotated == 9
    assert sorted(unreadable) == sorted(
        [f"client_secrets:{moved_row}:1", f"client_secrets:{lost}:1", f"client_secrets:{lost}:2"]
    )
    async with pool.connection() as connection:
        assert await client_secret(connection, moved_row) == before


async def client_secret(connection: psycopg.AsyncConnection[TupleRow], order_id: UUID) -> bytes:
    cursor = await connection.execute(
        "SELECT secret FROM client_secrets WHERE order_id = %s AND attempt = 1", (order_id,)
    )
    row = await cursor.fetchone()
    assert row is not None
    return bytes(row[0])


async def test_a_value_that_is_replaced_meanwhile_is_never_lost(
    settings: Settings, pool: AsyncConnectionPool, old: str, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merchants replace credentials all the time, by processes that have the new key and by one that has not."""
    monkeypatch.setattr(rotation, "BATCH", 2)
    both = settings.model_copy(update={"encryption_keys_older": (SecretStr(NEW),)})
    async with running_api(both) as former, running_api(moved(settings)) as present:
        merchants = [await former.merchant() for _ in range(4)]
        ended = asyncio.Event()
        written: dict[UUID, str] = {}

        async def replace(merchant: Merchant, api: Api) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                secret = f"sk_{merchant.id}_{number}"
                answer = await api.anyone.call(
                    "POST",
                    "/api/processors/stripe",
                    {"credentials": {"secretKey": secret, "webhookSecret": f"whsec_{number}"}},
                    headers=merchant.dashboard.headers,
                )
                assert answer.status == 200, answer.raw
                written[merchant.id] = secret

        replacing = [
            asyncio.create_task(replace(merchant, (former, present)[index % 2]))
            for index, merchant in enumerate(merchants)
        ]
        for _ in range(15):
            _, unreadable = await rotate(pool, cipher)
            assert unreadable == []
        ended.set()
        await asyncio.gather(*replacing)
    await rotate(pool, cipher)
    for merchant in merchants:
        found = await get_processor_credentials(
            pool, merchant_id=merchant.id, processor="stripe", cipher=Cipher(secret=NEW)
        )
        assert found is not None
        assert found.credentials["secretKey"] == written[merchant.id]


async def test_a_row_that_somebody_holds_is_waited_for_and_then_as_they_left_it(
    settings: Settings, pool: AsyncConnectionPool, old: str, cipher: Cipher
) -> None:
    [order] = await some_client_secrets(pool, old, 1)
    async with asyncio.timeout(10):
        async with pool.connection() as connection, connection.transaction():
            identity = f"client_secrets:{order}:1"
            await connection.execute(
                "UPDATE client_secrets SET secret = %s WHERE order_id = %s AND attempt = 1",
                (Cipher(secret=NEW).seal(b"another", identity=identity), order),
            )
            rotating = asyncio.create_task(rotate(pool, cipher))
            await asyncio.sleep(0.2)
            assert not rotating.done()
        assert await rotating == (1, [])
    assert await ClientSecrets(pool, Cipher(secret=NEW)).find(order_id=order, attempt=1) == "another"


async def test_the_service_runs_on_through_all_steps(
    settings: Settings, pool: AsyncConnectionPool, cipher: Cipher, old: str
) -> None:
    async with running_api(settings) as api:
        merchant = await fill(api, pool, key=old)
    path = "/api/merchants/me/webhook-secret"
    both = settings.model_copy(update={"encryption_keys_older": (SecretStr(NEW),)})
    alone = settings.model_copy(update={"encryption_key": SecretStr(NEW)})
    secrets = set()
    for step in (settings, both, moved(settings), alone):
        async with running_api(step) as api:
            caller = api.anyone.with_headers(**merchant.dashboard.headers)
            shown = await caller.get(path)
            assert shown.status == 200
            secrets.add((shown.json["secret"], shown.json["previousSecret"]))
            if step is not settings and step is not both:
                assert (await rotate(pool, cipher))[1] == []
    assert len(secrets) == 1


async def command(settings: Settings, *arguments: str, **environment: str) -> tuple[int, str, str]:
    return await run_command(settings, "keys", *arguments, environment=environment)


async def test_the_command_rotates_tells_how_far_it_came_and_may_run_again(
    settings: Settings, pool: AsyncConnectionPool, old: str
) -> None:
    await some_client_secrets(pool, old, 150)
    keys = {"ENCRYPTION_KEY": NEW, "ENCRYPTION_KEYS_OLDER": json.dumps(["x" * 40, old])}
    status, out, err = await command(settings, "status", "--json", **keys)
    assert status == 1, err
    usage = {each["column"]: each for each in json.loads(out)["columns"]}
    assert usage["client_secrets.secret"] == {
        "column": "client_secrets.secret",
        "present": 0,
        "older": 300,
        "unknown": 0,
    }
    status, out, err = await command(settings, "rotate", "--json", **keys)
    assert status == 0, err
    report = json.loads(out)
    assert (report["rotated"], report["unreadable"]) == (300, [])
    assert "client_secrets.secret: 300 of 300" in err
    again = await command(settings, "rotate", **keys)
    assert again[0] == 0
    assert "re-encrypted 0 values with ENCRYPTION_KEY" in again[1]
    status, shown, _ = await command(settings, "status", COLUMNS="80", **keys)
    assert (status, shown.count("\n")) == (0, len(usage) + 2)  # no line is wrapped
    narrow = (await command(settings, "status", COLUMNS="40", **keys))[1]
    assert [line for line in narrow.splitlines() if not line.startswith("   ")] == list(usage)
    for text in (out, err, again[1], again[2]):
        assert NEW not in text
        assert old not in text


async def test_the_command_says_what_it_cannot_open(
    settings: Settings, pool: AsyncConnectionPool, old: str
) -> None:
    [order] = await some_client_secrets(pool, old, 1)
    keys = {"ENCRYPTION_KEY": NEW, "ENCRYPTION_KEYS_OLDER": ""}
    status, out, _ = await command(settings, "rotate", **keys)
    assert status == 1
    assert f"no key opens what is sealed for client_secrets:{order}:1" in out
    status, out, err = await command(settings, "status", "--json", **keys)
    assert status == 1, err
    [shown] = [each for each in json.loads(out)["columns"] if each["column"] == "client_secrets.secret"]
    assert (shown["present"], shown["older"], shown["unknown"]) == (0, 0, 2)
    keys["ENCRYPTION_KEYS_OLDER"] = "short"
    status, out, err = await command(settings, "rotate", **keys)
    assert (status, out) == (2, "")
    assert err == "payloops: ENCRYPTION_KEYS_OLDER.0: must have at least 32 characters\n"


@pytest.mark.parametrize("older", ["short", f"{'x' * 40},short", '["short"]', "[", "[1]"])
def test_an_older_key_that_is_none_is_refused_at_start(settings: Settings, older: str) -> None:
    with pytest.raises(InvalidSettings, match="ENCRYPTION_KEYS_OLDER"):
        read_settings(Settings, **{**settings.model_dump(), "encryption_keys_older": older})


def test_older_keys_are_separated_by_commas(settings: Settings) -> None:
    read = read_settings(
        Settings, **{**settings.model_dump(), "encryption_keys_older": f" {'x' * 40} ,{'y' * 40},"}
    )
    assert [key.get_secret_value() for key in read.encryption_keys_older] == ["x" * 40, "y" * 40]
    assert "x" * 40 not in repr(read)


async def test_a_previous_secret_that_no_longer_counts_is_rotated_too(
    settings: Settings, pool: AsyncConnectionPool, old: str, cipher: Cipher
) -> None:
    async with running_api(settings) as api:
        merchant = await fill(api, pool, key=old)
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE webhook_secrets SET previous_expires_at = %s", (utc_now() - timedelta(days=1),)
        )
    await rotate(pool, cipher)
    assert all(each.older == 0 for each in await key_usage(pool, cipher=cipher))
    found = await get_webhook_secret(
        pool, merchant_id=merchant.id, cipher=Cipher(secret=NEW), now=utc_now() - timedelta(days=2)
    )
    assert found.previous_secret is not None
