"""Every option may be given once, unless its help says that it may be repeated."""

import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from gpt.cli import main
from tests.support import ROOT


def options() -> list[tuple[str, str, list[str]]]:
    """Every option of every command: the command, one of its names, and a value for it if it takes one."""
    found = []
    for name, command in main.commands.items():
        for option in command.params:
            if option.param_type_name == "option" and "May be repeated." not in (option.help or ""):
                value = [] if option.is_flag else [(getattr(option.type, "choices", None) or ["7"])[0]]
                found.append((name, option.opts[-1], value))
    return found


@pytest.mark.parametrize(("command", "option", "value"), options())
def test_an_option_given_twice_is_refused_with_both_values(command, option, value, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # keep the command's signal handlers out of this process
    result = CliRunner().invoke(main, [command, option, *value, option, *value])
    error = result.output
    assert result.exit_code == 2
    assert error.count("\n") == 1
    assert f"is given 2 times{', ' * bool(value)}{' and '.join(map(str, 2 * value))}: " in error
    assert option.replace("_", "-") in error


def test_two_texts_are_refused_with_advice():
    command = [sys.executable, "-m", "gpt.cli", "tokenize", "--data-path", "a.txt", "--data-path", "b.txt"]
    error = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stderr
    assert "--data-path is given 2 times, a.txt and b.txt" in error
    assert "join the files with <|endoftext|> between them" in error
