"""Every option may be given once, unless its help says that it may be given more than once."""

import json
import re
import shlex
import signal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpt.cli import main
from gpt.errors import UserError
from gpt.system.typed_path import typed_path


def options() -> list[tuple[str, str, list[str]]]:
    """Every option of every command: the command, one of its names, and a value for it if it takes one."""
    found = []
    for name, command in main.commands.items():
        for option in command.params:
            if option.param_type_name == "option" and not option.multiple:
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


def test_several_texts_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the cat sat on the mat . " * 20)
    result = CliRunner().invoke(main, ["tokenize", "--data-path", "a.txt", "--data-path", "b.txt", "--run-name", "r"])
    assert result.exit_code == 0
    info = json.loads((tmp_path / "checkpoints" / "r" / "tokens.json").read_text())
    assert [file["path"] for file in info["corpus"]["sources"]] == ["../../a.txt", "../../b.txt"]


def paths() -> list[tuple[str, click.Parameter]]:
    """Every option and argument that takes a path, and its command."""
    return [
        (name, each)
        for name, command in main.commands.items()
        for each in command.params
        if re.search(r"\b(PATH|FILE|DIR)\b", each.metavar or "")
    ]


@pytest.mark.parametrize(("command", "parameter"), paths())
def test_a_path_begins_at_home_after_a_tilde_that_the_shell_has_left(command, parameter, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    found = [str(parameter.type.convert(text, parameter, None)) for text in ("~/a b", "a/~", "-")]
    assert found == [str(Path("/home/me", "a b")), str(Path("a/~")), "-"]


@pytest.mark.parametrize(("command", "parameter"), paths())
def test_an_empty_path_is_not_the_current_folder(command, parameter):
    with pytest.raises(UserError, match=f"^({parameter.opts[0]}|DIR) is empty, but must be a path: "):
        parameter.type.convert("", parameter, None)


@pytest.mark.parametrize(("command", "parameter"), [each for each in paths() if each[1].name == "runs_dir"])
def test_a_directory_of_runs_is_no_file(command, parameter, tmp_path):
    (tmp_path / "text.txt").touch()
    with pytest.raises(click.BadParameter, match=r"Directory '.*text\.txt' is a file\."):
        parameter.type.convert(str(tmp_path / "text.txt"), parameter, None)
    assert parameter.type.convert(str(tmp_path / "new"), parameter, None) == tmp_path / "new"


@pytest.mark.parametrize("address", ["https://a.b/c.txt", "s3://a/b", "hf://gpt2"])
def test_an_address_is_no_path(address):
    with pytest.raises(UserError, match=f"^--data-path is {address}, but must be a path: download the file"):
        typed_path(address, "--data-path")


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train a.txt", "a.txt' belongs to no option: give it as --data-path a.txt, with quotes around a pattern"),
        ("train --data-path a.txt 'b c.txt'", "'b c.txt' belongs to no option: give it as --data-path 'b c.txt', with"),
        ("generate --run-name r --prompt On a", "'a' belongs to no option: give it as --prompt a, with quotes around"),
        ("export --run-name r --out o x", "'x' belongs to no option: give it as --run-name x"),
        ("show r s", "'s' belongs to no option: leave it out"),
        ("show --run-name r", "give the run without --run-name: hipgpt show RUN (see hipgpt show --help)"),
        ("plot --run-name r", "give the run without --run-name: hipgpt plot RUN"),
        ("bench --run-name r", "No such option '--run-name'"),
    ],
)
def test_a_value_without_its_option_is_refused_with_the_likeliest_one(command, advice):
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert advice in result.output


def test_an_error_of_the_system_without_words_of_its_own_is_told_in_its_message(monkeypatch):
    def broken(_):
        raise OSError("a library does not load")  # as ctypes does

    monkeypatch.setattr("gpt.run.list_runs", broken)
    result = CliRunner().invoke(main, ["runs"])
    assert (result.exit_code, result.output) == (2, "Error: cannot read or write a file: a library does not load\n")
