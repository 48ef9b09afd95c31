"""Options whose values come from the environment or from a file, in messages.

A user who set HIPGPT_DEVICE long ago does not think of it when a message speaks of --device.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import click
from click.core import ParameterSource

from gpt.errors import UserError

PREFIX = "HIPGPT_"  # beginning of the environment variables that have the values of options


def variable(flag: str) -> str:
    """The environment variable of an option: "--vocab-size" → "HIPGPT_VOCAB_SIZE"."""
    return PREFIX + flag.lstrip("-").replace("-", "_").upper()


@contextmanager
def named(context: click.Context) -> Iterator[None]:
    """Add to an error inside the `with` where its options come from, if they do not stand in the command line.

    Example: "--device is tpu, but must be auto, cpu, gpu or gpu:N (--device comes from HIPGPT_DEVICE)"
    """
    try:
        yield
    except UserError as error:
        error.args = (f"{error}{_origins(context, str(error))}",)
        raise
    except click.UsageError as error:
        message = error.format_message()
        raise click.UsageError(f"{message}{_origins(context, message)}", error.ctx) from None


def _origins(context: click.Context, message: str) -> str:
    """The origins of the options that a message names, in words, or nothing."""
    found = []
    for option in context.command.params:
        flag = option.opts[0]
        origins = {ParameterSource.ENVIRONMENT: option.envvar, ParameterSource.DEFAULT_MAP: "--config"}
        origin = origins.get(context.get_parameter_source(str(option.name)))  # type: ignore[arg-type]
        if origin and re.search(rf"{flag}(?![\w-])", message):
            found.append(f"{flag} comes from {origin}")
    return f" ({', '.join(found)})" if found else ""


def misspelled(commands: Iterable[click.Command]) -> Iterator[tuple[str, str]]:
    """Environment variables of no option, each with the one of an option that it resembles.

    Those that resemble none pass: the tests have variables of their own.
    """
    options = (each for command in commands for each in command.params if isinstance(each, click.Option))
    known = {str(option.envvar) for option in options}
    names = [name.removeprefix(PREFIX) for name in known]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            for near in get_close_matches(name.removeprefix(PREFIX), names, n=1, cutoff=0.75):
                yield name, PREFIX + near
