"""Servers in this process, for tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gpt.decoder import Request
from gpt.ops.cpu.operations import CpuOps
from gpt.run import Run
from gpt.serve import messages
from gpt.serve.channel import Channel, ChannelClosedError, Frames, framed
from gpt.serve.engine import Engine
from gpt.serve.messages import ModelInfo, Text, Update
from gpt.serve.runs import Runs

ADDRESS = "http://127.0.0.1:8000"


class Front:
    """The other end of an engine's channel: asks for texts, and collects what comes."""

    def __init__(self) -> None:
        ours, self._connection = socket.socketpair()
        for each in (ours, self._connection):
            each.settimeout(30)
        self.channel = Channel(ours)
        self._frames, self._messages = Frames(), []

    def hear(self, kind: type = object) -> Any:
        """The next message of this kind; others are passed over."""
        while True:
            while not self._messages:
                self._messages += self._frames.feed(self._connection.recv(1 << 16))
            message = self._messages.pop(0)
            if isinstance(message, kind):
                return message

    def load(self, run: Run) -> ModelInfo:
        self.send(messages.Load(run))
        return self.hear(messages.Loaded).model

    def write(self, model: ModelInfo, *requests: Request, number: int = 0) -> None:
        texts = [Text(number + index, request) for index, request in enumerate(requests)]
        self.send(messages.Write(model.number, texts))

    def send(self, message: object) -> None:
        self._connection.sendall(framed(message))

    def hear_until_done(self) -> list[Update]:
        """All updates that come before the engine has ended."""
        updates: list[Update] = []
        while not isinstance(message := self.hear(), messages.Done):
            updates += message if isinstance(message, list) else []
        return updates

    def updates(self, number: int = 0) -> Iterator[Update]:
        """What comes of a text, up to its end. Updates of others are passed over."""
        while True:
            for update in self.hear(list):
                if update.number == number:
                    yield update
                    if update.end:
                        return


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """The engine, at work in a thread, until its front goes or the `with` ends."""

    def work() -> None:
        with suppress(ChannelClosedError):
            engine.run()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield engine
    finally:
        engine.end(0)
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def serving(
    root: Path, *, served: tuple[str, ...] = (), host="127.0.0.1", token=None, places=4, **options: Any
) -> Iterator[tuple[Engine, Any]]:
    """An engine at work, and the app of its server with the runs in `root`; skips if there is no starlette."""
    pytest.importorskip("starlette", reason="a server needs starlette: pip install 'hipgpt[serve]'")
    from gpt.serve.app import make
    from gpt.serve.engine_client import EngineClient

    ours, theirs = socket.socketpair()
    with running(Engine(CpuOps(threads=1), Channel(ours), places, **options)) as engine:
        yield engine, make(EngineClient(theirs), Runs(root, served), host, token)


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a server that listens, in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="a server needs uvicorn: pip install 'hipgpt[serve]'")
    from gpt.serve.connections import Server

    with socket.create_server(("127.0.0.1", port)) as listener:
        server = Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def client_of(root: Path, **options: Any) -> Iterator[Any]:
    """A client of `serving`."""
    with serving(root, **options) as (_, app), asking(app) as client:
        yield client


def asking(app: Any) -> Any:
    """A client of an app, which runs inside the client's `with`. Skips if there is no httpx."""
    pytest.importorskip("httpx", reason="a client for tests needs httpx: pip install 'hipgpt[test]'")
    from starlette.testclient import TestClient

    return TestClient(app, base_url=ADDRESS)


def until(condition, seconds: float = 30) -> bool:
    """Whether a condition comes to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())
