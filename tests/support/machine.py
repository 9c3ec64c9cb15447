"""A machine of its own with a real systemd as its first process, in a throw-away copy of a root file system.

It shares this one's network: what listens here is reached from there, and the other way. Needs root and systemd-nspawn.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

INCLUDED = "systemd,systemd-sysv,dbus,python3,ca-certificates"  # in a clean Debian


class Unavailable(Exception):
    """No such machine can be had here; says what is missing."""


class Machine:
    """`with Machine(tmp_path) as machine`: booted as far as the basics, gone afterwards. Raises Unavailable.

    `tree` is the root file system it begins with; nothing is ever written there.
    """

    def __init__(self, folder: Path, tree: Path = Path("/")) -> None:
        self._folder, self._tree, self._mounted = folder, tree, folder / "tree"

    def __enter__(self) -> Machine:
        if os.geteuid():
            raise Unavailable("only root can boot a machine")
        if not shutil.which("systemd-nspawn"):
            raise Unavailable("systemd-nspawn is not installed (Debian: systemd-container)")
        self._mounted.mkdir()
        # nspawn refuses "/" itself
        subprocess.run(["mount", "--bind", self._tree, self._mounted], check=True)
        command = ["systemd-nspawn", "--quiet", "--directory", str(self._mounted), "--volatile=overlay", "--boot"]
        # no systemd need run here, no terminal be there
        command += ["--register=no", "--keep-unit", "--console=read-only", "--machine=session-proxy-test"]
        with (self._folder / "boot.log").open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*command, "--", "--unit=sysinit.target"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._children():
            os.kill(process, 9)  # the first process: all others go with it
        self._nspawn.kill()
        self._nspawn.wait(10)
        subprocess.run(["umount", "--lazy", self._mounted], check=True)

    @property
    def root(self) -> Path:
        """Its root file system, seen from here."""
        return Path(f"/proc/{self._children()[0]}/root")

    def run(self, *command: str, check: bool = True, timeout: float = 120.0) -> str:
        """What a command prints there, errors too; AssertionError where it fails."""
        enter = ["nsenter", "-t", str(self._children()[0]), "-m", "-u", "-i", "-p", "-C"]
        done = subprocess.run(
            [*enter, *command],
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},  # not this project's
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def _await_boot(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            if self._children() and self.run("systemctl", "is-active", "sysinit.target", check=False) == "active\n":
                return
            time.sleep(0.05)
        raise Unavailable(f"systemd does not boot here: {(self._folder / 'boot.log').read_text()[-300:]}")

    def _children(self) -> list[int]:
        found = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        return [int(each) for each in found.read_text().split()] if found.exists() else []


def clean_debian(folder: Path) -> Path:
    """The root file system of a Debian without anything, for the release that runs here. Takes minutes."""
    if not shutil.which("debootstrap"):
        raise Unavailable("debootstrap is not installed (Debian: debootstrap)")
    release = next(line for line in Path("/etc/os-release").read_text().splitlines() if "VERSION_CODENAME" in line)
    made = folder / "debian"
    command = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", release.partition("=")[2], str(made)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made
