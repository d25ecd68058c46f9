"""The files in deploy/ name only what exists."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import caller, server
from typer.main import get_command

from payloops.cli.app import app
from payloops.http.app import ROUTES
from payloops.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
OPERATING = (ROOT / "docs/operating.md").read_text()
UNITS = ROOT / "deploy/systemd"
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
ALERTS = (ROOT / "deploy/prometheus-alerts.yml").read_text().split("- alert: ")[1:]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
INSTALLED = "/opt/payloops/bin/payloops"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.partition("\n")[0])
def test_an_alert_is_about_metrics_that_exist_and_names_commands_that_exist(alert: str) -> None:
    metrics = re.findall(r"payloops_(\w+)", alert)
    assert metrics
    assert {name for name in metrics if f"`{name}`" not in OPERATING} == set()
    assert set(re.findall(r"`payloops (\w+)", alert)) <= COMMANDS.keys()


async def test_what_alerts_wait_for_is_counted_from_0(settings: Settings, tmp_path: Path) -> None:
    """`rate` and `increase` see nothing in a count that begins with 1: the first error would go unnoticed."""
    with server(settings, tmp_path / "log", workers=2) as running:
        url = await running.listening(workers=2)
        async with caller(url) as anyone:
            text = (await anyone.get("/metrics")).raw.decode()
    counts = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    waited_for = re.findall(r"(?:rate|increase)\((\w+)(?:\{([^}]*)\})?\[", "".join(ALERTS))
    assert len(waited_for) >= 8
    for name, selector in waited_for:
        matchers = re.findall(r'(\w+)([=!]~|!?=)"([^"]*)"', selector)
        found = [each for each in counts if each.name == name and _fits(each.labels, matchers)]
        assert found, name
        if name == "payloops_http_requests_total" and matchers:
            routes = {(each.labels["method"], each.labels["route"]) for each in found}
            assert routes >= {(route.method, route.path) for route in ROUTES}


def _fits(labels: dict[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    """As Prometheus sees it."""
    return all(
        (re.fullmatch(wanted, labels[name]) is not None) == operator.startswith("=")
        for name, operator, wanted in matchers
    )


def test_the_units_run_commands_that_exist() -> None:
    run = re.findall(rf"^ExecStart={INSTALLED} (\w+)", _text_of_units(), re.MULTILINE)
    instances = re.findall(r"payloops@(\w+)\.service", _text_of_units())
    assert {"serve", "projector", "subscriber", "worker", "migrate"} == set(instances)
    assert {*run, *instances} <= COMMANDS.keys()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = tmp_path / "systemd"
    shutil.copytree(UNITS, units)
    for unit in filter(Path.is_file, units.rglob("*")):
        here = str(Path(sysconfig.get_path("scripts")) / "payloops")
        unit.write_text(unit.read_text().replace(INSTALLED, f'"{here}"'))
    services = ["serve", "migrate", "worker", "reconcile", "reconcile-daily"]
    timers = [timer.name for timer in UNITS.glob("*.timer")]
    assert len(timers) == 2
    names = [*(f"payloops@{name}.service" for name in services), *timers, "payloops@serve.socket"]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "payloops.target", *names],
        cwd=units,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_ours = [line for line in verified.stderr.splitlines() if "payloops" in line]
    assert (about_ours, verified.returncode) == ([], 0)


def _text_of_units() -> str:
    return "\n".join(unit.read_text() for unit in sorted(UNITS.rglob("*")) if unit.is_file())


def test_the_image_has_the_whole_package(tmp_path: Path) -> None:
    """The Dockerfile copies directories by name: a new one would be missing."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for sources, target in re.findall(r"^COPY (?!--)(.+) (\S+)$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, checkout / target, symlinks=True)
            else:
                shutil.copy(ROOT / source, checkout)
    command = re.findall(r"pip install --no-cache-dir (--no-deps .+ \.)$", DOCKERFILE, re.MULTILINE)
    [options] = [each.split() for each in command]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", tmp_path, *options],
        cwd=checkout,
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    package = {
        os.path.relpath(Path(folder, name), ROOT)
        for folder, _, names in os.walk(ROOT / "payloops", followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    }
    assert package - set(ZipFile(wheel).namelist()) == set()


def test_the_image_runs_a_command_that_exists() -> None:
    assert re.findall(r'^CMD \["(\w+)"\]$', DOCKERFILE, re.MULTILINE)[0] in COMMANDS
