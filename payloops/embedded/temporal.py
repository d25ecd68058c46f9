"""Runs Temporal's development server, with its database in a file."""

import asyncio
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from payloops.embedded.binaries import find_temporal
from payloops.embedded.errors import NotStarted, PortLost
from payloops.embedded.processes import Child, Server, run_to_end

PART = "Temporal"

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": "normal",
    # Pages of 4 KiB in the write-ahead log before a checkpoint, which waits for the disk.
    "wal_autocheckpoint": "10000",
}
"""Settings of its SQLite database. A payment takes dozens of consecutive transactions, and by default each waits for
the disk more than once. With these, a killed server still loses nothing, but a power failure may lose the last
seconds."""
NOT_DURABLE = {**PRAGMAS, "synchronous": "off"}

SETTINGS = {
    # By default the development server reads search attributes and the namespace again for each change of a workflow's
    # visibility record: thirty queries for a payment.
    "system.forceSearchAttributesCacheRefreshOnRead": "false",
    # With a single server, several partitions of a task queue would only forward tasks to each other.
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
}
"""Its dynamic configuration."""


class Temporal(Server):
    """Call `prepare`, then `launch` on its ports, then `wait_ready`; `stop` at any time."""

    def __init__(self, *, data_dir: Path, namespaces: Sequence[str], durable: bool) -> None:
        super().__init__()
        self.port = 0
        self.ui_port: int | None = None
        self.put_aside: Path | None = None
        self._durable = durable
        self._namespaces = namespaces
        self._folder = data_dir / "temporal"
        self._log = data_dir / "logs/temporal.log"
        self._program = Path()
        self._own_namespace = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str | None:
        return None if self.ui_port is None else f"http://127.0.0.1:{self.ui_port}"

    def prepare(self) -> None:
        self._program = find_temporal()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        mark = self._folder / "own-namespace"
        if not mark.exists():
            mark.write_text(f"payloops-{secrets.token_hex(8)}", encoding="ascii")
        self._own_namespace = mark.read_text(encoding="ascii").strip()
        self._put_aside_other_versions_database()

    def launch(self, *, port: int, ui_port: int | None) -> None:
        """Start the server on a free port of 127.0.0.1, with its web interface if that has a port."""
        self.port, self.ui_port = port, ui_port
        self.child = Child(
            name=PART,
            command=[
                *(self._program, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port)),
                *("--db-filename", self._database),
                *(["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]),
                *("--log-level", "warn", "--log-format", "pretty"),
                *(
                    part
                    for name, value in (PRAGMAS if self._durable else NOT_DURABLE).items()
                    for part in ("--sqlite-pragma", f"{name}={value}")
                ),
                *(
                    part
                    for name, value in SETTINGS.items()
                    for part in ("--dynamic-config-value", f"{name}={value}")
                ),
                *(
                    part
                    for name in (*self._namespaces, self._own_namespace)
                    for part in ("--namespace", name)
                ),
            ],
            log=self._log,
            death_signal=signal.SIGTERM,
            environment={k: v for k, v in os.environ.items() if not k.startswith("TEMPORAL_")},
            cwd=self._folder,
        )

    def wait_ready(self, *, deadline: float) -> None:
        """Wait until this server answers. It is recognized by a namespace that only this data directory has.

        Raises:
            NotStarted, PortLost.
        """
        while not _listens(self.port):
            self._fail_if_ended()
            if time.monotonic() > deadline:
                raise NotStarted(part=PART, why=f"not ready in time; see {self._log}")
            time.sleep(0.01)
        # Not from a thread of the caller's loop: this has one of its own.
        asyncio.run(self._meet(deadline=deadline))
        self._fail_if_ended()

    async def _meet(self, *, deadline: float) -> None:
        from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest  # noqa: PLC0415 a slow import
        from temporalio.client import Client  # noqa: PLC0415
        from temporalio.service import RPCError, RPCStatusCode  # noqa: PLC0415

        client: Client | None = None
        while True:
            try:
                if client is None:
                    client = await Client.connect(self.address)
                for name in (self._own_namespace, *self._namespaces):
                    await client.workflow_service.describe_namespace(
                        DescribeNamespaceRequest(namespace=name), timeout=timedelta(seconds=5)
                    )
            except RPCError as error:
                self._fail_if_ended()
                if error.status == RPCStatusCode.NOT_FOUND:
                    raise PortLost(
                        part=PART, why=f"port {self.port} answers for another server: {error.message}"
                    ) from error
                if time.monotonic() > deadline:
                    raise NotStarted(part=PART, why=f"not ready in time: {error.message}") from error
            except RuntimeError as error:  # the client's "cannot connect"
                self._fail_if_ended()
                if time.monotonic() > deadline:
                    raise NotStarted(part=PART, why=f"not ready in time: {error}") from error
            else:
                return
            await asyncio.sleep(0.02)

    @property
    def _database(self) -> Path:
        return self._folder / "temporal.db"

    def _put_aside_other_versions_database(self) -> None:
        """Rename a database of another version, which the development server may not be able to read."""
        known = self._folder / "version.json"
        found = self._program.stat()
        program = [str(self._program), found.st_size, found.st_mtime_ns]
        try:
            before = json.loads(known.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            before = {}
        if before.get("program") == program:
            return
        version = run_to_end(part=PART, command=[self._program, "--version"]).stdout.strip()
        if self._database.exists() and before.get("version") not in (None, version):
            self.put_aside = self._folder / f"temporal.{int(time.time())}.db"
            self._database.rename(self.put_aside)
            for suffix in ("-wal", "-shm"):
                beside = self._database.with_name(self._database.name + suffix)
                if beside.exists():
                    beside.rename(self.put_aside.with_name(self.put_aside.name + suffix))
        known.write_text(json.dumps({"program": program, "version": version}), encoding="utf-8")

    def _fail_if_ended(self) -> None:
        assert self.child is not None
        if self.child.exit_status() is None:
            return
        lines = [line.strip() for line in self.child.output().splitlines() if line.strip()]
        why = next(
            (line for line in lines if "rror" in line), lines[-1] if lines else f"it ended; see {self._log}"
        )
        if "address already in use" in why or "can't set frontend port" in why or "can't set UI port" in why:
            raise PortLost(part=PART, why=f"a port is taken by another program: {why}")
        raise NotStarted(part=PART, why=why)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0
