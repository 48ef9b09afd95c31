"""Options from a TOML file and from environment variables, and completion in a shell."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpt.cli import main
from gpt.commands import config_file
from gpt.config import TrainConfig
from gpt.errors import UserError


def given(*arguments: str, file: str | None = None, **environment: str) -> dict:
    """The values of train's options that come from the command line, the environment or the file `c.toml`."""
    if file is not None:
        Path("c.toml").write_text(file, encoding="utf-8")
        arguments = ("--config", "c.toml", *arguments)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        context = main.commands["train"].make_context("train", list(arguments))
    sources = {name: context.get_parameter_source(name) for name in context.params}
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in context.params.items() if sources[name] != default}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_file_gives_options_by_their_names():
    text = 'preset = "tiny"\nsteps = 500\nlr = 1e-3\nno-tie = true\nrecompute = false\nrun-name = "é"\nresume = false\n'
    assert given(file=text) == {
        "preset": "tiny", "total_steps": 500, "learning_rate": 1e-3, "tie_embeddings": False, "recompute": False,
        "run_name": "é",
    }  # fmt: skip


def test_the_command_line_wins_over_the_environment_and_that_over_the_file():
    text = "steps = 1\nbatch = 1\ndim = 1"
    found = given("--steps", "3", file=text, HIPGPT_STEPS="2", HIPGPT_BATCH="2")
    assert (found["total_steps"], found["batch_size"], found["embed_dim"]) == (3, 2, 1)


@pytest.mark.parametrize(("value", "found"), [("1", {"tie_embeddings": False}), ("0", {}), ("", {})])
def test_a_switch_is_given_by_a_variable_that_is_true(value, found):
    assert given(HIPGPT_NO_TIE=value) == found
    assert ("resume" in given(HIPGPT_RESUME=value)) == (value != "")


def test_each_line_of_a_variable_is_a_value_of_an_option_that_may_have_several():
    found = given(HIPGPT_DATA_PATH="my notes.txt", HIPGPT_SPECIAL_TOKEN="<a b>\n<|c|>\n")
    assert (found["data_path"], found["special_tokens"]) == (("my notes.txt",), ("<a b>", "<|c|>"))


@pytest.mark.parametrize(
    ("file", "variables", "complaint"),
    [
        ("", {"HIPGPT_STEPS": "x"}, "'x' is not a valid integer. (--steps comes from HIPGPT_STEPS) (see hipgpt train"),
        ("steps = 1.5", {}, "'1.5' is not a valid integer. (--steps comes from --config) (see hipgpt train --help)"),
        ("", {"HIPGPT_LORA": "4"}, "name that model with --from (--lora comes from HIPGPT_LORA)\n"),
        ("", {"HIPGPT_LR": "1", "HIPGPT_DATA_PATH": "no"}, "Error: no does not exist: give the path of a text file\n"),
    ],
)
def test_an_error_says_where_an_option_comes_from_that_is_not_in_the_command(file, variables, complaint):
    Path("c.toml").write_text(file)
    result = CliRunner().invoke(main, ["train", "--config", "c.toml", "--device", "cpu"], env=variables)
    assert result.exit_code == 2
    assert complaint in result.output


def test_a_variable_that_is_almost_one_of_an_option_is_noted():
    variables = {"HIPGPT_STPES": "4", "HIPGPT_DATAPATH": "a", "HIPGPT_LAYOUTS": "mma", "HIPGPT_SEED": "1"}
    result = CliRunner().invoke(main, ["runs"], env=variables)
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if "Note" in line] == [
        "Note: HIPGPT_DATAPATH is set, but no option has this variable: did you mean HIPGPT_DATA_PATH?",
        "Note: HIPGPT_STPES is set, but no option has this variable: did you mean HIPGPT_STEPS?",
    ]


