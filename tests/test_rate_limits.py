"""How often passwords may be tried: per address and per account, in all processes together, and without Redis."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest
import structlog
from aiohttp.test_utils import make_mocked_request
from calling import PASSWORD, Answer, Api, running_api
from limits import parse_many
from multidict import CIMultiDict
from pydantic import SecretStr
from redis.asyncio import Redis

from payloops.embedded import EmbeddedServers
from payloops.http import rate_limits
from payloops.http.app import ROUTES
from payloops.http.rate_limits import LOCAL_DIVISOR, LocalWindows, client_address, fold_case
from payloops.settings import InvalidSettings, Settings, read_settings

OPERATING = Path(__file__).resolve().parent.parent / "docs/operating.md"
WRONG = "wrong password"


async def try_password(api: Api, email: str, *, forwarded: str | None = None) -> Answer:
    headers = {"X-Forwarded-For": forwarded} if forwarded is not None else {}
    return await api.anyone.post("/api/auth/login", {"email": email, "password": WRONG}, **headers)


async def test_an_account_is_tried_so_often_and_again_when_the_answer_said(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "2/2 seconds"})) as api:
        while True:
            first = time.time()
            for _ in range(2):
                assert (await try_password(api, "a@example.com")).code == "invalid_credentials"
            refused = await try_password(api, "a@example.com")
            answered = time.time()
            if refused.status == 429 or answered < first + 2:
                break
            await asyncio.sleep(2)  # the machine stood still for longer than the window: from the start
        assert (refused.status, refused.code) == (429, "rate_limit")
        seconds = int(refused.headers["Retry-After"])
        assert math.ceil(first + 2 - answered) <= seconds <= 3
        assert (await try_password(api, "b@example.com")).status == 401
        await asyncio.sleep(seconds)
        assert (await try_password(api, "a@example.com")).status == 401


async def test_an_account_is_the_same_in_whatever_case(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "3/minute"})) as api:
        for email in ("kim@example.com", "KIM@EXAMPLE.COM", "K\u0130M@example.com"):
            assert (await try_password(api, email)).status == 401
        assert (await try_password(api, "Kim@example.com")).status == 429


async def test_an_account_is_the_same_in_whatever_writing(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "3/minute"})) as api:
        for email in (
            "ren\u00e9@xn--bcher-kva.example",
            "rene\u0301@b\u00fccher.example",
            "ren\u00e9@b\u00fccher.example",
        ):
            assert (await try_password(api, email)).status == 401
        assert (await try_password(api, "rene\u0301@xn--bcher-kva.example")).status == 429


def test_case_is_folded_as_the_database_folds_it() -> None:
    assert fold_case("K\u0130M\u03a3@X") == "kim\u03c3@x"
    assert fold_case("") == ""


async def test_right_passwords_count_and_are_refused_alike(limited: Settings) -> None:
    """Whoever guesses must not learn from the refusal that the last guess was right."""
    async with running_api(limited.model_copy(update={"login_limit_per_account": "2/minute"})) as api:
        merchant = await api.merchant(processors=False)
        right = {"email": merchant.email, "password": PASSWORD}
        wrong = {"email": merchant.email, "password": WRONG}
        answers = [await api.anyone.post("/api/auth/login", body) for body in (right, wrong, right, wrong)]
    assert [answer.status for answer in answers] == [200, 401, 429, 429]
    assert answers[2].lasting == answers[3].lasting


async def test_what_does_not_fit_does_not_count_for_the_account(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "1/minute"})) as api:
        for _ in range(3):
            body = {"email": "a@example.com", "password": WRONG, "more": 1}
            assert (await api.anyone.post("/api/auth/login", body)).status == 400
        assert (await try_password(api, "a@example.com")).status == 401


async def test_an_address_opens_so_many_accounts(limited: Settings) -> None:
    windows = {"register_limit_per_address": "5/minute; 2/minute"}
    began = time.monotonic()
    async with running_api(limited.model_copy(update=windows)) as api:
        answers = [
            await api.anyone.post(
                "/api/auth/register", {"name": "Acme", "email": f"{n}@example.com", "password": PASSWORD}
            )
            for n in range(3)
        ]
    assert [answer.status for answer in answers] == [201, 201, 429]
    assert 59 - (time.monotonic() - began) <= int(answers[2].headers["Retry-After"]) <= 61


async def test_of_several_exceeded_limits_the_longest_wait_is_told(limited: Settings) -> None:
    windows = {"login_limit_per_account": "1/minute; 1/hour"}
    async with running_api(limited.model_copy(update=windows)) as api:
        assert (await try_password(api, "a@example.com")).status == 401
        assert int((await try_password(api, "a@example.com")).headers["Retry-After"]) > 60


async def test_limits_that_are_alike_are_counted_apart(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_address": "1/minute"})) as api:
        merchant = await api.merchant(processors=False)
        assert (await try_password(api, merchant.email)).status == 401
        assert (await try_password(api, merchant.email)).status == 429
        body = {"currentPassword": WRONG, "newPassword": "another password"}
        assert (await merchant.dashboard.post("/api/auth/password", body)).status == 401


async def test_a_password_change_is_limited_for_the_account_that_is_logged_in(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "2/minute"})) as api:
        one, two = await api.merchant(processors=False), await api.merchant(processors=False)
        body = {"currentPassword": WRONG, "newPassword": "another password"}
        answers = [await one.dashboard.post("/api/auth/password", body) for _ in range(3)]
        assert [answer.status for answer in answers] == [401, 401, 429]
        assert (await two.dashboard.post("/api/auth/password", body)).status == 401


async def test_without_trusted_proxies_the_header_means_nothing(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_address": "3/minute"})) as api:
        statuses = [
            (await try_password(api, f"{n}@example.com", forwarded=f"192.0.2.{n}")).status for n in range(4)
        ]
    assert statuses == [401, 401, 401, 429]


async def test_behind_proxies_the_client_is_whom_the_outermost_trusted_one_saw(limited: Settings) -> None:
    update = {"login_limit_per_address": "2/minute", "trusted_proxies": 2}
    async with running_api(limited.model_copy(update=update)) as api:
        # The client is 192.0.2.1, whatever it wrote before that itself.
        statuses = [
            (await try_password(api, f"{n}@example.com", forwarded=f"{forged}192.0.2.1, 10.0.0.1")).status
            for n, forged in enumerate(("", "198.51.100.1, ", "198.51.100.2, 198.51.100.3, "))
        ]
        assert statuses == [401, 401, 429]
        other = await try_password(api, "other@example.com", forwarded="192.0.2.1, 192.0.2.2, 10.0.0.1")
        assert other.status == 401


async def test_a_refused_address_does_not_use_up_the_account(limited: Settings) -> None:
    update = {
        "login_limit_per_address": "2/minute",
        "login_limit_per_account": "3/minute",
        "trusted_proxies": 1,
    }
    async with running_api(limited.model_copy(update=update)) as api:
        for _ in range(10):
            await try_password(api, "a@example.com", forwarded="192.0.2.1")
        assert (await try_password(api, "a@example.com", forwarded="192.0.2.2")).status == 401
        assert (await try_password(api, "a@example.com", forwarded="192.0.2.3")).status == 429


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ((), 1, "203.0.113.9"),
        (("192.0.2.1",), 0, "203.0.113.9"),
        (("192.0.2.1",), 1, "192.0.2.1"),
        (("192.0.2.1",), 2, "203.0.113.9"),  # came past a proxy: the entry may be anybody's
        (("192.0.2.1, 192.0.2.2",), 1, "192.0.2.2"),
        (("192.0.2.1, 192.0.2.2",), 2, "192.0.2.1"),
        (("192.0.2.1", "192.0.2.2"), 2, "192.0.2.1"),  # two headers are one list
        (("192.0.2.1:4711",), 1, "192.0.2.1"),
        (("unknown",), 1, "203.0.113.9"),
        (("",), 1, "203.0.113.9"),
        (("2001:db8:1:2:3:4:5:6",), 1, "2001:db8:1:2::/64"),
        (("[2001:db8:1:2::1]:4711",), 1, "2001:db8:1:2::/64"),
        (('"[2001:db8:1:2::1]"',), 1, "2001:db8:1:2::/64"),
        (("fe80::1%eth0",), 1, "fe80::/64"),
        (("::ffff:192.0.2.1",), 1, "192.0.2.1"),
    ],
)
def test_where_a_request_comes_from(forwarded: tuple[str, ...], proxies: int, address: str) -> None:
    headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
    request = make_mocked_request("GET", "/", headers=headers).clone(remote="203.0.113.9")
    assert client_address(request, trusted_proxies=proxies) == address


@pytest.mark.parametrize(("forwarded", "proxies"), [((), 0), ((), 1), (("unknown",), 1)])
def test_all_addresses_of_a_network_count_together_without_proxies_too(
    forwarded: tuple[str, ...], proxies: int
) -> None:
    headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
    request = make_mocked_request("GET", "/", headers=headers).clone(remote="2001:db8:1:2::9")
    assert client_address(request, trusted_proxies=proxies) == "2001:db8:1:2::/64"


async def test_processes_count_together(limited: Settings) -> None:
    configured = limited.model_copy(update={"login_limit_per_account": "2/minute"})
    async with running_api(configured) as one, running_api(configured) as two:
        assert (await try_password(one, "a@example.com")).status == 401
        assert (await try_password(two, "a@example.com")).status == 401
        assert (await try_password(one, "a@example.com")).status == 429
        assert (await try_password(two, "a@example.com")).status == 429


async def test_redis_learns_neither_addresses_nor_emails(limited: Settings) -> None:
    redis: Redis = Redis.from_url(limited.redis_url.get_secret_value())
    before = set(await redis.keys("*"))
    async with running_api(limited) as api:
        await try_password(api, "ada@example.com")
    keys = set(await redis.keys("*")) - before
    assert len(keys) == 2
    for key in keys:
        kept = b"".join(cast("list[bytes]", [key, *await redis.lrange(key, 0, -1)]))
        for told in (b"ada@", b"example", b"127.0.0.1"):  # no part that a digest may have by chance
            assert told not in kept
        assert 0 < await redis.ttl(key) <= 300
    await redis.aclose()


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """Takes connections and never says anything."""
    connections: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        server.close()
        for writer in connections:
            writer.close()


async def test_without_redis_a_stricter_limit_holds(limited: Settings) -> None:
    update = {
        "redis_url": SecretStr("redis://127.0.0.1:1"),
        "login_limit_per_account": "8/minute",
    }
    began = time.monotonic()
    async with running_api(limited.model_copy(update=update)) as api:
        answers = [await try_password(api, "a@example.com") for _ in range(4)]
        assert [answer.status for answer in answers] == [401] * (8 // LOCAL_DIVISOR) + [429] * 2
        assert 59 - (time.monotonic() - began) <= int(answers[-1].headers["Retry-After"]) <= 61
        assert (await try_password(api, "b@example.com")).status == 401


async def test_a_redis_that_is_silent_is_asked_by_few(
    limited: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "REDIS_SECONDS", 0.25)
    async with silent_server() as (port, connections):
        update = {
            "redis_url": SecretStr(f"redis://127.0.0.1:{port}"),
            "login_limit_per_address": "1000/minute",
        }
        async with running_api(limited.model_copy(update=update)) as api:
            with structlog.testing.capture_logs() as lines:
                assert (await try_password(api, "a@example.com")).status == 401
                # From here on it is known: who comes now does not wait for it.
                asked = len(connections)
                answers = await asyncio.gather(*(try_password(api, f"{n}@example.com") for n in range(20)))
            assert {answer.status for answer in answers} == {401}
            failures = [line for line in lines if line["event"] == "rate_limits.redis_down"]
            assert (asked, len(failures)) == (1, 1)
            assert len(connections) < 5
            assert api.services.limits._redis_paused_until < time.monotonic() + rate_limits.REDIS_PAUSE


async def test_a_redis_that_is_away_is_logged_once_and_once_when_it_is_back(
    limited: Settings, tmp_path: Path
) -> None:
    async def three_tries() -> None:
        for _ in range(3):
            api.services.limits._redis_paused_until = 0
            await try_password(api, "a@example.com")

    with EmbeddedServers(data_dir=tmp_path, parts=["valkey"], ephemeral=True) as servers:
        there = limited.model_copy(update={"redis_url": SecretStr(servers.redis_url)})
        async with running_api(there) as api:
            with structlog.testing.capture_logs() as lines:
                servers.stop_part("valkey")
                await three_tries()
                servers.start_part("valkey")
                await three_tries()
    told = [line["event"] for line in lines if line["event"].startswith("rate_limits.")]
    assert told == ["rate_limits.redis_down", "rate_limits.redis_up"]


async def test_a_redis_that_has_become_a_replica_is_left_for_the_one_that_has_its_name(
    limited: Settings, tmp_path: Path
) -> None:
    """It keeps its connections, and refuses what is asked by them."""
    with (
        EmbeddedServers(data_dir=tmp_path / "former", parts=["valkey"], ephemeral=True) as former,
        EmbeddedServers(data_dir=tmp_path / "promoted", parts=["valkey"], ephemeral=True) as promoted,
    ):
        name = tmp_path / "name"
        name.symlink_to(socket_of(former))
        there = limited.model_copy(update={"redis_url": SecretStr(f"unix://{name}")})
        async with running_api(there) as api:
            assert (await try_password(api, "a@example.com")).status == 401
            async with Redis.from_url(former.redis_url) as redis:
                await redis.replicaof("127.0.0.1", "1")
            name.unlink()
            name.symlink_to(socket_of(promoted))
            with structlog.testing.capture_logs() as lines:
                for _ in range(2):
                    api.services.limits._redis_paused_until = 0
                    assert (await try_password(api, "a@example.com")).status == 401
        async with Redis.from_url(promoted.redis_url) as redis:
            assert len(await redis.keys("*")) == 2
    [down, up] = [line for line in lines if line["event"].startswith("rate_limits.")]
    assert (down["event"], up["event"]) == ("rate_limits.redis_down", "rate_limits.redis_up")
    assert "read only replica" in down["error"]


async def test_a_user_of_redis_needs_no_more_rights_than_documented(
    limited: Settings, tmp_path: Path
) -> None:
    [rights] = re.findall(r"`ACL SETUSER payloops on >PASSWORD (.+?)`", OPERATING.read_text())
    with EmbeddedServers(data_dir=tmp_path, parts=["valkey"], ephemeral=True) as servers:
        async with Redis.from_url(servers.redis_url) as redis:
            keys = [each[1:] for each in rights.split() if each.startswith("~")]
            commands = [each for each in rights.split() if each.startswith("+")]
            await redis.acl_setuser(
                "payloops", enabled=True, passwords=["+secret"], keys=keys, commands=commands
            )
        mine = SecretStr(f"unix://payloops:secret@{socket_of(servers)}")
        update = {"redis_url": mine, "login_limit_per_account": "3/minute"}
        async with running_api(limited.model_copy(update=update)) as api:
            tries = [(await try_password(api, "a@example.com")).status for _ in range(4)]
            assert tries == [401] * 3 + [429]  # by itself, a process allows one
            assert (await api.services.dependencies())["redis"] is None


def socket_of(servers: EmbeddedServers) -> str:
    return urlsplit(servers.redis_url).path


async def test_redis_is_asked_again_after_a_while(limited: Settings) -> None:
    async with running_api(limited.model_copy(update={"login_limit_per_account": "2/minute"})) as api:
        api.services.limits._redis_paused_until = time.monotonic() + 600
        assert (await try_password(api, "a@example.com")).status == 401
        assert (await try_password(api, "a@example.com")).status == 429  # by itself, it allows one
        api.services.limits._redis_paused_until = time.monotonic()
        assert (await try_password(api, "a@example.com")).status == 401
        assert (await try_password(api, "a@example.com")).status == 401
        assert (await try_password(api, "a@example.com")).status == 429


def test_windows_of_ones_own_move_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(rate_limits, "MAX_WINDOWS", 3)
    windows = LocalWindows(clock=lambda: now)
    limit = parse_many("8/minute")
    assert [windows.wait(limit, ("a",)) for _ in range(3)] == [None, None, 60.0]
    now += 59.5
    assert windows.wait(limit, ("a",)) == 0.5
    now += 0.5
    assert windows.wait(limit, ("a",)) is None
    for who in "bcdefg":
        windows.wait(limit, (who,))
    assert len(windows._tries) == 3


def test_each_of_several_limits_has_a_window_of_its_own() -> None:
    now = 1_000.0
    windows = LocalWindows(clock=lambda: now)
    limits = parse_many("8/minute; 12/hour; 3/day")  # of which a process allows 2, 3 and, at the least, 1
    assert [windows.wait(limits[:2], ("a",)) for _ in range(3)] == [None, None, 60.0]
    now += 60
    assert [windows.wait(limits[:2], ("a",)) for _ in range(2)] == [None, 3_540.0]
    assert [windows.wait(limits[2:], ("a",)) for _ in range(2)] == [None, 86_400.0]


def test_of_many_windows_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_WINDOWS", 3)
    windows = LocalWindows(clock=lambda: 0.0)
    limit = parse_many("4/minute")
    for who in "abcad":
        windows.wait(limit, (who,))
    assert windows.wait(limit, ("a",)) == 60.0


async def test_limits_can_be_switched_off(settings: Settings) -> None:
    update = {"login_limit_per_address": "1/minute", "login_limit_per_account": "1/minute"}
    async with running_api(settings.model_copy(update=update)) as api:
        answers = await asyncio.gather(*(try_password(api, "a@example.com") for _ in range(20)))
    assert {answer.status for answer in answers} == {401}


@pytest.mark.parametrize("limit", ["", "often", "0/minute", "10", "10/fortnight"])
def test_a_limit_that_is_none_is_refused_at_start(settings: Settings, limit: str) -> None:
    with pytest.raises(InvalidSettings, match="LOGIN_LIMIT_PER_ADDRESS"):
        read_settings(Settings, **{**settings.model_dump(), "login_limit_per_address": limit})


def test_every_route_that_takes_a_password_is_limited(settings: Settings) -> None:
    taking = [
        route
        for route in ROUTES
        if route.body is not None and any("password" in name for name in route.body.model_fields)
    ]
    assert len(taking) >= 4
    assert all(route.limits for route in taking)
