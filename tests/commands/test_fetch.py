"""`hipgpt fetch`, against a real server on this machine."""

import errno
import hashlib
import os
import ssl
import threading
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

import gpt.fetch
from gpt.cli import main
from gpt.errors import UserError
from gpt.fetch import SOURCES, Source, fetch
from gpt.system.filesystem import try_lock

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 5000
SHA256 = hashlib.sha256(TEXT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers with the text.

    /breaks ends every answer after 100,000 bytes; /cut after 1,000, and at once if it is asked for the rest. /stubborn
    does not know ranges, and /bits gives 100,000 bytes of one. /down fails, /busy does so twice, and /circle leads to
    itself.
    """

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/down":
            return self.send_error(503)
        if self.path == "/busy" and len(self.server.asked) < 3:
            return self.send_error(429)
        if self.path == "/circle":
            self.send_response(302)
            self.send_header("Location", "/circle")
            return self.end_headers()
        start = int(asked[6:-1]) if asked and self.path != "/stubborn" else 0
        if start >= len(self.server.text):
            return self.send_error(416)
        rest = self.server.text[start:][: 100_000 if start and self.path == "/bits" else None]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", "?" if self.path == "/unknown" else str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(self.server.text)}")
        self.end_headers()
        if self.path == "/silent":
            self.server.released.wait(10)
        elif self.path == "/cut":
            self.wfile.write(b"" if start else rest[:1000])
        else:
            self.wfile.write(rest[: 100_000 if self.path == "/breaks" else None])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")  # a proxy could not reach this machine's loopback address
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.text, server.asked, server.released = TEXT, [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # its end is noticed at once
    url = f"http://127.0.0.1:{server.server_port}"

    def offer(path="/text", sha256=SHA256, url=url):
        return Source(url + path, sha256, "shakespeare.txt")

    monkeypatch.setattr(gpt.fetch, "PAUSE", 0)
    server.offer = offer
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def test_a_text_is_downloaded_whole_with_its_progress_into_a_new_directory(server, tmp_path):
    seen = []
    path = fetch(server.offer(), tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "data" / "shakespeare.txt"
    assert path.read_bytes() == TEXT
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert seen == sorted(seen)


def test_a_text_of_unknown_length_is_downloaded_too(server, tmp_path):
    seen = []
    assert (
        fetch(server.offer("/unknown"), tmp_path, lambda done, total: seen.append((done, total))).read_bytes() == TEXT
    )
    assert seen[-1] == (len(TEXT), 0)


def test_a_text_that_is_there_is_not_downloaded_again_and_a_damaged_one_is_replaced(server, tmp_path):
    path = fetch(server.offer(), tmp_path)
    assert fetch(server.offer(), tmp_path) == path
    assert len(server.asked) == 1
    path.write_bytes(b"damaged")
    assert fetch(server.offer(), tmp_path).read_bytes() == TEXT
    assert len(server.asked) == 2


def test_a_download_that_breaks_goes_on_where_it_stopped(server, tmp_path):
    assert fetch(server.offer("/breaks"), tmp_path).read_bytes() == TEXT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["shakespeare.txt"]


def test_a_server_may_give_less_of_a_file_than_it_was_asked_for(server, tmp_path):
    (tmp_path / "shakespeare.txt.part").write_bytes(TEXT[:777])
    seen = []
    fetch(server.offer("/bits"), tmp_path, lambda done, total: seen.append((done, total)))
    assert server.asked == ["bytes=777-", "bytes=100777-", "bytes=200777-", "bytes=300777-"]
    assert {total for _, total in seen} == {len(TEXT)}


def test_a_server_that_is_asked_too_often_is_asked_again(server, tmp_path):
    assert fetch(server.offer("/busy"), tmp_path).read_bytes() == TEXT
    assert server.asked == [None] * 3


def test_the_next_call_goes_on_too_and_a_server_without_ranges_begins_anew(server, tmp_path):
    part = tmp_path / "shakespeare.txt.part"
    part.write_bytes(TEXT[:777])
    seen = []
    fetch(server.offer(), tmp_path, lambda done, total: seen.append((done, total)))
    assert (server.asked, seen[-1]) == (["bytes=777-"], (len(TEXT), len(TEXT)))
    assert seen[0][0] > 777
    (tmp_path / "shakespeare.txt").unlink()
    part.write_bytes(TEXT[:777])
    assert fetch(server.offer("/stubborn"), tmp_path).read_bytes() == TEXT
    assert not part.exists()


def test_a_part_that_is_whole_or_wrong_is_decided_by_its_digest(server, tmp_path):
    part = tmp_path / "shakespeare.txt.part"
    part.write_bytes(TEXT)  # a kill came before the rename
    assert fetch(server.offer(), tmp_path).read_bytes() == TEXT
    (tmp_path / "shakespeare.txt").unlink()
    part.write_bytes(b"another file")
    with pytest.raises(UserError, match="its SHA-256 is"):
        fetch(server.offer(), tmp_path)
    assert not part.exists()
    assert fetch(server.offer(), tmp_path).read_bytes() == TEXT


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    with open(tmp_path / "shakespeare.txt.part", "ab+") as file:
        file.write(b"x")
        file.flush()
        assert try_lock(file.fileno())
        with pytest.raises(UserError, match="another process is downloading"):
            fetch(server.offer(), tmp_path)


def test_gpt2_is_its_weights_its_config_and_its_vocabulary(server, tmp_path, monkeypatch):
    """The command, with its files on this machine's server."""
    files = [Source(source.url, SHA256, source.file) for source in SOURCES["gpt2"]]
    assert sorted(source.file for source in files) == [
        "gpt2/config.json", "gpt2/merges.txt", "gpt2/model.safetensors", "gpt2/vocab.json",
    ]  # fmt: skip
    assert all(source.url.endswith("/" + source.file.removeprefix("gpt2/")) for source in files)
    assert set(SOURCES["gpt2-tokenizer"]) < set(SOURCES["gpt2"])
    local = tuple(source._replace(url=server.offer().url) for source in files)
    monkeypatch.setitem(SOURCES, "gpt2", local)
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["fetch", "gpt2"]).output
    assert said.endswith("Next: hipgpt import data/gpt2 --run-name gpt2\n")
    assert all((tmp_path / "data" / source.file).read_bytes() == TEXT for source in local)


