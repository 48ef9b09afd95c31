"""`hipgpt fetch`, against a real server on this machine."""

import errno
import hashlib
import os
import ssl
import threading
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import gpt.fetch
from gpt.errors import UserError
from gpt.fetch import SOURCES, Source, fetch

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 5000
SHA256 = hashlib.sha256(TEXT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.path == "/missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", "?" if self.path == "/unknown" else str(len(self.server.text)))
        self.end_headers()
        if self.path == "/silent":
            self.server.released.wait(10)
        else:
            self.wfile.write(self.server.text[: 1000 if self.path == "/cut" else None])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")  # a proxy could not reach this machine's loopback address
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.text, server.asked, server.released = TEXT, 0, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    def offer(path="/text", sha256=SHA256, url=url):
        monkeypatch.setitem(SOURCES, "shakespeare", Source(url + path, sha256, "shakespeare.txt"))

    offer()
    server.offer = offer
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def test_a_text_is_downloaded_whole_with_its_progress_into_a_new_directory(server, tmp_path):
    seen = []
    path = fetch("shakespeare", tmp_path / "data", lambda *progress: seen.append(progress))
    assert path == tmp_path / "data" / "shakespeare.txt"
    assert path.read_bytes() == TEXT
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert seen == sorted(seen)


def test_a_text_of_unknown_length_is_downloaded_too(server, tmp_path):
    server.offer("/unknown")
    seen = []
    assert fetch("shakespeare", tmp_path, lambda *progress: seen.append(progress)).read_bytes() == TEXT
    assert seen[-1] == (len(TEXT), 0)


def test_a_text_that_is_there_is_not_downloaded_again_and_a_damaged_one_is_replaced(server, tmp_path):
    path = fetch("shakespeare", tmp_path)
    assert fetch("shakespeare", tmp_path) == path
    assert server.asked == 1
    path.write_bytes(b"damaged")
    assert fetch("shakespeare", tmp_path).read_bytes() == TEXT
    assert server.asked == 2


def test_the_published_digest_is_that_of_tiny_shakespeare(shakespeare):
    assert hashlib.sha256(shakespeare.read_bytes()).hexdigest() == SOURCES["shakespeare"].sha256


@pytest.mark.parametrize(
    ("offer", "complaint"),
    [
        ({"path": "/missing"}, "answers 404 Not Found"),
        ({"path": "/cut"}, f"only 1000 of {len(TEXT)} bytes came|more expected"),
        ({"path": "/silent"}, "timed out"),
        ({"sha256": "0" * 64}, f"its SHA-256 is {SHA256}, not {'0' * 64}"),
        ({"url": "http://127.0.0.1:1"}, "cannot be downloaded .*refused"),
        ({"url": "http://no-such-host.invalid"}, "cannot be downloaded"),
    ],
)
def test_a_failed_download_changes_nothing_and_gives_its_reason_in_one_line(
    server, tmp_path, monkeypatch, offer, complaint
):
    monkeypatch.setattr(gpt.fetch, "TIMEOUT", 0.3)
    before = tmp_path / "shakespeare.txt"
    before.write_bytes(b"old")
    server.offer(**offer)
    with pytest.raises(UserError, match=complaint) as error:
        fetch("shakespeare", tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["shakespeare.txt"]
    assert before.read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"^cannot write .*data/shakespeare\.txt: "):
        fetch("shakespeare", tmp_path / "data")


@pytest.mark.parametrize("fault", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError(1, "bad record")])
def test_a_network_that_fails_midway_is_not_taken_for_the_disk(server, tmp_path, monkeypatch, fault):
    """A loopback server cannot cause these faults, so a replaced `read` raises them, as the real one would."""

    def fail(*_):
        raise fault

    monkeypatch.setattr(HTTPResponse, "read", fail)
    with pytest.raises(UserError, match=f"cannot be downloaded .*{fault.strerror}"):
        fetch("shakespeare", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_taken_for_the_network(server, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt.system.files.os.fsync", fail)
    with pytest.raises(UserError, match="^cannot write .*: No space left on device"):
        fetch("shakespeare", tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_command_says_so_in_one_line(hipgpt):
    """A proxy that refuses connections simulates a network that is down."""
    environment = {**hipgpt.environment, "https_proxy": "http://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}
    error = hipgpt("fetch", "shakespeare", status=2, environment=environment).stderr
    assert "cannot be downloaded" in error
    assert not os.path.exists("data/shakespeare.txt")
