"""The command itself: a process that listens, answers and ends."""

import json
import os
import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from gpt.errors import UserError
from tests.support.pretrained import saved_run

pytest.importorskip("uvicorn", reason="a server needs uvicorn: pip install 'hipgpt[serve]'")


def lines_until(process, pattern: str) -> tuple[list[str], re.Match]:
    """The lines that a process prints up to the one that has this pattern."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if match := re.search(pattern, line):
            return lines, match
    raise AssertionError(f"{lines}\n{process.stderr.read()}")


def test_a_server_answers_and_completes_its_texts_when_it_is_asked_to_end(hipgpt, tmp_path):
    saved_run(tmp_path / "checkpoints")
    process = hipgpt.start("serve", "--run-name", "r", "--port", 0, "--device", "cpu", "--token", "secret", bufsize=1)
    lines, match = lines_until(process, r"API: (http://127\.0\.0\.1:\d+/v1) with the token secret")
    assert any("Run r, step 3: in memory, with 16 places" in line for line in lines)
    assert any(line.endswith("/#token=secret\n") for line in lines)
    body = {"model": "r", "prompt": "the cat", "max_tokens": 60, "seed": 1, "stream": True}
    ask = urllib.request.Request(
        f"{match[1]}/completions", json.dumps(body).encode(), {"Authorization": "Bearer secret"}
    )
    with urllib.request.urlopen(ask, timeout=60) as answer:
        assert answer.readline().startswith(b'data: {"id": "cmpl-')
        process.send_signal(signal.SIGTERM)
        *_, last = [line for line in answer if line.strip()]
    assert last == b"data: [DONE]\n", "the text was completed"
    out, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert "Ending, once texts are complete" in out
    assert error == ""


ENGINE_HAS_GONE = "Error: the process with the models has gone, so the one that speaks HTTP ends too\n"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the front by Linux's /proc")
@pytest.mark.parametrize("dies", ["engine", "front"])
def test_if_one_of_the_two_processes_is_killed_the_other_one_says_so_and_ends(hipgpt, tmp_path, dies):
    saved_run(tmp_path / "checkpoints")
    process = hipgpt.start("serve", "--run-name", "r", "--port", 0, "--device", "cpu", bufsize=1)
    _, match = lines_until(process, r"API: http://127\.0\.0\.1:(\d+)/v1")
    (front,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    command = Path(f"/proc/{front}/cmdline").read_text()
    assert f"serve\0http://127.0.0.1:{match[1]}\0" in command, "ps shows what it is"
    os.kill(process.pid if dies == "engine" else int(front), signal.SIGKILL)
    _, error = process.communicate(timeout=30)  # until both have closed their standard error
    if dies == "engine":
        assert error == ENGINE_HAS_GONE
    else:
        assert process.returncode == 1
        assert error == "Error: the process that speaks HTTP was killed by SIGKILL, so hipgpt serve ends too\n"
    socket.create_server(("127.0.0.1", int(match[1]))).close()


def test_an_engine_that_is_killed_while_the_front_still_starts_is_missed_as_well(hipgpt, tmp_path):
    saved_run(tmp_path / "checkpoints")
    process = hipgpt.start("serve", "--run-name", "r", "--port", 0, "--device", "cpu", bufsize=1)
    lines_until(process, "Device: ")
    process.kill()
    assert process.communicate(timeout=30)[1] == ENGINE_HAS_GONE


def test_another_host_than_this_machine_gets_a_token():
    from gpt.serve.server import listening

    for host, token, asked in (("0.0.0.0", None, True), ("127.0.0.1", None, False), ("localhost", "x", True)):
        with (address := listening(host, 0, token)).listener:
            assert address.token == token if token else (address.token is not None) == asked
            assert re.fullmatch(rf"http://[^:]+:{address.listener.getsockname()[1]}", address.url)


def test_a_port_that_is_taken_is_told():
    from gpt.serve.server import listening

    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(UserError, match=r"port \d+: [^():]+: take another --port"),
    ):
        listening("127.0.0.1", other.getsockname()[1], None)


@pytest.mark.parametrize(
    ("host", "port"), [("no such host", 80), ("x" * 70, 80), ("127.0.0.1", 99999), ("127.0.0.1", -1)]
)
def test_an_address_that_is_none_is_told(host, port):
    from gpt.serve.server import listening

    with pytest.raises(UserError, match=f"{host}|{port}"):
        listening(host, port, None)


@pytest.mark.parametrize("token", ["", "two words", "müll", "a\nb"])
def test_a_token_that_no_header_can_have_is_refused(token):
    from gpt.serve.server import listening

    with pytest.raises(UserError, match="--token"):
        listening("127.0.0.1", 0, token)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--places", 0), "--places is 0"),
        (("--run-name", "none"), "none"),
        (("--run-name", "../x"), "--run-name is '../x'"),
        (("--host", ""), "--host"),
    ],
)
def test_mistakes_are_told_in_one_line(hipgpt, options, words):
    assert words in hipgpt("serve", "--device", "cpu", *options, status=2).stderr
