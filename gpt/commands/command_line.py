"""The command line's own rules, on top of click: errors of one line, options given once, help in sections.

The modules beside this one declare their commands with `command`, `Option` and `Setting`, and gpt/cli.py the `Program`.
"""

import inspect
import io
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from gpt.commands import origins
from gpt.config import CHOICES, types_of
from gpt.distributed import keeper
from gpt.errors import UserError, one_line, reason, shown, told
from gpt.system import ending, interrupts
from gpt.system.typed_path import typed_path

WIDEST_TERM = 30  # columns that an option's name may take beside its help

# Advice for a command that runs out of memory; None stands for all other commands.
SPARING = {
    "train": "lower --batch, --seq or the size of the model, or give --recompute",
    "bench": "lower --batch, --seq or the size of the model, or give --recompute",
    "tokenize": "give a shorter text or a lower --vocab-size, or take a machine with more",
    None: "close other programs, or take a machine with more",
}

# Options that a value without one is most likely meant for, in this order.
LIKELIEST = ("--data-path", "--prompt", "--run-name")

ON_RANKS = {"train", "tokenize"}  # commands that several ranks may run together

Sections = Mapping[str, Sequence["Option"]]  # heading → options


class PathType(click.Path):
    """A path, as `typed_path` takes it. The value is a `Path`, or a str if the option can be something else, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = param.opts[0] if isinstance(param, click.Option) else str(param and param.metavar)
        return super().convert(typed_path(value, name), param, ctx)


PATH, PATH_NAME = PathType(path_type=Path, readable=False), PathType(path_type=str, readable=False)


class Option(click.Option):
    """An option that is refused if it is given more than once. (A plain option of click takes the last value.)

    With `multiple` it may be given more than once, and its value is a tuple. `default_text` describes the default in
    the help, for an option whose own default is None. If the command line lacks the option, an environment variable may
    have its value: HIPGPT_ and the option's name, such as HIPGPT_VOCAB_SIZE for --vocab-size. Each line of the variable
    is a value, if there may be several.
    """

    def __init__(self, *names: str, help: str, default_text: object = None, **kwargs: Any) -> None:
        if default_text is not None:
            help = f"{help}  [default: {default_text}]"
        kwargs.setdefault("show_default", default_text is None and not kwargs.get("is_flag"))
        long = next(name for name in names if name.startswith("--")).partition("/")[0]
        kwargs.setdefault("envvar", origins.variable(long))
        super().__init__(names, help=help, **kwargs)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        is_multiple, self.multiple = self.multiple, True  # for the parser alone, which then collects all values
        super().add_to_parser(parser, ctx)
        self.multiple = is_multiple

    def value_from_envvar(self, ctx: click.Context) -> Any:
        if self.multiple:  # click would split at spaces, which paths and texts have
            return (self.resolve_envvar_value(ctx) or "").splitlines() or None
        value = super().value_from_envvar(ctx)
        if value is not None and self.is_flag and self.flag_value is False:  # --no-tie: its own value is the opposite
            return False if click.BOOL.convert(value, self, ctx) else None
        return value

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        name = str(self.name)
        values = opts.get(name)
        if values and not self.multiple:
            if len(values) > 1:
                *first, last = map(str, values)
                given = "" if self.is_flag else f", {', '.join(first)} and {last}"
                raise UserError(f"{self.opts[0]} is given {len(values)} times{given}: give it once")
            opts = {**opts, name: values[0]}
        return super().handle_parse_result(ctx, opts, args)


class Setting(Option):
    """An option that sets the field `key` of a config class, which has the type and the default.

    Its value is None if the command line does not have it, so that a preset or a checkpoint can decide; an empty tuple,
    if it may be repeated. For example Setting(ModelConfig, "embed_dim", "--dim", help="…") shows "[default: 256]". With
    `--dim 512`, the `settings` of its command (see `Command`) are {"embed_dim": 512}; without it, they are {}.
    """

    def __init__(self, config: type, key: str, *flags: str, **kwargs: Any) -> None:
        if not kwargs.get("is_flag"):
            types = (str,) if kwargs.get("multiple") else types_of(config)[key]
            kwargs.setdefault("type", click.Choice(CHOICES[key]) if key in CHOICES else types[0])
            kwargs.setdefault("default_text", getattr(config, key))
        super().__init__(*flags, key, default=None, **kwargs)


class _WithExample:
    """A command whose help ends with its epilog, shown line by line under the heading "Example"."""

    epilog: str | None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in inspect.cleandoc(self.epilog or "").splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(_WithExample, click.Command):
    """A command whose help lists its options in sections.

    Its function has a parameter for each option, except for `Setting`s: those that were given come together in one
    parameter, `settings`, as a dict from key to value.
    """

    def __init__(self, name: str, sections: Sections, params: Sequence[click.Parameter] = (), **kwargs: Any) -> None:
        options = [option for section in sections.values() for option in section]
        # Without it click takes the beginning of the help, and cuts it to the width of the terminal.
        kwargs.setdefault("short_help", inspect.cleandoc(kwargs["help"]).partition("\n\n")[0])
        super().__init__(name, params=[*params, *options], **kwargs)
        self.sections = sections
        self.takes_runs = any((each.metavar or "").startswith("RUN") for each in params)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[click.Option]] = {head: list(options) for head, options in self.sections.items()}
        if help_option := self.get_help_option(ctx):
            next(iter(sections.values())).append(help_option)
        records = {
            heading: [record for option in options if (record := option.get_help_record(ctx))]
            for heading, options in sections.items()
        }
        widest = max(len(name) for rows in records.values() for name, _ in rows)
        column = min(widest, WIDEST_TERM, formatter.width * 2 // 5)  # the same in all sections
        for heading, rows in records.items():
            with formatter.section(heading):
                for name, text in rows:
                    _write_option(formatter, name, text, column)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True  # they are refused below, with more advice than click's
        with origins.named(ctx):
            try:
                stray = super().parse_args(ctx, args)
            except click.NoSuchOption as error:
                if error.option_name == "--run-name" and self.takes_runs:
                    raise click.UsageError(f"give the run without --run-name: hipgpt {self.name} RUN", ctx) from None
                raise
            if stray and not ctx.resilient_parsing:
                raise click.UsageError(self._advice(stray[0]), ctx)
        return stray

    def _advice(self, stray: str) -> str:
        flags = {flag for option in self.params for flag in option.opts}
        likely = [f"give it as {flag} {shlex.quote(stray)}" for flag in LIKELIEST if flag in flags]
        advice = f"{likely[0]}, with quotes around a pattern or a text with spaces" if likely else "leave it out"
        return f"{shown(stray)} belongs to no option: {advice}"

    def invoke(self, ctx: click.Context) -> Any:
        names = [option.name for option in self.params if isinstance(option, Setting)]
        values = {name: ctx.params.pop(name) for name in names if name}
        if values:
            ctx.params["settings"] = {name: value for name, value in values.items() if value not in (None, ())}
        with origins.named(ctx):
            return super().invoke(ctx)


def _write_option(formatter: click.HelpFormatter, name: str, text: str, column: int) -> None:
    """Write a name in a column of this width, and its help beside it. (click's `write_dl` breaks flags at hyphens.)"""
    indent = " " * (formatter.current_indent + column + 2)
    lines = textwrap.wrap(text, max(10, formatter.width - len(indent)), break_on_hyphens=False)
    first = f"{'':{formatter.current_indent}}{name:{column}}  "
    if len(name) > column:
        formatter.write(f"{first.rstrip()}\n")
        first = indent
    formatter.write(f"{first}{lines[0]}\n")
    for line in lines[1:]:
        formatter.write(f"{indent}{line}\n")


def command(name: str, **attributes: Any) -> Callable[[Callable[..., None]], Command]:
    """Return a decorator that makes a `Command` of a function; its help is the function's docstring."""
    return click.command(name, cls=Command, **attributes)


class Program(_WithExample, click.Group):
    """A group of commands whose every error is one line on standard error and exit status 2.

    Its help lists them in the order in which they were added.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override] # click's returns if not standalone
        kwargs |= {"prog_name": "hipgpt", "standalone_mode": False}
        keeper.begin(interrupts.SIGNALS)
        _open_closed_streams()
        # A terminal that lacks a character must not end a run. Input is decoded in the way arguments are; a command
        # that needs text refuses bytes that are not text.
        _reconfigure(sys.stdout, errors="backslashreplace")
        _reconfigure(sys.stderr, errors="backslashreplace")
        _reconfigure(sys.stdin, encoding="utf-8", errors="surrogateescape")
        # hipgpt has threads of its own. OpenBLAS would start as many again, and dies if the system forbids that.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        try:
            with interrupts.raised(), _flushed():
                status = super().main(*args, **kwargs)
            sys.exit(status)
        except click.ClickException as error:
            _fail(f"{error.format_message()} (see {_command_path(error)} --help)")
        except UserError as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            ending.tell_others("", interrupts.status())
            click.echo("Interrupted", err=True)
            sys.exit(interrupts.status())
        except OSError as error:
            _fail(f"cannot read or write {told(error.filename) if error.filename else 'a file'}: {reason(error)}")
        except Exception as error:
            ending.tell_others(one_line(f"{type(error).__name__}: {error}"), 1)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        for name, near in origins.misspelled(self.commands.values()):
            click.echo(f"Note: {name} is set, but no option has this variable: did you mean {near}?", err=True)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ending.tell_others("", interrupts.status())
            raise
        except (click.ClickException, UserError):
            if ctx.invoked_subcommand in ON_RANKS and not ending.has_others():
                from gpt.distributed.ranks import meet

                meet()  # the other ranks would wait for this one, or say the same
            raise
        except MemoryError:
            raise UserError(f"out of memory: {SPARING.get(ctx.invoked_subcommand, SPARING[None])}") from None


def _open_closed_streams() -> None:
    """Let standard streams that were closed (`>&-`) read and write nothing.

    Otherwise Python has None in their place, and the next file to be opened gets their number.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _reconfigure(stream: object, *, errors: str, encoding: str | None = None) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=encoding, errors=errors)


@contextmanager
def _flushed() -> Iterator[None]:
    """At the end, drop output that cannot be written: Python's own last attempt would change the exit status."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                from gpt.system.console import discard_output

                discard_output(stream)


def _fail(message: str) -> None:
    message = one_line(message)
    ending.tell_others(message, 2)
    with suppress(OSError):  # nobody may be left to read it
        click.echo(f"Error: {message}", err=True)
    sys.exit(2)


def _command_path(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "hipgpt"
