"""`payloops serve` as processes: starts, ends in order, survives the death of its parts."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from calling import PASSWORD, Answer, Caller, running_api
from pydantic import SecretStr
from serving import PATIENCE, call_often, caller, server

from payloops.daemons.listening import bind
from payloops.daemons.prefork import _Worker
from payloops.settings import Settings


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except FileNotFoundError:
        return False


async def readiness(anyone: Caller, status: str) -> Answer:
    """What /ready answers once it says this."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await anyone.get("/ready")).json["status"] != status:
            await asyncio.sleep(0.05)
    return answer


async def test_a_server_that_is_away_at_the_start_is_logged(settings: Settings, tmp_path: Path) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1")})
    with server(away, tmp_path / "log", workers=2) as running:
        url = await running.listening(workers=2)
        await call_often(url)
        async with caller(url) as anyone, asyncio.timeout(PATIENCE):
            while not running.lines("dependency.down"):
                assert (await anyone.get("/ready")).json["dependencies"]["redis"] == "down"
        running.process.terminate()
        assert await running.ended() == 0
        [line] = running.lines("dependency.down")
    assert (line["level"], line["dependency"]) == ("warning", "redis")
    assert line["error"].startswith("ConnectionError: ")


@pytest.mark.parametrize("workers", [1, 2])
async def test_asked_to_end_it_is_first_not_ready_then_closed_and_finishes_what_it_began(
    settings: Settings, tmp_path: Path, workers: int
) -> None:
    with server(settings, tmp_path / "log", grace=4, workers=workers) as running:
        url = await running.listening(workers=workers)
        async with caller(url) as anyone:
            await readiness(anyone, "ready")
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps({"email": "a@example.com", "password": PASSWORD}).encode()
            writer.write(
                b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body[:10]
            )
            await asyncio.sleep(0.1)  # the connection is taken, now or in the grace
            running.process.send_signal(signal.SIGTERM)
            assert (await readiness(anyone, "stopping")).status == 503
            assert (await anyone.get("/health")).status == 200
        deadline = time.monotonic() + PATIENCE
        while not refuses(url):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert running.process.poll() is None
        writer.write(body[10:])
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert await running.ended() == 0


async def test_those_who_wait_are_answered_when_the_process_ends(settings: Settings, tmp_path: Path) -> None:
    with server(settings, tmp_path / "log") as running:
        async with caller(await running.listening()) as anyone:
            shop, order_id = await order(anyone)
            paying = asyncio.create_task(shop.post(f"/v1/orders/{order_id}/pay", Prefer="wait=30"))
            async with asyncio.timeout(PATIENCE):
                while (await shop.get(f"/v1/orders/{order_id}")).json["status"] != "processing":
                    await asyncio.sleep(0.02)
            running.process.send_signal(signal.SIGTERM)
            answer = await asyncio.wait_for(paying, 20)  # less than it would wait
            assert (answer.status, answer.json["status"]) == (200, "processing")
            assert await running.ended() == 0


async def test_workers_share_the_port_and_are_replaced_when_they_die(
    settings: Settings, tmp_path: Path
) -> None:
    with server(settings, tmp_path / "log", workers=3) as running:
        url = await running.listening(workers=3)
        pids = {line["pid"] for line in running.lines("api.listening")}
        assert len(pids) == 3
        assert running.process.pid not in pids
        await call_often(url)
        os.kill(next(iter(pids)), signal.SIGKILL)
        await running.listening(workers=4)
        await call_often(url)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
        [death] = running.lines("api.worker_died")  # not of those that were asked to end
        assert death["status"] == -signal.SIGKILL
        assert refuses(url)
        assert not any(alive(line["pid"]) for line in running.lines("api.listening"))


async def test_one_of_several_workers_tells_what_the_keys_do_not_open(
    settings: Settings, tmp_path: Path
) -> None:
    async with running_api(settings) as api:
        merchant = await api.merchant()
        assert (await merchant.dashboard.get("/api/merchants/me/webhook-secret")).status == 200
    lost = settings.model_copy(update={"encryption_key": SecretStr("another key, which is long enough")})
    with server(lost, tmp_path / "log", workers=3) as running:
        url = await running.listening(workers=3)
        async with asyncio.timeout(PATIENCE):
            while not running.lines("encryption_key.wrong"):
                await asyncio.sleep(0.05)
        await call_often(url)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
        told = [line["column"] for line in running.lines("encryption_key.wrong")]
        assert sorted(told) == ["processor_configs.credentials", "webhook_secrets.secret"]


def test_a_worker_that_cannot_be_started_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    tried = []

    def fork() -> int:
        tried.append(now)
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    worker = _Worker(lambda number: None, number=1)
    for now in (1_000, 1_000.4, 1_000.6, 1_001.5, 1_001.7):
        worker.start_if_due(now=now)
    assert worker.pid is None
    assert tried == [1_000, 1_000.6, 1_001.7]


