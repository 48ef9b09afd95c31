"""The server itself: the address, the process that speaks HTTP (the front), the signals, the end.

The front is a child of this process, which has the engine. It is a new Python, not a fork, because a GPU's library does
not survive a fork. It starts first, so that its imports take no time from this process, which loads the model.

The first signal asks for an end: no new texts, and a few seconds for those that are being written. The second one ends
both processes at once. Signals are this process's business alone, though a terminal sends Ctrl-C to both. If one of
the two dies, the other one says so and ends.
"""

import ipaddress
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gpt.errors import UserError, cannot
from gpt.serve.channel import Channel, ChannelClosedError
from gpt.serve.engine import Engine
from gpt.serve.errors import ENDING
from gpt.serve.front import Start, handle
from gpt.serve.messages import Done
from gpt.system import ending, interrupts

GRACE = 5.0  # seconds for the texts that are being written when a signal comes: less than the 10 that Docker gives
_GROUP = int(getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))  # on Windows, which then sends it no Ctrl-C
FAREWELL = 5.0  # seconds in which the front must have ended, once the engine has


class Address(NamedTuple):
    """Where the server listens, and the token that it asks for (None: none). `url` is as in "http://127.0.0.1:8000"."""

    listener: socket.socket
    host: str
    token: str | None
    url: str


def listening(host: str, port: int, token: str | None) -> Address:
    """Begin to listen. Without a `token`, one is made up if other machines can reach this host.

    Raises UserError if that is impossible.
    """
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token or not token):
        raise UserError("--token must be a word of ASCII characters, because it travels in a header")
    if not host:
        raise UserError("--host is empty: give an address, such as 127.0.0.1, or 0.0.0.0 for all")
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}, but must be from 0 to {(1 << 16) - 1}")
    try:
        family, _, _, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(at[:2], family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen on {host}, port {port}: {_why(error)}: take another --port or --host") from None
    own, number = listener.getsockname()[:2]
    if token is None and not ipaddress.ip_address(own).is_loopback:
        token = secrets.token_urlsafe(24)
    # A server that listens everywhere goes by this machine's name.
    name = socket.gethostname() if ipaddress.ip_address(own).is_unspecified else host
    return Address(listener, host, token, f"http://{f'[{name}]' if ':' in name else name}:{number}")


def _why(error: Exception) -> str:
    """In the system's words alone: Python adds the address as its own types print it."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def front(address: Address, root: Path, served: Sequence[str]) -> Iterator[Channel]:
    """The process that speaks HTTP at an address about the runs in `root` (see `Runs`), from its start to its end.

    If it ends before the `with` does, this process ends with status 1, whatever it does.
    """
    ours, theirs = socket.socketpair()
    with theirs, address.listener:
        process = _started(address, theirs, root, served)
    is_expected = False

    def watch() -> None:
        status = process.wait()
        if not is_expected:
            ending.say(f"Error: the process that speaks HTTP {_ended(status)}, so hipgpt serve ends too")
            ending.at_once(1)

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    channel = Channel(ours)
    try:
        yield channel
    except ChannelClosedError:
        watcher.join()  # this process ends there
        raise
    except (UserError, KeyboardInterrupt):  # before anything was served
        is_expected = True
        process.kill()
        raise
    finally:
        is_expected = True
        ours.settimeout(FAREWELL)  # it may have stopped reading
        with suppress(ChannelClosedError):
            channel.send(Done(ENDING))
        watcher.join(FAREWELL)
        process.kill()
        channel.close()


def run(engine: Engine, report: Callable[[str], None]) -> None:
    """Serve until a signal comes. Call it in the main thread, inside `interrupts.raised`."""

    def end() -> None:
        report(f"Ending, once texts are complete or {GRACE:.0f} s have passed. Again to end at once")
        engine.end(GRACE)

    with interrupts.deferred(end, lambda: "Ended at once"):
        engine.run()


def _started(address: Address, channel: socket.socket, root: Path, served: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start the front. It is told everything through its standard input, because others can see its arguments."""
    command = [sys.executable, str(Path(__file__).parent), address.url]
    shared = () if sys.platform == "win32" else (channel.fileno(), address.listener.fileno())
    with _signals_kept(), cannot("start the process that speaks HTTP", even_if_missing=True):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=shared, creationflags=_GROUP)
    start = Start(
        handle(channel, process.pid),
        handle(address.listener, process.pid),
        root.resolve(),
        tuple(served),
        address.host,
        address.token,
    )
    assert process.stdin
    with suppress(BrokenPipeError), process.stdin:  # `front` says that it has ended
        pickle.dump(sys.path, process.stdin)
        pickle.dump(start, process.stdin)
    return process


@contextmanager
def _signals_kept() -> Iterator[None]:
    """A process that starts inside the `with` gets no signals that ask for an end. This one gets them afterwards."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(status: int) -> str:
    """How a process has ended, by its status: "has ended with status 3", "was killed by SIGKILL"."""
    if status >= 0:
        return f"has ended with status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
