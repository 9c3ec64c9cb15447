"""The tests of the upstream client, and turns through a server, with the oldest and the newest release of aiohttp that
`setup.cfg` allows: what the proxy uses of it beyond its documentation may change with each."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("foundation", "upstream", "downstream", "server/test_passthrough.py", "server/test_untouched.py")
TURNS = ("turns/test_relay.py", "turns/test_resume.py")
MINUTES = 15
FEW = 5


def supported() -> str:
    """What `setup.cfg` says of aiohttp."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (line,) = re.findall(r"^aiohttp\s*(.*)$", setup["options"]["install_requires"], re.M)
    return str(line)


def oldest() -> str:
    (version,) = re.findall(r">=\s*([\d.]+)", supported())
    return f"aiohttp == {version}"


def installed(requirement: str, folder: Path) -> str:
    """The version that was installed into a folder. Skips the test where no index gives it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", "aiohttp"]
    done = subprocess.run(
        [*pip, "--target", str(folder), requirement], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.skip(f"{requirement} cannot be installed: {(done.stderr.splitlines() or ['?'])[-1]}")
    (version,) = [path.name.split("-")[1].removesuffix(".dist") for path in folder.glob("aiohttp-*.dist-info")]
    return version


@pytest.mark.soak
@pytest.mark.timeout(120 * MINUTES)
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="minutes, and a package index: SOAK=1")
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_the_proxy_works_with_the_oldest_and_the_newest_release(which: str, tmp_path: Path) -> None:
    version = installed(oldest() if which == "oldest" else f"aiohttp {supported()}", tmp_path)
    print(f"the {which} release of aiohttp that is allowed: {version}")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}  # before what the tests themselves run with
    seen = subprocess.run(
        [sys.executable, "-c", "import aiohttp; print(aiohttp.__version__, aiohttp.__file__)"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert seen.startswith(f"{version} {tmp_path}")
    failed = run(environ, [f"tests/{name}" for name in (*TESTS, *TURNS)])
    if 0 < len(failed) <= FEW:  # tests with tight times, beside other work
        failed = run(environ, failed)
    assert failed == []


def run(environ: dict[str, str], tests: list[str]) -> list[str]:
    """The tests that fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60 * MINUTES, check=False
    )
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.M)
    assert done.returncode == 0 or failed, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout[-1000:])
    return failed