async def test_workers_do_not_outlive_a_killed_parent(settings: Settings, tmp_path: Path) -> None:
    with server(settings, tmp_path / "log", workers=2) as running:
        await running.listening(workers=2)
        pids = [line["pid"] for line in running.lines("api.listening")]
        running.process.kill()
        deadline = time.monotonic() + PATIENCE
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


HANGING = """
import os, signal, time
from payloops.daemons.prefork import keep_running

def serve(number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(120)

keep_running(serve, processes=2, finish_seconds=0.1)
"""


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_do_not_end_are_killed(asked: signal.Signals) -> None:
    with Popen([sys.executable, "-c", HANGING], stdout=PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        try:
            parent.send_signal(asked)
            assert parent.wait(PATIENCE) == 0
            deadline = time.monotonic() + PATIENCE
            while any(alive(pid) for pid in pids):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            parent.kill()


DYING = """
import os
from payloops.daemons.shared_metrics import counted, share_metrics

with share_metrics():
    from prometheus_client import Counter, Gauge
    from payloops.daemons.prefork import keep_running

    under_way, begun = Gauge("under_way", "", multiprocess_mode="livesum"), Counter("begun", "")

    def serve(number):
        under_way.inc()
        begun.inc()
        told = {sample.name: sample.value for each in counted().collect() for sample in each.samples}
        os.write(2, f"{told['under_way']:g} {told['begun_total']:g}\\n".encode())
        os.abort()

    keep_running(serve, processes=1, finish_seconds=1)
"""


def test_what_a_worker_was_doing_when_it_died_is_not_under_way_in_its_replacement() -> None:
    """What it has done still counts."""
    with Popen([sys.executable, "-c", DYING], stderr=PIPE) as parent:
        assert parent.stderr is not None
        try:
            assert [parent.stderr.readline() for _ in range(2)] == [b"1 1\n", b"1 2\n"]
        finally:
            parent.send_signal(signal.SIGTERM)
            assert parent.wait(PATIENCE) == 0


@pytest.mark.parametrize(("others", "workers"), [(1, 2), (2, 1)])
async def test_a_port_that_is_taken_is_said_in_one_line(
    settings: Settings, tmp_path: Path, others: int, workers: int
) -> None:
    with server(settings, tmp_path / "first", workers=others) as first:
        port = int((await first.listening(workers=others)).rpartition(":")[2])
        with server(settings, tmp_path / "second", port=port, workers=workers) as second:
            assert await second.ended() == 1
            assert second.log.read_text() == (
                f"payloops: cannot listen on 127.0.0.1:{port}: Address already in use (HOST and PORT say where)\n"
            )


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_socket_that_was_handed_over_answers_everybody_while_the_service_is_replaced(
    settings: Settings, tmp_path: Path, workers: int
) -> None:
    replaced = asyncio.Event()

    async def visit(port: int) -> list[bytes]:
        """On connections of its own, one after the other; the requests are a while under way."""
        answers = []
        while not replaced.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.05)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answers.append((await reader.read())[:12])
            writer.close()
        return answers

    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        async with asyncio.timeout(PATIENCE * 2), asyncio.TaskGroup() as group:
            visitors = [group.create_task(visit(port)) for _ in range(16)]
            for version in ("old", "new"):
                with server(settings, tmp_path / version, listener=listener, workers=workers) as running:
                    assert await running.listening(workers=workers) == f"http://127.0.0.1:{port}"
                    await asyncio.sleep(0.5)
                    running.process.terminate()
                    assert await running.ended() == 0
            with server(settings, tmp_path / "last", listener=listener):
                replaced.set()
                await asyncio.wait(visitors)
    assert {answer for visitor in visitors for answer in visitor.result()} == {b"HTTP/1.1 200"}


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_socket_that_does_not_listen_is_refused_in_one_line(
    settings: Settings, tmp_path: Path, kind: socket.SocketKind
) -> None:
    with socket.socket(type=kind) as wrong, server(settings, tmp_path / "log", listener=wrong) as running:
        assert await running.ended() == 1
        [line] = running.log.read_text().splitlines()
    assert line.startswith("payloops: one TCP socket is expected")


async def order(anyone: Caller) -> tuple[Caller, str]:
    """A new merchant's program, and an order of theirs."""
    registered = await anyone.post(
        "/api/auth/register", {"name": "Acme", "email": "acme@example.com", "password": PASSWORD}
    )
    dashboard = anyone.with_headers(Authorization=f"Bearer {registered.json['token']}")
    await dashboard.post("/api/processors/stripe", {"credentials": {"secretKey": "x"}})
    issued = await dashboard.post("/api/api-keys", {"name": "shop"})
    shop = anyone.with_headers(**{"X-API-Key": issued.json["secret"]})
    return shop, (await shop.post("/v1/orders", {"amount": 1})).json["id"]
