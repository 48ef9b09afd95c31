"""Who may ask: Host, Origin, token, size."""

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest

from gpt.serve import guard
from tests.serve.served import client_of, listening, serving

OWN_PAGE = {"Origin": "http://127.0.0.1:8000"}


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "192.168.3.4"])
def test_an_address_and_the_servers_own_names_are_its_hosts(client, host):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_a_strangers_name_that_leads_here_is_refused(client, host):
    """DNS rebinding: the stranger's page may ask its own host, whose address is now this machine's."""
    answer = client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8001", "http://localhost:8000"])
def test_a_page_of_another_origin_is_refused(client, origin):
    answer = client.post("/v1/completions", json={"model": "r", "prompt": "a"}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_origin"


def test_the_servers_own_page_may_ask(client):
    fields = {"model": "r", "prompt": "a", "max_tokens": 1}
    assert client.post("/v1/completions", json=fields, headers=OWN_PAGE).status_code == 200


def test_with_a_token_only_the_page_itself_is_open(root):
    with client_of(root, token="secret") as client:
        assert client.get("/").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Cookie": "token=secret"}):
            for path in ("/v1/models", "/api/runs", "/pages", "/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize("announces", [True, False])
def test_a_body_that_is_too_large_is_refused(client, announces):
    body = b"x" * (guard.LARGEST_BODY + 1)
    answer = client.post("/v1/completions", content=body if announces else iter([body]))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"


def whole_of(connection: socket.socket) -> bytes:
    """All that comes on a connection until it is closed."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_nobody_is_asked_for_an_answer_to_a_client_that_goes_before_its_body_has_come():
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    asked, sent = [], []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        asked.append(scope)

    scope = {"type": "http", "path": "/v1/completions", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard.Guard(app, "localhost", None, lambda error: app)(scope, receive, send))
    assert asked == sent == []


def test_a_connection_on_which_no_request_comes_is_closed_and_one_with_a_request_is_not(root, monkeypatch):
    with serving(root) as (_, app), listening(app) as address, ExitStack() as stack:
        from gpt.serve import connections

        monkeypatch.setattr(connections, "_TICKS", 1)
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        silent, slow, busy, answered = (
            stack.enter_context(socket.create_connection(place, timeout=30)) for _ in "1234"
        )
        slow.sendall(HEAD[:20])
        busy.sendall(HEAD)
        answered.sendall(HEAD + b"{}")
        said = b""
        while b"}}" not in said:  # the end of the answer; what the others have sent was read before
            assert (part := answered.recv(1 << 16))
            said += part
        assert said.count(b" 400 Bad Request") == 1
        answered.sendall(HEAD[:20])  # the head of the next one
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
        assert [whole_of(each) for each in (silent, slow, answered)] == [b"", b"", b""]
        time.sleep(0.3)
        busy.sendall(b"{}")
        assert b" 400 Bad Request" in busy.recv(1 << 16)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/nothing", "/page/../app.py"])
def test_every_answer_forbids_scripts_from_elsewhere(client, path):
    headers = client.get(path).headers
    assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("name", ["app.py", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd"])
def test_no_path_leads_to_another_file(client, name):
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "nothing", "<img onerror=1>"])
def test_no_name_leads_out_of_the_directory_of_runs(client, name):
    assert client.get(f"/api/runs/{name}/log").status_code == 404
    assert client.post(f"/api/runs/{name}/pieces", json={"text": "a"}).status_code == 404
