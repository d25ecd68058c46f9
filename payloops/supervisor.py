"""Keeps the processes of `payloops dev` running, and shows their output."""

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from payloops.embedded.processes import Child

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds before a part that died is started again
SETTLED = 30.0  # seconds of running after which a part's earlier deaths are forgotten
STOP_SECONDS = 20.0

LEVEL = re.compile(r"\[(debug|info|warning|error|critical)\s*\]|\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOUD = {"warning", "error", "critical"}
COLOUR = {"info": "dim", "warning": "yellow", "error": "red", "critical": "red"}
FIELD = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)")
# The service's events are one word, messages of libraries are several.
READABLE = re.compile(
    rf"\S*[T ](?P<time>[\d:]{{8}})\S* \[\w+\s*\] (?P<event>\S.*?)(?P<fields>(?:\s+{FIELD.pattern})*)\s*"
)


class Part:
    """A process of the service, which is started again when it dies, after growing pauses."""

    def __init__(
        self,
        *,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        chatty: bool,
        started: Callable[[Child], None],
    ) -> None:
        self.name = name
        self.log = LogTail(name=name, path=log, chatty=chatty)
        self.child: Child | None = None
        self._arguments = arguments
        self._environment = environment
        self._started = started
        self._deaths = 0
        self._began = 0.0
        self._due = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        self.child = Child(
            name=self.name,
            command=[sys.executable, "-P", "-m", "payloops", *self._arguments],
            log=self.log.path,
            # If this process is killed, the servers end as well, so there is no point in a graceful stop.
            death_signal=signal.SIGKILL,
            environment=self._environment,
        )
        self.log.from_offset(self.child.log_offset)
        self._started(self.child)

    def watch(self) -> str | None:
        """Start it again if that is due. If it has just died, returns a line that says so."""
        now = time.monotonic()
        if self.child is None:
            if now >= self._due:
                self.start()
            return None
        status = self.child.exit_status()
        if status is None:
            if self._deaths and now - self._began > SETTLED:
                self._deaths = 0
            return None
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._deaths)
        self._deaths += 1
        self._due = now + pause
        self.child = None
        return f"{self.name} {how_it_ended(status)}; starting it again in {pause:g} s (log: {self.log.path})"

    def ask_to_stop(self) -> None:
        if self.child is not None:
            self.child.send(signal.SIGTERM)

    def end(self, *, seconds: float) -> None:
        """Wait for it to stop, and kill it after that time."""
        if self.child is not None and not self.child.wait(seconds=seconds):
            self.child.kill()
        self.child = None


class Terminal:
    """The terminal. If it is closed, errors in writing to it are ignored, so that everything still stops in order."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._is_terminal = sys.stdout.isatty()

    def is_gone(self) -> bool:
        return self._is_terminal and not sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print text with rich's markup, never wrapped, so that it can be copied."""
        with contextlib.suppress(OSError, SystemExit):  # rich exits where the reader of a pipe has gone
            self._console.print(text, soft_wrap=True)

    def bare(self, text: str, *, style: str = "") -> None:
        """Print text as it is, without markup."""
        with contextlib.suppress(OSError, SystemExit):
            self._console.out(text, style=style or None, highlight=False)


def stop_parts(parts: Sequence[Part], *, seconds: float = STOP_SECONDS) -> None:
    """Stop several parts at the same time."""
    deadline = time.monotonic() + seconds
    for each in parts:
        each.ask_to_stop()
    for each in parts:
        each.end(seconds=max(0.0, deadline - time.monotonic()))


def how_it_ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


class LogTail:
    """Reads new lines of a process's log, and selects those to show on the terminal.

    If `chatty`, from level info, otherwise from warning. A line without a level, such as of a traceback, belongs to the
    line before it.
    """

    def __init__(self, *, name: str, path: Path, chatty: bool) -> None:
        self.path = path
        self._name = name
        self._chatty = chatty
        self._offset = 0
        self._rest = b""
        self._showing = False

    def from_offset(self, offset: int) -> None:
        """A new process writes from here on; if the log was rotated, it begins again."""
        if offset < self._offset:
            self._rest = b""
        self._offset = min(self._offset, offset) if self._offset else offset

    def lines(self) -> list[tuple[str, str]]:
        """New lines to show, each with its style."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                read = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(read)
        *whole, self._rest = (self._rest + read).split(b"\n")
        new = (COLOURS.sub("", part.decode(errors="replace")).rstrip() for part in whole)
        return [self._shown(line) for line in new if line and self._selected(line)]

    def _shown(self, line: str) -> tuple[str, str]:
        return shortened(line, name=self._name), COLOUR.get(level_of(line) or "", "")

    def _selected(self, line: str) -> bool:
        level = level_of(line)
        if level is not None:
            self._showing = level in LOUD or (self._chatty and level == "info")
        return self._showing


def shortened(line: str, *, name: str) -> str:
    """A log line for the terminal, without the date, the level and, for requests, most fields: they are in the log."""
    match = READABLE.fullmatch(line)
    if match is None:
        return f"{name:<10} {line}"
    fields = {key: value.strip("'\"") for key, value in FIELD.findall(match["fields"])}
    if match["event"] == "http.request":
        says = "{method} {route} → {status} in {milliseconds} ms"
        says = says.format_map({"method": "", "route": "", "status": "?", "milliseconds": "?", **fields})
    else:
        kept = (f"{key}={value}" for key, value in fields.items() if key != "process")
        says = " ".join((match["event"].rstrip(), *kept))
    return f"{match['time']} {name:<10} {says}"


def level_of(line: str) -> str | None:
    """The level of a log line, readable or JSON; None if it has none."""
    if line.startswith("{"):
        try:
            level = json.loads(line).get("level")
        except ValueError:
            return None
        return str(level).lower() if level else None
    found = LEVEL.search(line[:120])
    return (found[1] or found[2]).lower() if found else None
