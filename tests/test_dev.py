"""`payloops dev` as a newcomer meets it: one command up, a demonstration, Ctrl-C, and a kill."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reserving import reserved_port

from payloops.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 120.0
STOP_SECONDS = 60.0


class Dev:
    """One `payloops dev` on a data directory of its own."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.data_dir = folder / "data"
        self.screen = folder / "screen.txt"
        self.port = port
        self.mark = f"PAYLOOPS_TEST_MARK={uuid.uuid4()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> float:
        """Returns the seconds until it said that it was ready."""
        began = time.monotonic()
        name, value = self.mark.split("=")
        with self.screen.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "payloops", "dev"),
                    *("--data-dir", str(self.data_dir), "--port", str(self.port)),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**without_settings(), **environment, name: value},
                start_new_session=True,
            )
        while "PayLoops is ready" not in self.text() or "Ctrl-C" not in self.text():
            assert self._process.poll() is None, self.text()
            assert time.monotonic() - began < READY_SECONDS, self.text()
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(STOP_SECONDS)

    def text(self) -> str:
        return self.screen.read_text()

    def wait_for(self, text: str, *, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < deadline, f"{text!r} did not appear:\n{self.text()}"
            time.sleep(0.05)

    def processes(self) -> list[str]:
        """All that descend from it, or did: the environment is inherited."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (each / "environ").read_bytes().split(b"\0"):
                    line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{each.name} {line}")
        return found

    def process_of(self, command: str) -> int:
        found = [int(line.split()[0]) for line in self.processes() if f"-m payloops {command}" in line]
        assert len(found) == 1, self.processes()
        return found[0]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "payloops", *arguments, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=without_settings() | environment,
        )

    def demo(self) -> dict[str, Any]:
        shown = self.run("demo", "--json")
        assert shown.returncode == 0, shown.stderr
        walked: dict[str, Any] = json.loads(shown.stdout)
        return walked

    def get(self, path: str) -> Any:
        merchant = json.loads((self.data_dir / "demo-merchant.json").read_text())
        request = urllib.request.Request(merchant["url"] + path, headers={"X-API-Key": merchant["api_key"]})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def without_settings() -> dict[str, str]:
    """Settings that are empty count as not set."""
    names = {name.upper() for name in Settings.model_fields} | {"PAYLOOPS_API_KEY", "PAYLOOPS_DATA_DIR"}
    return {**os.environ, **dict.fromkeys(names, "")}


@pytest.fixture
def dev() -> Iterator[Dev]:
    with tempfile.TemporaryDirectory(prefix="payloops-test-") as folder, reserved_port() as port:
        made = Dev(Path(folder), port=port)
        try:
            yield made
        finally:
            if made._process is not None and made._process.poll() is None:
                made.end(signal.SIGTERM)


def test_a_newcomer_s_first_hour(dev: Dev) -> None:
    """Start, paste, demonstrate, Ctrl-C. Start again, kill, start again: nothing is lost, nothing stays behind."""
    dev.start()
    if shutil.which("curl"):
        pasted_lines_work(dev)
    walked = dev.demo()
    order_id = walked["order"]["id"]
    assert walked["order"]["status"] == "partially_refunded"
    assert walked["order"]["amountRefunded"] == 1500
    told = [event["type"] for event in walked["events"]]
    for fact in ("order.created", "payment.requested", "payment.authorized", "payment.captured"):
        assert fact in told
    assert told[-1] == "refund.succeeded"
    a_second_one_is_refused_in_one_line(dev)
    assert dev.end(signal.SIGINT) == 0
    assert dev.processes() == []

    dev.start()
    assert dev.get(f"/v1/orders/{order_id}")["status"] == "partially_refunded"
    projections = json.loads(dev.run("projections", "status", "--json").stdout)
    assert all(each["parked"] == 0 for each in projections)
    dev.end(signal.SIGKILL)

    dev.start()
    assert dev.get(f"/v1/orders/{order_id}")["status"] == "partially_refunded"
    dev.demo()
    assert dev.end(signal.SIGTERM) == 0
    assert dev.processes() == []

    shown = dev.run("dev", "--port", str(dev.port), ENCRYPTION_KEY="another key, which is long enough")
    assert (shown.returncode, len(shown.stderr.splitlines())) == (1, 1)
    assert "ENCRYPTION_KEY opens nothing that is stored" in shown.stderr
    shown = dev.run("dev", "--port", str(dev.port), AUDIT_KEY="another key, which is long enough")
    assert (shown.returncode, len(shown.stderr.splitlines())) == (1, 1)
    assert "AUDIT_KEY is not that of the log" in shown.stderr
    assert dev.processes() == []


def pasted_lines_work(dev: Dev) -> None:
    text = dev.text()
    lines = text[text.index("API=http") : text.index("Ctrl-C stops")]
    shown = subprocess.run(
        ["bash", "-e"], input=lines, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0, shown.stderr
    payment, refund, order, events, session = [json.loads(line) for line in shown.stdout.splitlines()]
    assert payment["status"] == "captured"
    assert refund["amount"] == 1500
    assert order["status"] in {"captured", "partially_refunded"}
    assert events[0]["type"] == "order.created"
    with urllib.request.urlopen(session["url"], timeout=30) as page:
        assert b"Pay $49.99" in page.read()
    [demo] = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("  Demo ")]
    shown = subprocess.run(
        ["bash", "-c", demo], cwd="/", capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0, shown.stderr


def a_second_one_is_refused_in_one_line(dev: Dev) -> None:
    with reserved_port() as port:
        shown = dev.run("dev", "--port", str(port))
    assert shown.returncode == 1
    assert len(shown.stderr.splitlines()) == 1
    assert "is in use by another instance" in shown.stderr


def test_parts_that_die_come_back(dev: Dev) -> None:
    dev.start(DATABASE_POOL_SIZ="5")
    for name in ("api", "worker"):  # said while they started, before there was a screen to show it on
        dev.wait_for(f"{name:<10} payloops: DATABASE_POOL_SIZ is not a setting, and is ignored")
    assert "/ready" not in dev.text()
    for name in ("projector", "subscriber", "worker"):
        os.kill(dev.process_of(name), signal.SIGKILL)
    servers = json.loads((dev.data_dir / "run/processes.json").read_text())
    for server in ("Valkey", "PostgreSQL"):
        os.kill(next(each["pid"] for each in servers if each["name"] == server), signal.SIGKILL)
    for name in ("projector", "subscriber", "worker"):
        dev.wait_for(f"{name} was ended by SIGKILL; starting it again")
    for name in ("valkey", "postgres"):
        dev.wait_for(f"{name} ended; starting it again")
    deadline = time.monotonic() + 120
    while (walked := dev.run("demo", "--json")).returncode != 0:  # 503 while connections are made anew
        assert time.monotonic() < deadline, walked.stderr
    assert json.loads(walked.stdout)["order"]["status"] == "partially_refunded"
    assert dev.end(signal.SIGINT) == 0
    assert dev.processes() == []


def test_a_taken_port_is_said_in_one_line(dev: Dev) -> None:
    with socket.create_server(("127.0.0.1", dev.port)):
        shown = dev.run("dev", "--port", str(dev.port))
    assert shown.returncode == 1
    assert shown.stderr == (
        f"payloops: API: port {dev.port} is taken by another program: choose one with --port\n"
    )
    with reserved_port() as api, socket.create_server(("127.0.0.1", dev.port)):
        for option in ("--postgres-port", "--temporal-port", "--temporal-ui-port"):
            shown = dev.run("dev", "--port", str(api), option, str(dev.port))
            assert shown.returncode == 1
            assert shown.stderr.endswith(
                f"port {dev.port} is taken by another program: choose one with {option}\n"
            )


def test_a_demonstration_without_a_service_says_so_in_one_line(dev: Dev) -> None:
    shown = dev.run("demo", "--api-key", "sk_test_x", "--url", f"http://127.0.0.1:{dev.port}")
    assert shown.returncode == 1
    assert len(shown.stderr.splitlines()) == 1
    assert f"no PayLoops service answers at http://127.0.0.1:{dev.port}" in shown.stderr


def test_a_command_that_finds_no_database_says_where_it_looked(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "payloops", "audit", "search", "x", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=without_settings(),
    )
    assert shown.returncode == 2
    assert f"a running `payloops dev` with its data in {tmp_path} (--data-dir" in shown.stderr


@pytest.mark.parametrize("command", ["serve", "projector", "subscriber", "worker"])
def test_missing_settings_are_named(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "payloops", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**without_settings(), "JWT_SECRET": "short"},
    )
    assert shown.returncode == 2
    assert "payloops: DATABASE_URL: required" in shown.stderr
    assert "payloops: JWT_SECRET:" in shown.stderr
    assert "short" not in shown.stderr.replace("too short", "")
