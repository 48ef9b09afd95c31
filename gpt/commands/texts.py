"""Texts that a user gives as an option's value."""

import sys
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
