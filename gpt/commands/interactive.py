"""A session on a terminal: texts are typed and answered, one after the other (`generate` without a prompt, and `chat`).

A line that begins with "/" is a command: `/temp 0.7` changes a setting, `/help` lists all of them. A line that ends
with "\\" goes on in the next one. Ctrl-C stops the text that is being written, Ctrl-D ends.

The standard library's readline edits the lines and remembers them. Every Python but that of Windows has it, and the
terminal of Windows edits lines by itself; so this needs no other package.
"""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import click

from gpt.commands.texts import print_stream
from gpt.config import SamplingConfig, check, flag, types_of
from gpt.errors import UserError, shown
from gpt.system import interrupts


@dataclass(frozen=True)
class Settings:
    """How the texts are written: the options of the command, which may be changed between two texts."""

    num_tokens: int
    sampling: SamplingConfig
    stops: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        check(self.num_tokens >= 1, "num_tokens", self.num_tokens, "at least 1")
        check(self.seed >= 0, "seed", self.seed, "at least 0")

    def listed(self) -> dict[str, str]:
        """The values by the names that they are changed by."""
        sampling = {flag(key)[2:]: f"{getattr(self.sampling, key)}" for key in types_of(SamplingConfig)}
        sampling["rep-penalty"] = f"{self.sampling.penalty:g}"
        stops = " ".join(stop.replace("\n", "\\n") for stop in self.stops)
        return {**sampling, "num-tokens": str(self.num_tokens), "seed": str(self.seed), "stop": stops}

    def changed(self, name: str, value: str) -> "Settings":
        """With another value for one of these names. Raises UserError for a value that cannot be one."""
        if name == "stop":
            return replace(self, stops=(value.replace("\\n", "\n"),) if value else ())
        keys = {flag(key)[2:]: (key, types[0]) for key, types in types_of(SamplingConfig).items()}
        key, kind = keys.get(name, (name.replace("-", "_"), int))
        try:
            number = kind(value)
        except ValueError:
            raise UserError(f"/{name} is {shown(value)}, but must be a number") from None
        if name in keys:
            return replace(self, sampling=replace(self.sampling, **{key: number}))
        return replace(self, **{key: number})

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `gpt.generate.generate`."""
        return {"num_tokens": self.num_tokens, "sampling": self.sampling, "stops": self.stops, "seed": self.seed}


Pieces: TypeAlias = Generator[str, None, None]
Commands: TypeAlias = Mapping[str, tuple[str, Callable[[Settings, int], Pieces | None]]]


class Answers(Protocol):
    """What a session does with the texts that are typed. Each method may raise UserError, whose message is printed.

    `commands` has further commands: a name, without "/", its help, and what it does, which may return pieces to print.
    """

    greeting: str
    commands: Commands

    def answer(self, text: str, settings: Settings, number: int) -> Pieces:
        """The pieces to print after `text`, the text with this number since the seed was set."""


def is_terminal() -> bool:
    """Whether a user types the input and sees the output."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Session:
    """A loop that reads a text, and prints the answer to it, until the user ends it."""

    def __init__(self, settings: Settings, answers: Answers) -> None:
        self._settings, self._answers = settings, answers
        self._number = 0
        self._is_terminal = is_terminal()

    def run(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401 # importing it lets `input` edit lines
        if self._is_terminal:
            click.echo(self._answers.greeting, err=True)
        with interrupts.caught() as self._ctrl_c:
            while (text := self._read()) is not None and text.strip() != "/quit":
                try:
                    self._obey(text)
                except UserError as error:
                    click.echo(f"Error: {error}", err=True)

    def _read(self) -> str | None:
        """The next text, or None at the end."""
        lines: list[str] = []
        while True:
            try:
                with self._ctrl_c.raised():
                    lines.append(input(("  " if lines else "> ") if self._is_terminal else ""))
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D or /quit ends)", err=True)
                lines = []
            except EOFError:
                if self._is_terminal:
                    click.echo()
                return None
            else:
                if not lines[-1].endswith("\\"):
                    return "\n".join(lines)
                lines[-1] = lines[-1][:-1]

    def _obey(self, text: str) -> None:
        name, _, value = text[1:].partition(" ") if text.startswith("/") else ("", "", "")
        if not text.startswith("/"):
            if text.strip():
                self._print(self._answers.answer(text, self._settings, self._number))
        elif name == "help":
            click.echo("\n".join(self._help()))
        elif name in self._answers.commands:
            self._print(self._answers.commands[name][1](self._settings, self._number))
        elif name in self._settings.listed():
            if value or name == "stop":
                self._settings = self._settings.changed(name, value)
                self._number = 0 if name == "seed" else self._number
            click.echo(f"{name}: {self._settings.listed()[name] or 'none'}")
        else:
            raise UserError(f"there is no command {shown(text.split()[0], quoted=False)}: /help lists those there are")

    def _print(self, pieces: Pieces | None) -> None:
        if pieces is not None:
            self._number += 1
            print_stream(self._until_ctrl_c(pieces))

    def _until_ctrl_c(self, pieces: Pieces) -> Iterator[str]:
        with closing(pieces):
            for piece in pieces:
                yield piece
                if self._ctrl_c.is_pressed:
                    return

    def _help(self) -> Iterator[str]:
        for name, value in self._settings.listed().items():
            yield f"/{name + ' ' + (value or 'TEXT'):20} Changes this setting; its value is {value or 'none'}."
        for name, (help, _) in self._answers.commands.items():
            yield f"/{name:20} {help}"
        yield f"/{'quit':20} Ends the program, as Ctrl-D does."
        yield 'A line that ends with "\\" goes on in the next one. Ctrl-C stops a text.'
