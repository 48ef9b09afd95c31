"""The front: the process that speaks HTTP, as a child of the one that has the engine (server.py).

uvicorn runs the app (app.py). It parses with httptools, which saves a fifth of the work of a request, or else with h11.
Its parent tells it everything else by its standard input.
"""

import os
import pickle
import socket
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

GRACE = 2  # seconds for answers that are being sent, once the engine has ended
MOST_CONNECTIONS = 1000


class Start(NamedTuple):
    """Everything that the front is told: two sockets, and the arguments of `Runs` and `app.make`."""

    channel: int | bytes
    listener: int | bytes
    root: Path
    served: tuple[str, ...]
    host: str
    token: str | None


def handle(each: socket.socket, process: int) -> int | bytes:
    """The handle by which a child gets this socket too. On POSIX it is the number that it has inherited."""
    if sys.platform == "win32":
        return each.share(process)
    return each.fileno()


def _taken(handle: int | bytes) -> socket.socket:
    """The socket of a handle."""
    if sys.platform == "win32":
        assert isinstance(handle, bytes)
        return socket.fromshare(handle)
    assert isinstance(handle, int)
    return socket.socket(fileno=handle)


def run(stdin: BinaryIO) -> None:
    """Speak HTTP until the engine's process says that it has ended, or has gone."""
    import uvicorn

    from gpt.serve import app
    from gpt.serve.connections import Server
    from gpt.serve.engine_client import EngineClient
    from gpt.serve.runs import Runs

    start: Start = pickle.load(stdin)

    def end(is_orderly: bool) -> None:
        if is_orderly or server.should_exit:
            server.should_exit = True
            return
        if not engine.is_ending:
            os.write(2, b"Error: the process with the models has gone, so the one that speaks HTTP ends too\n")
        os._exit(1)

    engine = EngineClient(_taken(start.channel), end)
    config = uvicorn.Config(
        app.make(engine, Runs(start.root, start.served), start.host, start.token), http="auto", ws="none",
        loop="asyncio", lifespan="on", log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    server = Server(config)
    server.run(sockets=[_taken(start.listener)])
