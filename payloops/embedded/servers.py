"""All three servers: started in parallel, stopped in order, never left behind."""

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from payloops.embedded.errors import NotStarted, PortLost
from payloops.embedded.locks import (
    choosing_ports,
    free_ports,
    port_is_free,
    remember_ports,
    remembered_ports,
    take_directory,
)
from payloops.embedded.postgres import Postgres
from payloops.embedded.processes import Child, end_leftovers, record
from payloops.embedded.temporal import Temporal
from payloops.embedded.valkey import Valkey
from payloops.files import remove_tree

Part = Literal["postgres", "valkey", "temporal"]
PARTS: tuple[Part, ...] = ("postgres", "valkey", "temporal")
START_SECONDS = 60.0
PORT_TRIES = 3
FILES_FAIL = frozenset({errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})

OURS = (
    *("postgres", "postgres.new", "postgres.new.password", "postgres.password", "valkey", "temporal"),
    *("logs", "run", "ports.json"),
)
"""Names in a data directory that belong to the servers."""


class EmbeddedServers:
    """PostgreSQL, Valkey and Temporal with a data directory. A context manager, or call `start` and `stop`.

    Start it from a thread that lives as long as the servers should. `start` blocks for about a second. If a part fails,
    it raises NotStarted with a one-line message, and nothing is left running.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        temporal_namespaces: Sequence[str] = ("loop",),
        fresh: bool = False,
        ephemeral: bool = False,
        parts: Sequence[Part] = PARTS,
        temporal_ui: bool = False,
        postgres_port: int | None = None,
        temporal_port: int | None = None,
        temporal_ui_port: int | None = None,
        also_fresh: Sequence[str] = (),
    ) -> None:
        """
        Args:
            data_dir: created if it does not exist, and locked.
            fresh: delete what the servers kept there, and `also_fresh`: further names in the directory.
            ephemeral: for tests: nothing is synced to disk, and the directory is removed at the end.
            parts: the servers to start; leaves out those that the caller has elsewhere.
            temporal_ui: whether to serve Temporal's web interface.
            postgres_port, temporal_port, temporal_ui_port: free ones if None. If a given port is taken, `start` fails.
        """
        self.data_dir = data_dir.absolute()
        self._fresh = fresh
        self._also_fresh = also_fresh
        self._ephemeral = ephemeral
        self.parts = parts
        self._temporal_ui = temporal_ui or temporal_ui_port is not None
        self._given = {"postgres": postgres_port, "temporal": temporal_port, "ui": temporal_ui_port}
        self._lock: int | None = None
        self._extra: list[Child] = []
        self.postgres = Postgres(data_dir=self.data_dir, durable=not ephemeral)
        self.valkey = Valkey(data_dir=self.data_dir)
        self.temporal = Temporal(
            data_dir=self.data_dir, namespaces=tuple(temporal_namespaces), durable=not ephemeral
        )

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def temporal_address(self) -> str:
        return self.temporal.address

    @property
    def temporal_ui_url(self) -> str | None:
        return self.temporal.ui_url

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the servers; returns when all of them answer.

        Raises:
            NotStarted.
        """
        deadline = time.monotonic() + START_SECONDS
        try:
            self._open_directory()
            for name in self.parts:
                getattr(self, name).prepare()
            self._start_all(deadline=deadline)
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError) and error.errno in FILES_FAIL:
                why = f"{error.filename or self.data_dir}: {error.strerror}"
                raise NotStarted(part="data directory", why=why) from error
            raise

    def stop(self) -> None:
        """Stop Temporal, Valkey and PostgreSQL, in this order, each within a deadline. May be called twice."""
        for server in (self.temporal, self.valkey, self.postgres):
            if self._ephemeral:
                server.kill()
            else:
                server.stop()
        if self._lock is None:
            return
        (self.data_dir / "run/processes.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.valkey.remove_socket()
        if self._ephemeral:
            self._remove_all()
            (self.data_dir / "lock").unlink()
            with contextlib.suppress(OSError):  # not empty: the caller has files of its own there
                self.data_dir.rmdir()
        os.close(self._lock)
        self._lock = None

    def stop_part(self, part: Part) -> None:
        """Stop one server, to simulate an outage. It keeps its address."""
        getattr(self, part).stop()

    def start_part(self, part: Part) -> None:
        """Start one server again, at the same address and with the same data.

        Raises:
            NotStarted.
        """
        deadline = time.monotonic() + START_SECONDS
        if part == "postgres":
            self.postgres.prepare()
            self.postgres.launch(port=self.postgres.port, deadline=deadline)
        elif part == "valkey":
            self.valkey.launch()
        else:
            self.temporal.launch(port=self.temporal.port, ui_port=self.temporal.ui_port)
        self._record()
        getattr(self, part).wait_ready(deadline=deadline)

    def ended(self) -> list[Part]:
        """Servers that ended without being stopped."""
        return [
            part
            for part in self.parts
            if (child := getattr(self, part).child) is not None and child.exit_status() is not None
        ]

    def keep(self, *, child: Child) -> None:
        """Record a further child process among those that the next start ends, if this process is killed."""
        self._extra = [each for each in self._extra if each.exit_status() is None]
        self._extra.append(child)
        self._record()

    def _open_directory(self) -> None:
        try:
            self._make_directory()
        except OSError as error:
            why = f"{error.filename or self.data_dir}: {error.strerror}: choose another with --data-dir"
            raise NotStarted(part="data directory", why=why) from error

    def _make_directory(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = self.data_dir.stat().st_uid
        if owner != os.geteuid():
            raise NotStarted(
                part="data directory",
                why=f"{self.data_dir} belongs to user {owner}, and we are {os.geteuid()}: "
                "run as that user, or choose another with --data-dir",
            )
        if not (self.data_dir / "lock").exists() and any(self.data_dir.iterdir()):
            raise NotStarted(
                part="data directory", why=f"{self.data_dir} contains other files: choose an empty one"
            )
        self._lock = take_directory(self.data_dir)
        end_leftovers(self.data_dir / "run/processes.json")
        if self._fresh:
            self._remove_all()
        for name in ("logs", "run"):
            (self.data_dir / name).mkdir(exist_ok=True, mode=0o700)

    def _remove_all(self) -> None:
        self.postgres.remove()
        for name in (*OURS, *self._also_fresh):
            remove_tree(self.data_dir / name)

    def _start_all(self, *, deadline: float) -> None:
        for attempt in range(1, PORT_TRIES + 1):
            try:
                with choosing_ports():
                    self._start_on(self._choose_ports(), deadline=deadline)
            except PortLost:
                if attempt == PORT_TRIES:
                    raise
                for name in self.parts:
                    getattr(self, name).stop()
            else:
                return

    def _choose_ports(self) -> list[int]:
        """Given ports; otherwise those of the last run, if they are free; otherwise any."""
        for part, port in self._given.items():
            if port is not None and not port_is_free(port):
                option = "--temporal-ui-port" if part == "ui" else f"--{part}-port"
                raise NotStarted(
                    part=part, why=f"port {port} is taken by another program: choose one with {option}"
                )
        before = remembered_ports(self.data_dir / "ports.json")
        return free_ports(wanted=[port or before.get(name) for name, port in self._given.items()])

    def _start_on(self, ports: list[int], *, deadline: float) -> None:
        """Launch all servers from this thread, and wait for them at the same time in others."""
        postgres_port, temporal_port, ui_port = ports
        if "temporal" in self.parts:
            self.temporal.launch(port=temporal_port, ui_port=ui_port if self._temporal_ui else None)
        if "valkey" in self.parts:
            self.valkey.launch()
        self._record()
        if "postgres" in self.parts:
            self.postgres.launch(port=postgres_port, deadline=deadline)
        self._record()
        with ThreadPoolExecutor() as waiting:
            waits = [waiting.submit(getattr(self, name).wait_ready, deadline=deadline) for name in self.parts]
        for each in waits:
            each.result()
        remember_ports(self.data_dir / "ports.json", dict(zip(self._given, ports, strict=True)))

    def _record(self) -> None:
        children = [child for name in self.parts if (child := getattr(self, name).child) is not None]
        record(self.data_dir / "run/processes.json", [*self._extra, *children])
