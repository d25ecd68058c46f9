"""Connections to PostgreSQL: what is said where there is none left, and how many a process takes."""

import asyncio
import gc
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from calling import PASSWORD, running_api
from pooling import Mode, pooling
from processes import run_command
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from pydantic import SecretStr
from standby import COPYING, standby_of

from payloops.embedded import EmbeddedServers, postgres
from payloops.embedded.binaries import find_postgres
from payloops.events import connections
from payloops.events.connections import NoUsableConnection, TooManyConnections, connect, one_line
from payloops.events.pools import connection_pool
from payloops.settings import Settings

FROM_17 = 170_000
"""PostgreSQL that can limit how long a transaction takes."""
REMEDY = "PostgreSQL has no connection left: lower DATABASE_POOL_SIZE, "


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """A PostgreSQL with five connections, three of which are for superusers."""
    directory = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"max_connections": "5", "max_wal_senders": "0"}.items():
            patch.setitem(postgres.TUNING, name, value)
        servers = EmbeddedServers(data_dir=directory, ephemeral=True, parts=("postgres",))
        servers.start()
    try:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
            connection.execute("CREATE ROLE nobody LOGIN PASSWORD 'nobody' CONNECTION LIMIT 0")
        yield servers
    finally:
        servers.stop()


@pytest.mark.parametrize(
    ("role", "held", "said"),
    [("nobody", 0, "for role"), ("plain", 2, "are reserved"), ("payloops", 5, "too many clients")],
)
async def test_who_is_not_let_in_any_more_is_told_what_to_do(
    small: EmbeddedServers,
    settings: Settings,
    role: str,
    held: int,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In one line, whatever PostgreSQL calls it: by a connection, a pool, and every command."""
    url = small.database_url
    if role != "payloops":
        url = re.sub("//.*@", f"//{role}:{role}@", url)
    with ExitStack() as stack:
        for _ in range(held):
            stack.enter_context(psycopg.connect(small.database_url))
        with pytest.raises(psycopg.OperationalError, match=said):
            psycopg.connect(url)
        with pytest.raises(TooManyConnections, match=REMEDY):
            await connect(url, application_name="test")
        pool = connection_pool(url, size=2, application_name="test")
        await pool.open()
        async with asyncio.timeout(60):
            while REMEDY not in caplog.text:
                await asyncio.sleep(0.01)
        await pool.close()
        own = Settings.model_validate(
            {**settings.model_dump(), "database_url": url, "database_patience": 0.5}
        )
        async with running_api(own) as api:
            refused = await api.anyone.post(
                "/api/auth/login", {"email": "a@example.com", "password": PASSWORD}
            )
            assert (refused.status, refused.code) == (503, "unavailable")
            assert refused.headers["Retry-After"]
        for command in (("migrate",), ("projections", "status")):
            status, out, err = await run_command(own, *command)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert err.startswith(f"payloops: {REMEDY}")


COUNT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def test_a_process_of_the_api_takes_its_pool_and_seven_more(settings: Settings) -> None:
    """The sum of connections in docs/operating.md is right: four processes and the others fit into a hundred."""
    database_url = settings.database_url.get_secret_value()
    async with running_api(settings) as api, await connect(database_url, application_name="test") as counting:
        merchant = await api.merchant()

        async def shop() -> None:
            path = f"/v1/orders/{await merchant.order()}"
            await merchant.shop.post(f"{path}/pay", {})
            await asyncio.gather(
                *(merchant.shop.get(each) for each in (path, f"{path}/transactions", "/v1/orders")),
                *(merchant.dashboard.get(each) for each in ("/api/merchants/me", "/api/orders")),
            )

        # A process makes a connection when it is needed: what it opens at the most has to be asked for at once.
        async with asyncio.timeout(60):
            while (most := await _count(counting)) < settings.database_pool_size + 7:
                await asyncio.gather(*(shop() for _ in range(12)))
        await asyncio.gather(*(shop() for _ in range(12)))
        assert await _count(counting) == most == settings.database_pool_size + 7


async def _count(connection: psycopg.AsyncConnection[TupleRow]) -> int:
    [[number]] = await (await connection.execute(COUNT)).fetchall()
    return int(number)


async def test_a_connection_that_is_given_up_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled server keeps a slot for each client in its queue, until the socket of one that gave up is closed."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 2)
    closed = asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()
        writer.close()

    gc.disable()
    try:
        async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as server, asyncio.timeout(20):
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                await connect(f"postgresql://payloops@127.0.0.1:{port}/payloops", application_name="test")
            await closed.wait()
    finally:
        gc.enable()


async def test_who_is_cancelled_while_connections_are_looked_at_is_cancelled(database_url: str) -> None:
    """A process that ends just after its database came back would go on listening for ever."""
    pool = connection_pool(database_url, size=1, application_name="test")
    async with pool:
        await pool.wait()
        checking = asyncio.create_task(pool.check())
        await asyncio.sleep(0)
        checking.cancel()
        assert await asyncio.wait({checking}, timeout=10) == ({checking}, set())
        assert checking.cancelled()
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")


@pytest.mark.parametrize(
    "named",
    [
        "postgresql://{user}:{password}@127.0.0.1:1,127.0.0.1:{port}/{dbname}",
        "host=127.0.0.1 port={port} user={user} password={password} dbname={dbname}",
    ],
)
async def test_every_command_takes_what_libpq_takes_for_the_name_of_a_database(
    settings: Settings, named: str
) -> None:
    """Several hosts, the first of which is down, and keywords."""
    url = named.format(**conninfo_to_dict(settings.database_url.get_secret_value()))
    for command in (("migrate",), ("projections", "status")):
        status, _, err = await run_command(
            settings.model_copy(update={"database_url": SecretStr(url)}), *command
        )
        assert (status, err) == (0, "")


@pytest.mark.skipif(not (find_postgres() / COPYING).exists(), reason=f"there is no {COPYING}")
async def test_a_standby_is_passed_over_unless_it_is_asked_for(tmp_path: Path) -> None:
    """It would refuse whatever is written, and be asked again and again after the primary was away for a moment."""
    with EmbeddedServers(data_dir=tmp_path / "primary", ephemeral=True, parts=["postgres"]) as primary:
        standby = standby_of(primary, data_dir=tmp_path / "standby", ephemeral=True)
        try:
            await _passes_over(standby, primary)
        finally:
            standby.stop()


async def _passes_over(standby: EmbeddedServers, primary: EmbeddedServers) -> None:
    user, _, there = primary.database_url.partition("@")
    both = f"{user}@127.0.0.1:{standby.postgres.port},{there}"
    async with await connect(both, application_name="test") as connection:
        assert connection.info.port == primary.postgres.port
    with pytest.raises(psycopg.OperationalError, match="hot standby"):
        await connect(standby.database_url, application_name="test")
    asked_for = f"{standby.database_url}?target_session_attrs=any"
    async with await connect(asked_for, application_name="test") as connection:
        assert connection.info.port == standby.postgres.port


async def test_what_an_operator_set_for_the_database_changes_nothing(settings: Settings) -> None:
    """Dates that look otherwise, stricter isolation, sessions and waits that end soon: the service sets its own."""
    url = settings.database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in (
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'sql_standard'",
            "timezone = 'America/St_Johns'",
            "client_encoding = 'LATIN1'",
            "default_transaction_isolation = 'serializable'",
            "lock_timeout = '1ms'",
            "statement_timeout = '1ms'",
            "idle_session_timeout = '1ms'",
            "idle_in_transaction_session_timeout = '1ms'",
            "standard_conforming_strings = off",
            *(["transaction_timeout = '1s'"] if connection.info.server_version >= FROM_17 else []),
        ):
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting}")
    async with await connect(url, application_name="test") as session:
        assert await shown(session, "transaction_isolation") == "read committed"
        if session.info.server_version >= FROM_17:
            assert await shown(session, "transaction_timeout") == "0"
    async with running_api(settings) as api:
        merchant = await api.merchant()
        profile = await merchant.dashboard.get("/api/merchants/me")
        orders = await asyncio.gather(
            *(merchant.order(currency="EUR", description="☕") for _ in range(20)),
        )
        read = [await merchant.shop.get(f"/v1/orders/{order}") for order in orders]
    status, _, err = await run_command(settings, "projections", "rebuild", "--workers", "1")
    assert status == 0, err
    assert profile.status == 200
    assert [order.json["description"] for order in read] == ["☕"] * len(orders)


async def test_behind_a_pooler_that_keeps_sessions_they_are_set_up_all_the_same(
    settings: Settings, database_url: str
) -> None:
    """It ignores what a session starts with. What an operator set for the database would hold instead."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
        for setting in ("search_path = elsewhere", "default_transaction_isolation = 'serializable'"):
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting}")
    names = [*connections.SESSION, *connections.TIMEOUTS]
    async with await connect(database_url, application_name="test") as session:
        direct = [await shown(session, name) for name in names]
    async with pooling(database_url, Mode.SESSION) as url:
        async with await connect(url, application_name="test") as session:
            assert [await shown(session, name) for name in names] == direct
        pooled = settings.model_copy(update={"database_url": SecretStr(url)})
        async with running_api(pooled) as api:
            merchant = await api.merchant()
            orders = [await merchant.order() for _ in range(3)]
            assert [(await merchant.shop.get(f"/v1/orders/{id}")).status for id in orders] == [200] * 3
        for command in (["migrate"], ["projections", "rebuild", "--workers", "1"], ["projections", "verify"]):
            status, _, err = await run_command(pooled, *command)
            assert status == 0, err
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM public.orders").fetchone() == (3,)


