"""A lock on a directory, so that one process at a time writes there.

The operating system locks the file `.lock`, and releases it when the process ends, however it ends. On a file system
without locks (NFS without lockd, Lustre without its option, some FUSE ones) the file `.lock.json` says who holds the
lock: the host, the process, and when that started. Its holder touches it every 20 seconds. The next process takes the
lock over once the holder is gone (seen from the same host), or has not touched the file for two minutes (seen from
another host).
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpt.system.filesystem import LACKING, note, try_lock

BEAT = 20.0  # seconds between two touches of `.lock.json`
ABANDONED = 120.0  # seconds without a touch after which another host takes the lock over
UNSIGNED = 2.0  # seconds after which a file without a name in it counts as abandoned: its writer was killed
SETTLED = 0.5  # seconds after which one of several processes that took the lock over together has won

LOCK, OWNER = ".lock", ".lock.json"
NAMES = frozenset({LOCK, OWNER})


class Owner(NamedTuple):
    """The process that holds a lock, as `.lock.json` has it."""

    host: str
    process: int
    started: str | None


class Lock:
    """The lock of `directory`, held from a successful `acquire` until `release`.

    Example:
        lock = Lock(directory)
        if not lock.acquire():
            raise UserError(f"{directory} is being written to by another process{lock.holder()}")
        try:
            ...
        finally:
            lock.release()
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._owner_path = directory / LOCK, directory / OWNER
        self._handle: int | None = None
        self._released = threading.Event()
        self._mine: Owner | None = None  # set if `.lock.json` is the lock

    def acquire(self) -> bool:
        """Take the lock, without waiting. False if another process holds it.

        Raises OSError if the directory is missing or cannot be written to.
        """
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not try_lock(handle):
                    return False
                with suppress(FileNotFoundError):  # removed since it was opened: then lock the one that is there now
                    if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                        self._handle, handle = handle, -1
                        return True
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                note("locks", f"{self._path.parent} has no locks ({error.strerror}): {OWNER} says who writes to it")
                return self._sign()
            finally:
                if handle >= 0:
                    os.close(handle)

    def release(self) -> None:
        """Let the next process have the lock. Does nothing if it is not held."""
        self._released.set()
        if self._mine is not None and self._owner() == self._mine:
            with suppress(OSError):
                self._owner_path.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> str:
        """The process that holds the lock, for a message: " (process 12 on host a)". Empty if no file names it."""
        owner = self._owner()
        return f" (process {owner.process} on {owner.host})" if owner else ""

    def _sign(self) -> bool:
        """Write this process's name into `.lock.json`. False if that names another process, which still runs."""
        mine = Owner(host(), os.getpid(), _started(os.getpid()))
        text = json.dumps(mine._asdict()) + "\n"
        try:
            handle = os.open(self._owner_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not self._take_over(mine, text):
                return False
        else:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
        self._mine = mine
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _take_over(self, mine: Owner, text: str) -> bool:
        """Put this process's name in the place of one that is gone.

        False if that process still runs, or if yet another one has put its own name there meanwhile.
        """
        candidate = self._owner_path.with_name(f".{OWNER}.{os.getpid()}.tmp")
        candidate.write_text(text, encoding="utf-8")
        try:
            if not self._is_abandoned(now=candidate.stat().st_mtime):
                return False
            os.replace(candidate, self._owner_path)
            time.sleep(SETTLED)
        finally:
            candidate.unlink(missing_ok=True)
        return self._owner() == mine

    def _is_abandoned(self, now: float) -> bool:
        """Whether the process that holds the lock is gone. `now` is by the file system's clock, not by this host's."""
        try:
            age = now - self._owner_path.stat().st_mtime
        except FileNotFoundError:
            return True
        owner = self._owner()
        if owner is None:
            return age > UNSIGNED
        if owner.host == host():
            return _started(owner.process) != owner.started
        return age > ABANDONED

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            if self._owner() not in (self._mine, None):
                note("lost", f"another process has taken {self._owner_path} over, as this one stood still: ending")
                os._exit(2)
            with suppress(OSError):
                os.utime(self._owner_path)

    def _owner(self) -> Owner | None:
        """The process that `.lock.json` names; None if there is no such file, or it names none."""
        with suppress(OSError, ValueError, RecursionError, TypeError):
            owner = Owner(**json.loads(self._owner_path.read_text(encoding="utf-8")))
            if isinstance(owner.process, int):
                return owner
        return None


def is_held(directory: Path) -> bool:
    """Whether a process holds the lock of `directory`. Nothing is written; False if the directory cannot be read."""
    lock = Lock(directory)
    with suppress(OSError):
        handle = os.open(directory / LOCK, os.O_RDONLY)
        try:
            if not try_lock(handle):
                return True
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(handle)
        return lock._owner() is not None and not lock._is_abandoned(now=time.time())
    return False


def host() -> str:
    """This host, with the namespace of process numbers if the system tells: each container has its own."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this host started; None if it does not run. Tells it from a later process of its number."""
    import psutil

    with suppress(OSError):  # in ticks since the system started, which stay the same when somebody sets the clock
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    with suppress(psutil.Error):
        return f"{psutil.Process(process).create_time():.0f}"
    return None
