"""The commands that look at runs: `hipgpt runs`, `show` and `plot`."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt.commands.command_line import PATH, Option, command
from gpt.commands.options import JSON, RUNS, complete_run
from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.run import Run


@command(
    "runs",
    short_help="List the runs: states, steps, losses, parameters, size.",
    sections={"Options": (RUNS, Option("--json", "as_json", is_flag=True, help="Print one JSON array."))},
    epilog="hipgpt runs",
)
def list_runs(runs_dir: Path, as_json: bool) -> None:
    """List the runs under --runs-dir.

    Shows the state (training, stopped, done, diverged, tokenized, imported, damaged), the steps done, the last loss,
    the best and the last validation loss with their steps, the tokens, the time and the device of training, the number
    of parameters and the size on disk.
    """
    from gpt import run
    from gpt.metrics import listing
    from gpt.metrics.summary import summary

    found = [summary(each) for each in run.list_runs(runs_dir)]
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    elif found:
        click.echo("\n".join(listing.table(found, _width_to_fit())))
    else:
        click.echo(f"No runs in {runs_dir}/ yet: hipgpt train makes one")


@command(
    "show",
    params=[click.Argument(["name"], metavar="RUN", shell_complete=complete_run)],
    short_help="Tell all about one run.",
    sections={"Options": (RUNS, JSON)},
    epilog="hipgpt show first",
)
def show_run(name: str, runs_dir: Path, as_json: bool) -> None:
    """Tell all about one run: its state, model, data, losses, settings and checkpoints, and what to do next."""
    from gpt.metrics import listing
    from gpt.metrics.summary import summary

    run = _named(name, runs_dir)
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}: `hipgpt runs` lists those there are")
    found = summary(run)
    page = json.dumps(found.to_json(), indent=2) if as_json else "\n".join(listing.page(run, found, _width_to_fit()))
    click.echo(page)


@command(
    "plot",
    params=[click.Argument(["names"], metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)],
    short_help="Draw the curves of runs, in the terminal or as a picture.",
    sections={
        "Options": (
            RUNS,
            Option("--out", metavar="FILE", type=PATH, default_text="draw in the terminal",
                   help="Picture to write: .png, .svg or .pdf."),
            Option("--over", type=click.Choice(["steps", "tokens", "time"]), default="steps",
                   help="Quantity on the horizontal axis."),
            Option("--terminal", is_flag=True, help="Draw in the terminal, also with --out."),
        )
    },
    epilog="""
    hipgpt plot first
    hipgpt plot first second --over tokens --out curves.png
    """,
)  # fmt: skip
def plot_runs(names: tuple[str, ...], runs_dir: Path, out: Path | None, over: str, terminal: bool) -> None:
    """Draw the curves of one or more runs: losses, learning rate, gradient norm, tokens per second.

    The lowest validation loss is marked. A picture needs matplotlib (pip install 'hipgpt[plot]').
    """
    from gpt.metrics import curves, picture
    from gpt.metrics import terminal as text

    logs = curves.logs([_named(name, runs_dir) for name in dict.fromkeys(names)], over)
    if out is not None:
        picture.draw(logs, over, out)
        click.echo(f"Saved to {out}")
    if out is None or terminal:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        click.echo(text.drawn(logs, over, _width(), color))


def _named(name: str, runs_dir: Path) -> "Run":
    """The run of the argument RUN. Errors name this argument, because these commands have no --run-name."""
    from gpt.run import Run

    try:
        return Run(name, runs_dir)
    except UserError as error:
        raise UserError(str(error).replace("--run-name", "RUN", 1)) from None


def _width_to_fit() -> int | None:
    """The columns that lines must not exceed: those of the terminal. A pipe or a file takes lines of any length."""
    return _width() if sys.stdout.isatty() else None


def _width() -> int:
    """The columns of the terminal; 80 if there is none."""
    return shutil.get_terminal_size().columns
