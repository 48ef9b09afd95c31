"""Sessions on a terminal: `generate` without a prompt, and `chat`. A pseudo-terminal stands in for the user's."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import gpt
from gpt.chat_template import MARKERS, Message, rendered
from gpt.cli import main
from gpt.commands.interactive import Settings
from gpt.config import SamplingConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")

SMALL = {"tokenizer": "byte", "vocab_size": 300, "dim": 16, "heads": 2, "ff": 32, "layers": 1, "seq": 48, "batch": 4}
TALK = "<|user|>say red<|assistant|>red it is<|user|>and blue<|assistant|>blue it is<|endoftext|>"
TYPED = Settings(num_tokens=12, sampling=SamplingConfig(), stops=(), seed=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A directory with a run that has learned to talk, and one that has not."""
    root = tmp_path_factory.mktemp("talk")
    (root / "talk.txt").write_text(TALK * 200)
    options = {"runs_dir": root, "device": "cpu", "quiet": True, "eval_every": 0, **SMALL}
    gpt.train(root / "talk.txt", "talk", steps=40, lr=2e-2, special_token=list(MARKERS.values()), **options)
    gpt.train(root / "talk.txt", "plain", steps=2, **options)
    return root


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, start, *arguments: object) -> None:
        self._mine, theirs = os.openpty()
        self.process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def until(self, text: str) -> str:
        """What the command prints up to the first `text`, with the keys that the terminal echoes."""
        got, deadline = b"", time.monotonic() + 60
        while text.encode() not in got:
            assert select.select([self._mine], [], [], max(0, deadline - time.monotonic()))[0], got.decode()
            got += os.read(self._mine, 1)
        return got.decode().replace("\r\n", "\n")

    def type(self, keys: str, until: str = "\n> ") -> str:
        os.write(self._mine, keys.encode())
        return self.until(until)

    def interrupt(self) -> str:
        """Send the signal of Ctrl-C, as a terminal does to the processes that it controls."""
        self.process.send_signal(signal.SIGINT)
        return self.until("\n> ")


def test_a_session_goes_on_after_ctrl_c_and_remembers_what_was_typed(hipgpt, runs):
    flags = ("--runs-dir", runs, "--num-tokens", 12, "--device", "cpu")
    terminal = Terminal(hipgpt.start, "generate", "--run-name", "plain", *flags)
    assert "/help" in terminal.until("\n> ")
    model = gpt.load(runs / "plain", device="cpu")
    assert f"say{model.generate('say', num_tokens=12)}\n" in terminal.type("say\n")
    terminal.type("/temp 0\n")
    greedy = model.generate("say", num_tokens=12, temp=0)
    assert f"say{greedy}\n" in terminal.type("\x10\x10\n")  # Ctrl-P, twice: the line before the last
    assert model.generate("say" + greedy, num_tokens=12, temp=0) in terminal.type("/more\n")
    assert "12 tokens in " in terminal.type("say\\\nred\n", until="tokens/s")
    terminal.until("\n> ")
    terminal.type("/num-tokens 1000000\n")
    terminal.type("say\n", until="\r\nsay" + greedy[:8].replace("\n", "\r\n"))  # some tokens of it
    assert " tokens in " in terminal.interrupt()  # stops the text
    terminal.type("half a line", until="half a line")
    assert "Ctrl-D" in terminal.interrupt()  # drops the line
    os.write(terminal._mine, b"\x04")
    assert terminal.process.wait(timeout=30) == 0


MISSES_SIGNALS = """
import readline, signal
from gpt.system import interrupts

interrupts.begin()
with interrupts.raised(), interrupts.caught() as ctrl_c:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the kernel wakes the thread that listens instead
    try:
        with ctrl_c.raised():
            input("> ")
    except KeyboardInterrupt:
        print("caught", "> ", sep="\\n", end="")
"""


def test_ctrl_c_is_heard_when_it_does_not_wake_the_thread_that_waits_for_a_key():
    """It happens on a busy machine, if the signal comes between the last key's echo and the wait for the next key."""
    terminal = Terminal(subprocess.Popen, [sys.executable, "-c", MISSES_SIGNALS])
    terminal.until("> ")
    assert "caught" in terminal.interrupt()


