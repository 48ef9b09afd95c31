"""Processes that hipgpt starts beside itself import what this one does, wherever the user works."""

import os
import subprocess

import pytest

from gpt.doctor import ahead, products
from gpt.metrics.trackers import following
from gpt.system import process


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of a user who calls files gpt.py and random.py."""
    for name in ("gpt.py", "random.py", "runpy.py"):
        (tmp_path / name).write_text("raise SystemExit('this is the user\\'s file')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.parametrize(
    ("command", "opening"),
    [
        ([*products.COMMAND, "cpu", "fp32"], ""),
        ([*ahead.COMMAND, str(os.getpid()), "cpu", "fp32"], ""),
        ([*following.COMMAND, "nobody"], '{"directory": ".", "kept": 0, "settings": {}}\n'),
    ],
    ids=["products", "ahead", "follower"],
)
def test_files_of_the_working_directory_are_not_imported_in_place_of_modules(folder, command, opening):
    ended = subprocess.run(command, input=opening, capture_output=True, text=True, check=False)
    assert "user's file" not in ended.stderr
    expected = following.FAILED if opening else 0  # there is no such tracker, which the follower says itself
    assert ended.returncode == expected, ended.stderr


def test_code_of_ones_own_gets_its_arguments_and_imports_from_where_this_process_does(folder):
    code = "import random, sys; print(random.choice(sys.argv[1:]))"
    ended = subprocess.run([*process.python(code), "a b"], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("a b\n", "")
