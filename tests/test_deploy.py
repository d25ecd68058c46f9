"""The files in deploy/ name only what exists."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from typer.main import get_command

from payloops.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
OPERATING = (ROOT / "docs/operating.md").read_text()
UNITS = ROOT / "deploy/systemd"
ALERTS = (ROOT / "deploy/prometheus-alerts.yml").read_text().split("- alert: ")[1:]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
INSTALLED = "/opt/payloops/bin/payloops"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.partition("\n")[0])
def test_an_alert_is_about_metrics_that_exist_and_names_commands_that_exist(alert: str) -> None:
    metrics = re.findall(r"payloops_(\w+)", alert)
    assert metrics
    assert {name for name in metrics if f"`{name}`" not in OPERATING} == set()
    assert set(re.findall(r"`payloops (\w+)", alert)) <= COMMANDS.keys()


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
        unit.write_text(unit.read_text().replace(INSTALLED, here))
    names = ["payloops@serve.service", "payloops@migrate.service", "payloops@worker.service"]
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
