"""The trained model that a command works with: the options that choose it, and loading it."""

from typing import TYPE_CHECKING

import click

from gpt.commands.command_line import Option
from gpt.commands.options import BLAS, CHECKPOINT, DEVICE, PRECISION, RUNS, complete_run

if TYPE_CHECKING:
    from gpt.model import GPT
    from gpt.run import Run
    from gpt.tokenizer import Tokenizer


def run_option(help: str) -> Option:
    """The option --run-name of a command that needs a run. `help` says what for."""
    return Option("--run-name", metavar="NAME", required=True, shell_complete=complete_run, help=help)


def model_options(help: str) -> tuple[Option, ...]:
    """The options that choose a run, a checkpoint of it, and where and how its model computes."""
    return run_option(help), *CHECKPOINT, DEVICE, PRECISION, BLAS, RUNS


def loaded(
    run: "Run", step: int | None, best: bool, device: str, precision: str, blas: str, texts: int = 1
) -> tuple["GPT", "Tokenizer", int]:
    """A run's model and tokenizer, and how many of so many texts can be written at once.

    Prints the device's notes on standard error. Raises UserError if there is no such model or device, or not enough
    memory.
    """
    from gpt import checkpoint
    from gpt.generate import fitting, load_model
    from gpt.ops import select
    from gpt.tokenizer import Tokenizer

    saved, ops = checkpoint.load(run, step, best), select(device, precision, blas=blas)
    places = fitting(saved.model_config, ops, texts)
    model = load_model(saved, ops, places)
    for note in ops.notes:
        click.echo(note, err=True)
    return model, Tokenizer.load(run.tokenizer_path), places
