"""The training's side: it starts a follower, prints its lines, and ends it."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from gpt.errors import UserError, reason
from gpt.metrics.trackers import PACKAGES
from gpt.run import Run
from gpt.system.console import Console
from gpt.system.process import command

PATIENCE = 30.0  # seconds that a follower gets after the end of the training
LONG = 3.0  # seconds of them after which the user is told
FAILED = 3  # exit status of a follower that has said why
COMMAND = command("gpt.metrics.trackers")


def check_tracker(tracker: str) -> None:
    """Raise UserError if there is no such tracker, or if its package is not installed."""
    if tracker not in PACKAGES:
        raise UserError(f"--track is {tracker}, but must be one of {', '.join(PACKAGES)}")
    if find_spec(PACKAGES[tracker]) is None:
        raise UserError(f"--track {tracker} needs {PACKAGES[tracker]}: pip install 'hipgpt[{tracker}]'")


@contextmanager
def following(tracker: str, run: Run, settings: Mapping[str, Any], console: Console) -> Iterator[Callable[[], None]]:
    """Inside the `with`, a follower hands the run's log on to a tracker.

    The log has the lines that the run has kept, and no others. Call the function that this yields when the run is done.
    At the end of the `with`, the follower gets PATIENCE seconds for what it still has to do. If it fails, or takes
    longer, that costs one line of output.
    """
    state, follower = ["stopped"], _start(tracker, run, settings, console)
    try:
        yield lambda: state.append("done")
    finally:
        if follower is not None:
            _end(follower, state[-1], tracker, console)


def _start(
    tracker: str, run: Run, settings: Mapping[str, Any], console: Console
) -> tuple[subprocess.Popen[str], threading.Thread] | None:
    """The follower, and the thread that prints its lines; None, after a note, if it cannot be started."""
    environ = {**os.environ, "PYTHONSAFEPATH": "1"}  # as in COMMAND, for processes that the tracker starts
    opening = {"directory": str(run.path), "kept": len(run.metrics()), "settings": dict(settings)}
    try:
        # Ctrl-C of the terminal does not reach a session of its own.
        process = subprocess.Popen(
            [*COMMAND, tracker], env=environ, start_new_session=True, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        console.line(f"Note: --track {tracker}: no process can be started for it ({reason(error)}). The run goes on")
        return None
    printer = threading.Thread(target=_print, args=(process, console), daemon=True)
    printer.start()
    _tell(process, json.dumps(opening))
    return process, printer


def _print(process: subprocess.Popen[str], console: Console) -> None:
    for line in process.stdout or ():
        console.line(line.rstrip("\n"))


def _tell(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin:
        with suppress(OSError):  # it has failed
            process.stdin.write(line + "\n")
            process.stdin.flush()


def _end(follower: tuple[subprocess.Popen[str], threading.Thread], state: str, tracker: str, console: Console) -> None:
    process, printer = follower
    _tell(process, state)
    try:
        try:
            process.wait(LONG)
        except subprocess.TimeoutExpired:
            console.line(f"Waiting for {tracker}, {PATIENCE:.0f} s at most")
            process.wait(PATIENCE)
        printer.join(LONG)
        if process.returncode not in (0, FAILED):
            console.line(f"Note: --track {tracker}: its process has ended with status {process.returncode}")
    except subprocess.TimeoutExpired:
        console.line(f"Note: --track {tracker} has not finished, and is left alone: metrics.jsonl has everything")
    finally:
        process.kill()
        process.wait()
