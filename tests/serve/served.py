"""Servers in this process, for tests."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpt.serve.engine import Engine
from gpt.serve.runs import Runs

ADDRESS = "http://127.0.0.1:8000"


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """The engine, at work in a thread."""
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine
    finally:
        engine.end(0)
        thread.join(30)
        assert not thread.is_alive()


def app_of(engine: Engine, root: Path, *, served: tuple[str, ...] = (), host="127.0.0.1", token=None) -> Any:
    """The server with the runs in `root`; skips if there is no starlette."""
    pytest.importorskip("starlette", reason="a server needs starlette: pip install 'hipgpt[serve]'")
    from gpt.serve.app import make

    return make(engine, Runs(root, served), host, token)


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a server that listens, in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="a server needs uvicorn: pip install 'hipgpt[serve]'")
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def client_of(engine: Engine, root: Path, **options: Any) -> Any:
    """A client of `app_of`, to be entered; skips if there is no httpx."""
    app = app_of(engine, root, **options)
    pytest.importorskip("httpx", reason="a client for tests needs httpx: pip install 'hipgpt[test]'")
    from starlette.testclient import TestClient

    return TestClient(app, base_url=ADDRESS)