def test_the_published_digest_is_that_of_tiny_shakespeare(shakespeare):
    assert hashlib.sha256(shakespeare.read_bytes()).hexdigest() == SOURCES["shakespeare"][0].sha256


@pytest.mark.parametrize(
    ("offer", "complaint"),
    [
        ({"path": "/missing"}, "answers 404 Not Found"),
        ({"path": "/down"}, "answers 503 Service Unavailable: try again later, or download"),
        ({"path": "/circle"}, "answers 302 .*infinite loop"),
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
    with pytest.raises(UserError, match=complaint) as error:
        fetch(server.offer(**offer), tmp_path)
    assert "\n" not in str(error.value)
    if "sha256" not in offer:
        assert str(error.value).endswith(f"download it yourself to {before}")
    kept = ["shakespeare.txt.part"] if offer.get("path") == "/cut" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shakespeare.txt", *kept]
    assert before.read_bytes() == b"old"


def test_a_mirror_of_hugging_faces_is_asked_in_its_place_and_for_its_files_alone(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.offer("/").url)
    hub = server.offer(url="https://huggingface.co")
    assert fetch(hub, tmp_path).read_bytes() == TEXT
    assert fetch(server.offer()._replace(file="other.txt"), tmp_path).read_bytes() == TEXT
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/hub")
    with pytest.raises(UserError, match="^http://127.0.0.1:1/hub/text cannot be downloaded"):
        fetch(hub._replace(file="more.txt"), tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://[")
    with pytest.raises(UserError, match=r"^http://\[/text cannot be downloaded \(Invalid IPv6 URL\)"):
        fetch(hub._replace(file="more.txt"), tmp_path)
    for wrong in ("hf-mirror.com", "file:///etc", "http://a b", "http://ä"):
        monkeypatch.setenv("HF_ENDPOINT", wrong)
        with pytest.raises(UserError, match=f"^HF_ENDPOINT is '{wrong}', but must be an address such as https:"):
            fetch(hub._replace(file="more.txt"), tmp_path)


@pytest.mark.parametrize("name", ["gpt2/vocab.json", "shakespeare.txt"])
@pytest.mark.parametrize("offer", [{"url": "http://127.0.0.1:1"}, {"sha256": "0" * 64}])
def test_a_download_that_brings_nothing_leaves_no_new_directory(server, tmp_path, name, offer):
    source = server.offer(**offer)._replace(file=name)
    with pytest.raises(UserError):
        fetch(source, tmp_path / "new" / "data")
    assert not list(tmp_path.iterdir())
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError):
        fetch(source, tmp_path / "data")
    assert [path.name for path in tmp_path.rglob("*")] == ["data"], "it was there before"


def test_a_download_that_breaks_keeps_its_new_directory(server, tmp_path):
    with pytest.raises(UserError, match="only 1000"):
        fetch(server.offer("/cut"), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shakespeare.txt.part"], "for the next call"


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"^cannot write .*data/shakespeare\.txt: "):
        fetch(server.offer(), tmp_path / "data")


@pytest.mark.parametrize("fault", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError(1, "bad record")])
def test_a_network_that_fails_midway_is_not_taken_for_the_disk(server, tmp_path, monkeypatch, fault):
    """A loopback server cannot cause these faults, so a replaced `read` raises them, as the real one would."""

    def fail(*_):
        raise fault

    monkeypatch.setattr(HTTPResponse, "read", fail)
    with pytest.raises(UserError, match=f"cannot be downloaded .*{fault.strerror}"):
        fetch(server.offer(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_taken_for_the_network(server, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt.system.filesystem.os.fsync", fail)
    with pytest.raises(UserError, match="^cannot write .*: No space left on device"):
        fetch(server.offer(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shakespeare.txt.part"], "for the next call"


def test_without_a_network_the_command_says_so_in_one_line(hipgpt):
    """A proxy that refuses connections simulates a network that is down."""
    environment = {**hipgpt.environment, "https_proxy": "http://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}
    error = hipgpt("fetch", "shakespeare", status=2, environment=environment).stderr
    assert "cannot be downloaded" in error
    assert not os.path.exists("data/shakespeare.txt")
