"""The help and the README describe the program as it is: its commands and options, and examples that work."""

import ast
import io
import re
import shlex
import tokenize
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gpt.cli import main
from gpt.commands.command_line import Setting
from gpt.config import flag
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| `hipgpt (\w+)` \| (.*) \|$", README, re.MULTILINE))
SHELL = r"^```sh\n(.*?)^```"
LAUNCHERS = "mpirun|srun|torchrun"
STARTS = f"({LAUNCHERS}|hipgpt) "
WIDTHS = (80, 100)


def help_of(*command: str, width: int = 80) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=width)
    assert result.exit_code == 0
    return result.output


def list_of_commands(width: int = 80) -> str:
    return help_of(width=width).partition("\nCommands:\n")[2].partition("\n\n")[0]


def parse(command_line: str) -> None:
    """Parse `hipgpt …` as a shell and click would, without running it. Raises click's exceptions."""
    program, name, *arguments = shlex.split(command_line, comments=True)
    assert program == "hipgpt"
    main.commands[name].make_context(name, arguments)


def shell_lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(SHELL, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def printed_commands() -> list[str]:
    """Every `hipgpt …` in the shell blocks of README and docs, alone or behind a launcher of ranks."""
    pages = ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))
    lines = [line for page in pages for line in shell_lines(page)]
    parts = (part.strip() for line in lines for part in line.split("&&"))
    return [re.sub(f"^({LAUNCHERS}) .*?(?=hipgpt )", "", part) for part in parts if re.match(STARTS, part)]


@pytest.mark.parametrize("command", main.commands)
def test_every_command_explains_itself(command):
    text = help_of(command)
    assert text.startswith(f"Usage: hipgpt {command} ")
    assert main.commands[command].help
    assert re.search(f"^  {command} +[A-Z].*[^.]", help_of(), re.MULTILINE)


@pytest.mark.parametrize("command", ["", *main.commands])
@pytest.mark.parametrize("width", WIDTHS)
def test_help_ends_with_an_example_that_can_be_typed(command, width):
    text = help_of(*command.split(), width=width)
    assert max(map(len, text.splitlines())) <= width
    _, example = text.split("\nExample:\n")
    for line in example.splitlines():
        assert line.startswith(f"  hipgpt {command}".rstrip())
        parse(line)


@pytest.mark.parametrize("command", main.commands)
def test_every_option_stands_in_one_section_with_a_whole_phrase(command):
    text = help_of(command)
    for option in main.commands[command].params:
        if isinstance(option, click.Option):
            assert len(re.findall(rf"^  {re.escape(option.opts[0])}(?![\w-])", text, re.MULTILINE)) == 1
            assert re.match("[A-Z]", option.help)
            assert not re.match("(Of|Where|What|Which|How) ", option.help)


@pytest.mark.parametrize("command", main.commands)
def test_no_line_of_the_help_ends_within_a_flag(command):
    for width in range(50, 111, 10):
        assert not re.search(r"--[a-z-]+-$", help_of(command, width=width), re.MULTILINE)


@pytest.mark.parametrize("command", main.commands)
def test_error_messages_name_settings_by_flags_that_exist(command):
    for option in main.commands[command].params:
        if isinstance(option, Setting):
            assert flag(option.name) in option.opts


def test_the_readme_and_the_help_list_all_commands_in_one_order():
    listed = re.findall(r"^  (\w+) ", list_of_commands(), re.MULTILINE)
    assert listed == list(TABLE) == list(main.commands)


def test_a_narrow_terminal_cuts_no_command_short():
    assert "..." not in list_of_commands(width=50)


@pytest.mark.parametrize("command", TABLE)
def test_the_table_of_commands_names_options_that_exist(command):
    known = {name for option in main.commands[command].params for name in option.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", TABLE[command])) <= known


@pytest.mark.parametrize("command", printed_commands())
def test_commands_in_readme_and_docs_can_be_typed(command):
    parse(command)


def test_the_readme_starts_ranks_in_every_way():
    lines = shell_lines(ROOT / "README.md")
    for way in (*LAUNCHERS.split("|"), "hipgpt train --gpus"):
        assert any(line.startswith(f"{way} ") for line in lines)


def test_flags_in_the_readme_belong_to_some_command():
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    known = {name for command in main.commands.values() for option in command.params for name in option.opts}
    known |= {"--help", "--version"}
    assert set(re.findall(r"`(--[a-z][a-z-]+)", text)) <= known


def code_lines(path: Path) -> int:
    """The lines of a Python file that hold more than a comment or a docstring."""
    source, docstrings, code = path.read_text(encoding="utf-8"), set[int](), set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, node.end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP):
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_readme_is_right_about_the_lines_of_the_program_to_a_twentieth():
    said = re.search(r"about ([\d,]+) lines of Python and ([\d,]+) lines of kernels", README)
    python = sum(map(code_lines, (ROOT / "gpt").rglob("*.py")))
    sources = [
        path.read_text(encoding="utf-8") for path in (ROOT / "kernels").iterdir() if path.suffix in (".h", ".hip")
    ]
    kernels = sum(bool(line.partition("//")[0].strip()) for source in sources for line in source.splitlines())
    for words, count in zip(said.groups(), (python, kernels), strict=True):
        assert abs(int(words.replace(",", "")) - count) <= count / 20, count
