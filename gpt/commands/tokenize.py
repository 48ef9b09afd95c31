"""`hipgpt tokenize`: trains a tokenizer and encodes a text, or shows ids."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from gpt.commands.command_line import Option, command
from gpt.commands.options import DATA, NEW_RUN, RUNS, TOKENIZER
from gpt.commands.texts import given, note_unknown
from gpt.config import PRESETS, DataConfig, TokenizerConfig, pick
from gpt.errors import UserError, shown


@command(
    "tokenize",
    short_help="Train a tokenizer and encode a text, or look at ids.",
    sections={
        "Run": (NEW_RUN, RUNS),
        "Data": DATA,
        "Tokenizer": (
            Option("--preset", type=click.Choice(list(PRESETS)),
                   help="Preset whose kind of tokenizer and vocabulary size to use; explicit flags override it."),
            *TOKENIZER,
        ),
        "Looking at ids": (
            Option("--text", metavar="TEXT", help="Text whose ids and pieces to show; - reads standard input."),
            Option("--decode", "ids", metavar="IDS", help='Ids, such as "17 4 256", whose text to show.'),
        ),
    },
    epilog="""
    hipgpt tokenize --data-path my.txt --run-name mine --preset small
    hipgpt tokenize --run-name mine --text "Once upon a time"
    """,
)  # fmt: skip
def tokenize_text(
    run_name: str | None, runs_dir: Path, preset: str | None, reset: bool, text: str | None, ids: str | None,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Train a run's tokenizer and encode its text. With --text or --decode: show how the tokenizer splits a text.

    Writes tokenizer.json, which Hugging Face's tokenizers reads, and tokens.bin, which numpy.memmap reads.
    """
    from gpt.distributed.ranks import joined
    from gpt.prepare import prepare
    from gpt.run import Run
    from gpt.system.console import Console

    if text is not None or ids is not None:
        both = text is not None and ids is not None
        if run_name is None or both or preset is not None or reset or settings:
            raise UserError("--text and --decode need --run-name, and go with no other option")
        _show_ids(Run(run_name, runs_dir).tokenizer_path, text, ids)
        return
    with joined() as ranks:
        console = Console(silent=not ranks.is_first)
        run = Run(ranks.share(Run.new_name() if run_name is None else run_name), runs_dir)
        with run.lock() if ranks.is_first else nullcontext():
            info = prepare(
                run, data=DataConfig(**pick(DataConfig, settings)), preset=preset, reset=reset, report=console.line,
                progress=console.progress, ranks=ranks, **pick(TokenizerConfig, settings),
            ).info  # fmt: skip
    if "characters" not in info:
        console.line(f"{run.path}: {info['count']:,} tokens that were there, vocabulary {info['vocab_size']:,}")
        return
    console.line(
        f"{run.path}: {info['count']:,} tokens for {info['characters']:,} characters "
        f"({info['characters'] / info['count']:.2f} a token), {info['dropped']:,} characters dropped, "
        f"vocabulary {info['vocab_size']:,}"
    )


def _show_ids(tokenizer_path: Path, text: str | None, ids: str | None) -> None:
    """Print the text of `ids`, or the ids and the pieces of `text`."""
    from gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_path)
    if text is None:
        click.echo(tokenizer.decode(_parse_ids(ids or "")))
        return
    text = given(text)
    try:
        encoded = tokenizer.encode(text)
    except ValueError:
        raise UserError(f"--text {shown(text)} is not valid text: give it in UTF-8") from None
    note_unknown("--text", tokenizer, text)
    click.echo(" ".join(map(str, encoded)))
    click.echo(" ".join(map(tokenizer.piece, encoded)))


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f'--decode is {shown(text)}, but must be ids such as "17 4 256"') from None
