"""A file system of its own on a loop device, whose power can be cut. Needs root, mount and mkfs.

The cut is the kernel's own, made for tests of file systems: a shutdown without a flush of the
log. All that was not synced is gone, and every write fails from then on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
NO_LOG_FLUSH = struct.pack("I", 2)
SIZE = 512 * 2**20  # XFS asks for 300 MiB; the file is sparse
PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mount": "mount", "umount": "mount"}
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # not on every root's path


class Unavailable(Exception):
    """No such disk can be made here; says what is missing."""


class Disk:
    """`with Disk("xfs", tmp_path) as disk`: mounted at `disk.folder`, gone afterwards. Raises Unavailable."""

    def __init__(self, kind: str, beside: Path) -> None:
        self.kind = kind
        self.folder = beside / "disk"
        self._image = beside / "disk.img"

    def __enter__(self) -> Disk:
        if os.geteuid():
            raise Unavailable("only root can mount a file system")
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(SIZE)
        try:
            _run(f"mkfs.{self.kind}", "-q", self._image)
            self._mount()
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().partition("\n")[0]
            raise Unavailable(f"no {self.kind} on a loop device here: {said}") from error
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _run("umount", "--lazy", self.folder)  # whoever may still hold a file of it
        finally:
            self._image.unlink()

    def cut(self) -> None:
        """The power fails."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def remount(self) -> None:
        """The power is back; nobody may hold a file of the disk any more."""
        _run("umount", self.folder)
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-t", self.kind, "-o", "loop", self._image, self.folder)


def _run(program: str, *arguments: str | Path) -> None:
    binary = shutil.which(program, path=PATH)
    if not binary:
        raise Unavailable(f"{program} is not installed (Debian: {PACKAGES[program]})")
    subprocess.run([binary, *arguments], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