@pytest.mark.parametrize("command", main.commands)
def test_every_option_has_an_environment_variable_of_its_name(command):
    for option in main.commands[command].params:
        if isinstance(option, click.Option):
            long = next(name for name in option.opts if name.startswith("--"))
            assert option.envvar == "HIPGPT_" + long[2:].upper().replace("-", "_")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stepps = 3", "c.toml has the key 'stepps', which is no option: did you mean steps?"),
        ("zzz = 3", "c.toml has the key 'zzz', which is no option: its keys are options of hipgpt train"),
        ('config = "d.toml"', "c.toml has the key 'config', which is no option"),
        ("resume = 1", "c.toml has resume = 1, but it must be true or false"),
        ("steps = true", "c.toml has steps = true, but it must be a text or a number"),
        ("[steps]\na = 1", 'c.toml has steps = {"a": 1}, but it must be a text or a number'),
        ("steps = 1979-05-27", 'c.toml has steps = "1979-05-27", but it must be a text or a number'),
        ("steps", "--config c.toml is not TOML ("),
        ("steps = 1\nsteps = 2", "--config c.toml is not TOML ("),
    ],
)
def test_a_mistake_in_a_file_is_named(text, complaint):
    with pytest.raises(UserError) as caught:
        given(file=text)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize("text", ["steps = 3.5", 'steps = "many"', 'preset = "huge"'])
def test_a_value_that_the_option_does_not_take_is_refused_as_on_the_command_line(text):
    with pytest.raises(click.UsageError):
        given(file=text)


def test_a_file_that_is_not_there_and_one_that_is_not_text_are_refused():
    with pytest.raises(UserError, match=r"--config none\.toml does not exist"):
        given("--config", "none.toml")
    Path("c.toml").write_bytes(b"steps = \xff")
    with pytest.raises(UserError, match=r"--config c\.toml is not TOML"):
        given("--config", "c.toml")


def test_a_saved_file_gives_the_same_options(tmp_path):
    command = ["--steps", "7", "--lr", "1e-3", "--no-tie", "--no-recompute", "--run-name", 'a "b" é', "--val-fraction"]
    context = main.commands["train"].make_context("train", [*command, "0", "--runs-dir", "x", "--resume"])
    config_file.save(context, tmp_path / "c.toml")
    assert given("--config", "c.toml") == given(*command, "0", "--runs-dir", "x", "--resume")


def test_training_saves_what_was_given_and_trains_with_it(hipgpt):
    Path("text.txt").write_text("the cat sat on the mat . " * 40)
    options = ("--dim", 8, "--heads", 1, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2, "--steps", 2)
    hipgpt("train", "--data-path", "text.txt", "--run-name", "a", *options, "--save-config", "c.toml")
    assert 'data-path = ["text.txt"]\n' in Path("c.toml").read_text()
    hipgpt("train", "--config", "c.toml", "--run-name", "b")
    for key in ("model", "training"):
        first, second = (json.loads(Path(f"checkpoints/{run}/latest_config.json").read_text())[key] for run in "ab")
        assert first == second
    assert first["steps"] == 2 < TrainConfig.total_steps
    saving = ("train", "--config", "c.toml", "--run-name", "c", "--save-config", "none/c.toml")
    assert "cannot write --save-config none/c.toml" in hipgpt(*saving, status=2).stderr


# ---- completion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_hipgpt_back(shell, monkeypatch):
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    result = CliRunner().invoke(main.commands["completion"], [shell])
    assert "_HIPGPT_COMPLETE" in result.output


def test_a_shell_is_offered_commands_options_and_runs(hipgpt):
    from click.shell_completion import ShellComplete

    Path("text.txt").write_text("a b c")
    hipgpt("tokenize", "--data-path", "text.txt", "--run-name", "first")

    def offered(*words: str) -> list[str]:
        complete = ShellComplete(main, {}, "hipgpt", "_HIPGPT_COMPLETE")
        return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    assert offered("tok") == ["tokenize"]
    assert "--save-config" in offered("train", "--sa")
    assert offered("generate", "--run-name", "") == ["first"]
    assert offered("show", "f") == ["first"]
    assert offered("plot", "x") == []
    assert offered("train", "--preset", "ti") == ["tiny"]
