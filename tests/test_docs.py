"""What a reader would check in README.md and docs/ is true."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from payloops.cli.app import app
from payloops.http.app import ROUTES
from payloops.http.routing import Route
from payloops.settings import Settings
from payloops.workflows_client import payment_subscription
from payloops.workflows_client.activities import BackendActivities
from payloops.workflows_client.activity_inputs import Input

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()
WORKERS = (ROOT / "docs/workers.md").read_text()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_readme_names_every_route(route: Route) -> None:
    assert f"`{route.method} {route.path}`" in README


def test_the_docs_name_every_setting_with_its_default_and_description() -> None:
    found = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \| ([^|]+) \|$", OPERATING, re.MULTILINE)
    rows = {name: (default, description) for name, default, description in found}
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, description = rows[name.upper()]
        assert description == field.description
        shown = default.strip("`")
        if field.is_required():
            assert shown == "required", name
        elif field.default in (None, ()):
            assert shown == "none", name
        else:
            assert shown == _as_written(field.default), name


def _as_written(default: object) -> str:
    match default:
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def test_the_docs_name_every_command() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    missing = {name for name in commands if f"payloops {name}" not in README + OPERATING}
    assert missing == set()


def test_the_docs_name_every_activity_and_every_field_that_workers_send() -> None:
    internal = {"attemptDelivery", "failWebhook"}  # of our own `WebhookDeliveryWorkflow`
    activities = (
        set(re.findall(r'activity.defn\(name="(\w+)"\)', inspect.getsource(BackendActivities))) - internal
    )
    assert len(activities) == 7
    fields = {field.alias for model in Input.__subclasses__() for field in model.model_fields.values()}
    assert {name for name in {*activities, *fields} if f"`{name}`" not in WORKERS} == set()


def test_the_docs_name_every_workflow_with_its_input() -> None:
    source = inspect.getsource(payment_subscription)
    workflows = set(re.findall(r'"(\w+Workflow)"', source))
    fields = set(re.findall(r'(?:^ +|\()(\w+)=fact|"(\w+)": ', source, re.MULTILINE))
    signals = set(re.findall(r'signal="(\w+)"', source))
    names = workflows | signals | {name for pair in fields for name in pair if name and "_" not in name}
    assert {name for name in names if f"`{name}`" not in WORKERS} == set()


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for file, part in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {file}"
            assert not part or part in _parts(target), f"{page.name}: {file}#{part}"


def _parts(page: Path) -> set[str]:
    """What links name the parts of a page by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_map_is_current() -> None:
    """`make map` writes it."""
    subprocess.run([sys.executable, ROOT / "docs/make_map.py", "--check"], check=True)


def test_the_package_is_built_with_nothing_but_what_is_locked() -> None:
    for file in ("docs/operating.md", "Makefile", "deploy/Dockerfile"):
        commands = re.findall(r"pip install ([^&\n]*) (?:-e )?\.$", (ROOT / file).read_text(), re.MULTILINE)
        assert ["--no-build-isolation" in command for command in commands] == [True], file


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-production.lock"])
def test_the_locks_hold_every_dependency(lock: str) -> None:
    """`make lock` writes them. What builds the package runs on the same machine: it is locked, too."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = [*project["dependencies"], *settings["build-system"]["requires"]]
    if lock == "requirements.lock":
        wanted += [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {re.split(r"[\[><=;]", each)[0].strip() for each in wanted} - {"payloops"}
    locked = set(re.findall(r"^([a-z0-9_.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    assert names - locked == set()
