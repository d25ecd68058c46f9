"""Shows the logs of the processes of `payloops dev` on its terminal, shortened."""

import json
import re
from pathlib import Path

LEVEL = re.compile(r"\[(debug|info|warning|error|critical)\s*\]|\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOUD = {"warning", "error", "critical"}
COLOUR = {"info": "dim", "warning": "yellow", "error": "red", "critical": "red"}
FIELD = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)")
# The service's events are one word, messages of libraries are several.
READABLE = re.compile(
    rf"\S*[T ](?P<time>[\d:]{{8}})\S* \[\w+\s*\] (?P<event>\S.*?)(?P<fields>(?:\s+{FIELD.pattern})*)\s*"
)


class LogTail:
    """Reads new lines of a process's log, and selects those to show on the terminal.

    A line without a level, such as of a traceback, belongs to the line before it.
    """

    def __init__(self, *, name: str, path: Path) -> None:
        self.path = path
        self._name = name
        self._offset = 0
        self._rest = b""
        self._showing = False

    def from_offset(self, offset: int) -> None:
        """A new process writes from here on; if the log was rotated, it begins again."""
        if offset < self._offset:
            self._rest = b""
        self._offset = min(self._offset, offset) if self._offset else offset

    def lines(self, *, chatty: bool = False) -> list[tuple[str, str]]:
        """New lines to show, each with its style: if `chatty`, from level info, otherwise from warning."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                read = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(read)
        *whole, self._rest = (self._rest + read).split(b"\n")
        new = (COLOURS.sub("", part.decode(errors="replace")).rstrip() for part in whole)
        return [self._shown(line) for line in new if line and self._selected(line, chatty)]

    def _shown(self, line: str) -> tuple[str, str]:
        return shortened(line, name=self._name), COLOUR.get(level_of(line) or "", "")

    def _selected(self, line: str, chatty: bool) -> bool:
        level = level_of(line)
        if level is not None:
            self._showing = level in LOUD or (chatty and level == "info")
        return self._showing


def shortened(line: str, *, name: str) -> str:
    """A log line for the terminal, without the date, the level and, for requests, most fields: they are in the log."""
    match = READABLE.fullmatch(line)
    if match is None:
        return f"{name:<10} {line}"
    fields = {key: value.strip("'\"") for key, value in FIELD.findall(match["fields"])}
    if match["event"] == "http.request":
        says = "{method} {route} → {status} in {milliseconds} ms"
        if fields.get("route") == "None":  # there is no such route, and paths are not logged
            fields["route"] = "(no such path)"
        says = says.format_map({"method": "", "route": "", "status": "?", "milliseconds": "?", **fields})
    else:
        kept = (f"{key}={value}" for key, value in fields.items() if key != "process")
        says = " ".join((match["event"].rstrip(), *kept))
    return f"{match['time']} {name:<10} {says}"


def level_of(line: str) -> str | None:
    """The level of a log line, readable or JSON; None if it has none. What a command says of itself is a warning."""
    if line.startswith("payloops: "):
        return "warning"
    if line.startswith("{"):
        try:
            level = json.loads(line).get("level")
        except ValueError:
            return None
        return str(level).lower() if level else None
    found = LEVEL.search(line[:120])
    return (found[1] or found[2]).lower() if found else None
