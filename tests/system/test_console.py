"""The output of a command on a terminal."""

import io
import re
import sys
import threading

from gpt.system.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_of_another_thread_are_never_beside_a_bar_that_begins_or_ends(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    console, is_over = Console(), threading.Event()

    def print_lines():
        while not is_over.is_set():
            console.line("a line")

    thread = threading.Thread(target=print_lines)
    thread.start()
    for _ in range(100):
        with console.progress("Training", total=1) as advance:
            advance(1)
        console.line("the next line")
    is_over.set()
    thread.join()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stdout.getvalue())
    rows = [row.strip() for row in re.split(r"[\r\n]+", plain)]
    assert not [row for row in rows if "line" in row and "Training" in row]
