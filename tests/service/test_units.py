"""The units, as systemd's own checker reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
PROGRAM = "/opt/session-proxy/bin/session-proxy"
EXPOSURE = 15  # tenths


def lines(name: str) -> list[str]:
    """What a unit says, without its reasons."""
    return [line for line in (UNITS / name).read_text().splitlines() if line and not line.startswith("#")]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies of all units, the template as an instance. The program is not installed where the tests run, and
    that it is missing is all that would be said."""
    for unit in UNITS.iterdir():
        name = unit.name.replace("@.", "@kitchen.")
        (tmp_path / name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    return [str(unit) for unit in tmp_path.iterdir()]


def test_systemd_analyze_accepts_the_units(units: list[str]) -> None:
    assert len(units) >= 3
    checked = analyze("verify", *units)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_units_have_a_low_exposure_score(units: list[str]) -> None:
    for unit in units:
        if unit.endswith(".service"):
            checked = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
            assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_instance_unit_differs_from_the_service_unit_in_names_alone() -> None:
    own = {"Wants=session-proxy.socket", "After=session-proxy.socket", "Also=session-proxy.socket"}
    asked = [line for line in lines("session-proxy.service") if line not in own]
    folder = "/etc/session-proxy/"
    names = {
        f"{folder}session-proxy.yaml": f"{folder}%i.yaml",
        f"{folder}upstream-api-key": f"{folder}%i.upstream-api-key",
        f"{folder}environment": f"{folder}%i.environment",
        "StateDirectory=session-proxy": "StateDirectory=session-proxy-%i",
        "OpenAI-compatible APIs": "OpenAI-compatible APIs, %i",
    }
    text = "\n".join(asked)
    for name, other in names.items():
        text = text.replace(name, other)
    assert text.splitlines() == lines("session-proxy@.service")


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "DynamicUser=yes",
        "StateDirectory=session-proxy",
        "KillMode=mixed",
        "RestartPreventExitStatus=2 78",
        "UMask=0077",
        "LimitCORE=0",
    ],
)
def test_the_unit_has_the_settings_the_documentation_promises(line: str) -> None:
    assert line in lines("session-proxy.service")
