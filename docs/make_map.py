"""Writes docs/map.md from the code: route → command → events → projections. `make map`; compared in CI."""

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

from payloops.events import checkout_sessions, merchants, orders
from payloops.events.stream import StreamEvent, topic_of
from payloops.http.app import ROUTES
from payloops.http.routing import Route

ROOT = Path(__file__).resolve().parent.parent
MAP = Path(__file__).with_name("map.md")
HEAD = """\
# Map: where the code of a request is

Written by `make map` from the code; a test checks that it is current. Search it for a use case to see its modules.

| route | handler | commands | events | projections |
|---|---|---|---|---|
"""


def main() -> int:
    text = make_map()
    if "--check" in sys.argv:
        return 0 if MAP.read_text() == text else 1
    MAP.write_text(text)
    return 0


def make_map() -> str:
    """The page as it should be."""
    return HEAD + "".join(_row(route) for route in ROUTES)


def _row(route: Route) -> str:
    handler = route.handler
    path = Path(inspect.getfile(handler))
    commands = {
        module for module in _modules_behind(handler.__name__, path, "commands") if _topics_of(module)
    }
    topics = {topic for command in commands for topic in _topics_of(command)}
    read = _modules_behind(handler.__name__, path, "projections")
    projections = read | {reader for topic in topics for reader in _projections_of(topic)}
    cells = (
        f"`{route.method} {route.path}`",
        f"http/{path.stem}.py `{handler.__name__}`",
        ", ".join(f"commands/{command}.py" for command in sorted(commands)) or "-",
        ", ".join(sorted(topics)) or "-",
        ", ".join(f"projections/{reader}.py" for reader in sorted(projections)) or "-",
    )
    return "| " + " | ".join(cells) + " |\n"


def _modules_behind(function: str, path: Path, layer: str) -> set[str]:
    """Modules of a layer that a function of http/ uses, itself or by what other files there read for it."""
    names = _names_used_by(function, path)
    found = {module for name, module in _imported_from(f"payloops.{layer}", path).items() if name in names}
    for name, module in _imported_from("payloops.http", path).items():
        if name in names and name.startswith("read_"):
            found |= _modules_behind(name, ROOT / "http" / f"{module}.py", layer)
    return found


def _names_used_by(function: str, path: Path) -> set[str]:
    """Names that a function uses, itself or by other functions of its file."""
    functions = {
        node.name: node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    used: set[str] = set()
    waiting = [function]
    while waiting:
        names = {node.id for node in ast.walk(functions[waiting.pop()]) if isinstance(node, ast.Name)} - used
        used |= names
        waiting += [name for name in names if name in functions]
    return used


def _topics_of(command: str) -> set[str]:
    """Topics of the facts that a command's module records, itself or by what it imports of other commands."""
    path = ROOT / "commands" / f"{command}.py"
    nodes = list(ast.walk(ast.parse(path.read_text())))
    matched = {id(node.cls) for node in nodes if isinstance(node, ast.MatchClass)}  # read, not recorded
    names = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in matched}
    topics = {topic for name, topic in _facts().items() if name in names}
    if "Order.create(" in path.read_text():
        topics.add(topic_of(orders.OrderCreated))
    for module in set(_imported_from("payloops.commands", path).values()) - {command}:
        topics |= _topics_of(module)
    return topics


def _projections_of(topic: str) -> list[str]:
    """Projections, modules that define a table, that name the fact of a topic."""
    [name] = [name for name, of in _facts().items() if of == topic]
    found = []
    for path in (ROOT / "projections").glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        if {name, "Table"} <= names:
            found.append(path.stem)
    return found


def _facts() -> dict[str, str]:
    modules: tuple[ModuleType, ...] = (orders, merchants, checkout_sessions)
    return {
        name: topic_of(value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, StreamEvent) and "TOPIC" in vars(value)
    }


def _imported_from(package: str, path: Path) -> dict[str, str]:
    """Names that a file imports from modules of a package, and the modules."""
    return {
        alias.asname or alias.name: node.module.removeprefix(f"{package}.")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module is not None
        and node.module.startswith(f"{package}.")
        for alias in node.names
    }


if __name__ == "__main__":
    sys.exit(main())
