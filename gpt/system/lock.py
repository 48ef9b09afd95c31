"""One process at a time in a directory: a lock of the operating system's, or where there is none, a file.

The operating system releases its lock when the process ends, however it ends. Some file systems have no locks (NFS
without lockd, Lustre without its option, some of FUSE). There `.lock.json` says who holds the lock: host, process and
when that started. It is abandoned, and whoever comes next takes it over, once the process is gone (seen from the same
host) or once nobody has touched the file for two minutes (seen from another); its holder touches it every 20 seconds.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.system.files import LACKING, note

BEAT = 20.0  # seconds between two touches of a file that stands for a lock
ABANDONED = 120.0  # seconds without a touch after which another host takes it over
UNSIGNED = 2.0  # seconds after which a file without a name in it is abandoned: its writer was killed before it wrote
SETTLED = 0.5  # seconds after which the last of several processes that took a file over is known

LOCK, OWNER = ".lock", ".lock.json"
NAMES = frozenset({LOCK, OWNER})


class Lock:
    """The lock of `directory`, held from a successful `acquire` until `release`."""

    def __init__(self, directory: Path) -> None:
        self._path, self._owner = directory / LOCK, directory / OWNER
        self._handle: int | None = None
        self._released = threading.Event()
        self._mine: dict[str, Any] | None = None

    def acquire(self) -> bool:
        """Take the lock, without waiting; False if another process holds it. OSError if the directory is read-only."""
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(handle)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                        self._handle, handle = handle, -1
                        return True
            except OSError as error:
                if _is_taken(error):
                    return False
                if error.errno not in LACKING:
                    raise
                note("locks", f"{self._path.parent} has no locks ({error.strerror}): {OWNER} says who writes to it")
                return self._sign()
            finally:
                if handle >= 0:
                    os.close(handle)

    def release(self) -> None:
        """Let the next process have the lock."""
        self._released.set()
        if self._mine is not None and self._read() == self._mine:
            with suppress(OSError):
                self._owner.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> str:
        """Who holds the lock, as far as a file says so: " (process 12 on host a)"."""
        owner = self._read()
        return f" (process {owner['process']} on {owner['host']})" if owner else ""

    def _sign(self) -> bool:
        """Put this process's name into the file that stands for the lock, unless it has another's that still runs."""
        mine = {"host": _host(), "process": os.getpid(), "started": _started(os.getpid())}
        text = json.dumps(mine) + "\n"
        try:
            handle = os.open(self._owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            candidate = self._owner.with_name(f".{OWNER}.{os.getpid()}.tmp")
            candidate.write_text(text, encoding="utf-8")
            try:
                if not self._is_abandoned(candidate.stat().st_mtime):
                    return False
                os.replace(candidate, self._owner)
                time.sleep(SETTLED)
            finally:
                candidate.unlink(missing_ok=True)
            if self._read() != mine:  # another process took it over at the same time, and a little later
                return False
        else:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
        self._mine = mine
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _is_abandoned(self, now: float) -> bool:
        """`now` is the file system's time, which need not be this host's."""
        try:
            age = now - self._owner.stat().st_mtime
        except FileNotFoundError:
            return True
        owner = self._read()
        if owner is None:
            return age > UNSIGNED
        if owner["host"] == _host():
            return _started(owner["process"]) != owner["started"]
        return age > ABANDONED

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            if self._read() not in (self._mine, None):
                note("lost", f"another process has taken {self._owner} over, as this one stood still: ending")
                os._exit(2)
            with suppress(OSError):
                os.utime(self._owner)

    def _read(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            if isinstance(owner["process"], int) and owner.keys() >= {"host", "started"}:
                return owner
        return None


def _lock(handle: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_taken(error: OSError) -> bool:
    return isinstance(error, BlockingIOError) or (os.name == "nt" and isinstance(error, PermissionError))


def _host() -> str:
    """This host, and which of its spaces of process numbers (a container has one of its own) this process is in."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this host started, None if there is none: its number may long be another one's."""
    import psutil

    with suppress(OSError):  # in ticks since the system's start, which no change of the clock moves
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    with suppress(psutil.Error):
        return f"{psutil.Process(process).create_time():.0f}"
    return None