def session(command: str, runs: Path, typed: str, *flags: str, monkeypatch, status: int = 0) -> str:
    """What a command says to lines from a pipe."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # keep the command's signal handlers out of this process
    arguments = [command, "--runs-dir", str(runs), "--device", "cpu", "--num-tokens", "20", *flags]
    result = CliRunner().invoke(main, arguments, input=typed)
    assert result.exit_code == status, result.output
    return result.output


def test_an_answer_is_the_text_of_the_assistant_in_the_conversation_so_far(runs, monkeypatch):
    model = gpt.load(runs / "talk", device="cpu")
    ends = {"stop": list(MARKERS.values()), "eos_id": model.tokenizer.end_of_text, "num_tokens": 5, "temp": 3}
    asked = [Message("system", "Be brief."), Message("user", "hi")]
    for seed in range(50):
        first = model.generate(rendered(asked, answer=True), seed=seed, **ends)
        both = [*asked, Message("assistant", first), Message("user", "so")]
        second = model.generate_many([rendered(both, answer=True)], 2, seed=seed, **ends)[0][1]  # the second draw
        if first.isascii() and second.isascii() and "" != first != second != "":
            break
    flags = ("--run-name", "talk", "--temp", "3", "--system", "Be brief.")
    typed = f"/num-tokens 5\n/seed {seed}\nhi\nso\n/new\n/seed {seed}\nhi\n"
    said = session("chat", runs, typed, *flags, monkeypatch=monkeypatch)
    assert said == f"num-tokens: 5\nseed: {seed}\n{first}\n{second}\nA new conversation.\nseed: {seed}\n{first}\n"
    assert first != second


def test_a_conversation_that_gets_too_long_forgets_its_oldest_messages(runs, monkeypatch):
    monkeypatch.setattr("gpt.system.filesystem._noted", set())
    flags = ("--run-name", "talk", "--temp", "0")
    said = session("chat", runs, "say red\n" * 9, *flags, monkeypatch=monkeypatch)
    assert said.count("Note: the oldest messages are forgotten, because the model looks back on 48 tokens") == 1


def test_a_message_with_a_marker_in_it_is_refused_and_the_session_goes_on(runs, monkeypatch):
    said = session("chat", runs, "say <|user|>\nsay red\n", "--run-name", "talk", monkeypatch=monkeypatch)
    assert "Error: the conversation has <|user|> in the message, which would end it" in said
    assert said.count("\n") == 2


def test_a_run_that_was_not_trained_on_conversations_is_sent_to_generate(runs, monkeypatch):
    said = session("chat", runs, "", "--run-name", "plain", monkeypatch=monkeypatch, status=2)
    assert said.startswith("Error: run plain was not trained on conversations, as its tokenizer lacks the markers")
    assert "use hipgpt generate --run-name plain" in said


def test_generate_without_a_prompt_asks_for_one_only_on_a_terminal(runs, monkeypatch):
    said = session("generate", runs, "say\n", "--run-name", "plain", monkeypatch=monkeypatch, status=2)
    assert said.startswith("Error: give a text to continue")


def test_a_text_of_generate_ends_before_a_stop(runs, monkeypatch):
    whole = gpt.load(runs / "plain", device="cpu").generate("say red", num_tokens=20)
    flags = ("--run-name", "plain", "--prompt", "say red", "--stop", whole[8:10], "--stop", "never")
    assert (
        session("generate", runs, "", *flags, monkeypatch=monkeypatch) == f"say red{whole.partition(whole[8:10])[0]}\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("temp", "0.5", {"temp": 0.5}),
        ("top-k", "3", {"top_k": 3}),
        ("rep-penalty", "1.5", {"rep_penalty": 1.5}),
        ("num-tokens", "7", {"num_tokens": 7}),
        ("stop", r"a\nb", {"stops": ("a\nb",)}),
        ("stop", "", {"stops": ()}),
    ],
)
def test_a_command_changes_the_setting_of_its_name(name, value, changed):
    after = TYPED.changed(name, value)
    sampling = after.sampling
    values = {"temp": sampling.temperature, "top_k": sampling.top_k, "rep_penalty": sampling.penalty, **vars(after)}
    assert {key: values[key] for key in changed} == changed
    assert after.listed().keys() == TYPED.listed().keys()


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("temp", "hot", "/temp is 'hot', but must be a number"),
        ("temp", "-1", "--temp is -1.0"),
        ("num-tokens", "0", "--num-tokens is 0, but must be at least 1"),
        ("seed", "-1", "--seed is -1"),
        ("top-k", "2.5", "/top-k is '2.5'"),
    ],
)
def test_a_value_that_cannot_be_one_is_refused(name, value, complaint):
    with pytest.raises(gpt.UserError, match=complaint):
        TYPED.changed(name, value)
