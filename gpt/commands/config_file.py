"""Options in a TOML file: `--config FILE` reads them, `--save-config FILE` writes those that were given.

A key is an option's long name without its dashes, and a switch is true or false:

    preset = "small"
    data-path = "my.txt"
    steps = 4000
    no-tie = true

The command line wins over environment variables, and these win over the file.
"""

import json
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from gpt.errors import UserError, cannot

OWN = ("config", "save_config")  # names of the two options themselves


def apply(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Take the options of the file as defaults of the command: the callback of `--config`.

    Raises UserError if the file cannot be read or is not TOML, if a key is not an option of the command, and if no
    option has values of that type. click checks the values themselves.
    """
    if path is not None:
        context.default_map = dict(_values(context.command, path))
    return path


def save(context: click.Context, path: Path) -> None:
    """Write the options that the command line, the environment and the file of `--config` gave.

    Raises UserError if the file cannot be written.
    """
    from gpt.system.files import write_atomically  # imported here, because `--help` does without

    lines = []
    for key, option in _options(context.command).items():
        source = context.get_parameter_source(str(option.name))
        if source not in (None, click.core.ParameterSource.DEFAULT):
            value = _given(context, option)
            lines.append(
                f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
            )  # JSON's strings, numbers and booleans are TOML's
    with cannot(f"write --save-config {path}", even_if_missing=True):
        write_atomically(path, "".join(lines))


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options that a file may have, by key."""
    options = [option for option in command.params if isinstance(option, click.Option) and option.name not in OWN]
    return {option.opts[0].lstrip("-"): option for option in options}


def _values(command: click.Command, path: Path) -> Iterator[tuple[str, Any]]:
    """Parameter names and values, as click takes them."""
    options = _options(command)
    for key, value in _parsed(path).items():
        if key not in options:
            near = get_close_matches(key, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its keys are options of hipgpt {command.name}"
            raise UserError(f"{path} has the key {key!r}, which is no option: {hint}")
        option = options[key]
        if option.is_flag:
            if not isinstance(value, bool):
                raise UserError(f"{path} has {key} = {json.dumps(value, default=str)}, but it must be true or false")
            if option.secondary_opts or value:  # a switch that has no opposite is either given or not
                yield str(option.name), value and option.flag_value is not False  # --no-tie stands for False
        elif option.multiple and isinstance(value, list) and all(isinstance(each, str) for each in value):
            yield str(option.name), tuple(value)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            text = str(value)  # as on a command line: 3.5 is then no integer
            yield str(option.name), (text,) if option.multiple else text
        else:
            raise UserError(
                f"{path} has {key} = {json.dumps(value, default=str)}, but it must be a text or a number; options "
                "stand at the top of the file, not in tables"
            )


def _parsed(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from gpt.system.reading import SMALL, read

    try:
        return tomllib.loads(read(path, SMALL).decode())
    except FileNotFoundError:
        raise UserError(f"--config {path} does not exist: give the path of a TOML file with options") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not TOML ({error}): mend it") from None


def _given(context: click.Context, option: click.Option) -> str | int | float | bool | list[str]:
    """The value of an option that was given. For a switch such as --no-tie: true."""
    value = {**context.params, **context.params.get("settings", {})}[str(option.name)]
    if option.is_flag and not option.secondary_opts:
        return True
    if option.multiple:
        return list(map(str, value))
    return value if isinstance(value, str | int | float) else str(value)
