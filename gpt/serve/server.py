"""The server itself: a thread of uvicorn's that speaks HTTP, beside the engine, which has the main thread.

The first signal asks for an end: no new texts, and a few seconds for those that are being written. The second one ends
the process at once.
"""

import ipaddress
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import uvicorn

from gpt.errors import UserError
from gpt.serve.engine import Engine
from gpt.serve.guard import App
from gpt.system import interrupts

GRACE = 5.0  # seconds for the texts that are being written when a signal comes: less than the 10 that Docker gives
MOST_CONNECTIONS = 1000
TURN = 0.0005  # seconds that Python lets a thread run before another; with its 5 ms, the GPU waits for the engine


class Address(NamedTuple):
    """Where the server listens, and the token that it asks for (None: none)."""

    listener: socket.socket
    host: str
    token: str | None

    @property
    def url(self) -> str:
        """For example "http://127.0.0.1:8000". A server that listens everywhere goes by this machine's name."""
        named, port = self.listener.getsockname()[:2]
        host = socket.gethostname() if ipaddress.ip_address(named).is_unspecified else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


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
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port}: {reason}: take another --port or --host") from None
    is_private = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    if token is None and not is_private:
        token = secrets.token_urlsafe(24)
    return Address(listener, host, token)


def run(engine: Engine, app: App, address: Address, report: Callable[[str], None]) -> None:
    """Serve until a signal comes. Belongs into the main thread, inside `interrupts.raised`."""
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    sys.setswitchinterval(TURN)

    def speak() -> None:
        try:
            server.run(sockets=[address.listener])
        finally:
            engine.end(0)  # without it, nobody can ask the engine for anything

    def end() -> None:
        report(f"Ending, once texts are complete or {GRACE:.0f} s have passed. Again to end at once")
        engine.end(GRACE)

    thread = threading.Thread(target=speak, name="http", daemon=True)
    with interrupts.deferred(end, lambda: "Ended at once"):
        thread.start()
        try:
            engine.run()
        finally:
            server.should_exit = True
            thread.join(2 * GRACE)