@pytest.mark.parametrize("mode", [Mode.TRANSACTION, Mode.REFUSES_OPTIONS])
async def test_a_pooler_behind_which_locks_and_settings_would_be_lost_is_refused(
    settings: Settings, database_url: str, mode: Mode
) -> None:
    """By each connection, and by commands in one line that says what helps."""
    async with pooling(database_url, mode) as url:
        for _ in range(2):
            with pytest.raises(NoUsableConnection, match="pool_mode = session"):
                await connect(url, application_name="test")
        pooled = settings.model_copy(update={"database_url": SecretStr(url)})
        for command in (["migrate"], ["projections", "status"]):
            status, out, err = await run_command(pooled, *command)
            assert (status, out) == (1, "")
            assert re.fullmatch("payloops: the pooler before PostgreSQL .*pool_mode = session.*\n", err)


async def test_who_waits_for_a_session_in_vain_is_told_where(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 1)
    async with pooling(database_url, Mode.FULL) as url:
        with pytest.raises(psycopg.errors.ConnectionTimeout, match="default_pool_size"):
            await connect(url, application_name="test")


async def shown(connection: psycopg.AsyncConnection[TupleRow], name: str) -> str:
    row = await (await connection.execute(f"SHOW {name}".encode())).fetchone()
    assert row is not None
    return str(row[0])


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert one_line(TimeoutError()) == "TimeoutError"
    assert one_line(TimeoutError("no answer")) == "TimeoutError: no answer"


