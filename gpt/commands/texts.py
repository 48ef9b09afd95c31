"""Texts that a user gives as an option's value, and a text that is printed while it is written."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer


def given(text: str) -> str:
    """The text of an option, read from standard input, without its last newline, if the option is "-"."""
    return sys.stdin.read().removesuffix("\n") if text == "-" else text


def note_unknown(flag: str, tokenizer: "Tokenizer", text: str) -> None:
    """List on standard error the characters of an option's text that the tokenizer leaves out."""
    from gpt.tokenizer import lost_note

    if unknown := tokenizer.unknown(text):
        click.echo(f"Note: {lost_note(flag, unknown, len(text))}", err=True)


def print_stream(pieces: Iterable[str]) -> None:
    """Print a text that comes in pieces, one for each token and the rest, and end its line.

    If standard error is a terminal, it gets the speed.
    """
    began, count = time.perf_counter(), -1
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
        count += 1
    click.echo()
    _note_speed(count, time.perf_counter() - began)


def _note_speed(tokens: int, seconds: float) -> None:
    """Say on standard error how fast a text was written, if that is a terminal."""
    if tokens > 0 and sys.stderr.isatty():
        click.secho(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s", err=True, dim=True)