async def test_migrators_at_once_wait_for_each_other_as_long_as_it_takes(
    settings: Settings, servers: EmbeddedServers
) -> None:
    """And make the tables in the one schema in which all look for them."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE impatient")
        for setting in ("lock_timeout = '1ms'", "statement_timeout = '1ms'", "search_path = shop, public"):
            connection.execute(f"ALTER DATABASE impatient SET {setting}")
    url = f"{servers.database_url.rpartition('/')[0]}/impatient?options=-c%20work_mem%3D16MB"
    own = settings.model_copy(update={"database_url": SecretStr(url)})
    async with await connect(url, application_name="test") as session:
        await session.execute("CREATE SCHEMA shop")
        work_mem = await session.execute("SHOW work_mem")
        assert await work_mem.fetchone() == ("16MB",)
    for status, _, err in await asyncio.gather(*(run_command(own, "migrate") for _ in range(2))):
        assert (status, err) == (0, "")
    status, _, err = await run_command(own, "projections", "verify")
    assert status == 0, err


async def test_a_database_in_another_encoding_is_not_migrated(
    settings: Settings, servers: EmbeddedServers
) -> None:
    """A PostgreSQL that was set up with LANG=C makes them in SQL_ASCII, which takes any bytes for text."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
    url = f"{servers.database_url.rpartition('/')[0]}/ascii"
    own = settings.model_copy(update={"database_url": SecretStr(url)})
    assert await run_command(own, "migrate") == (
        1,
        "",
        "payloops: migration: the database is in SQL_ASCII: create it anew, WITH TEMPLATE template0 ENCODING 'UTF8'\n",
    )
