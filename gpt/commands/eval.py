"""`hipgpt eval`: scores a model on a text or on HellaSwag."""

import json
from pathlib import Path
from typing import Any

import click

from gpt.commands.command_line import PATH, PATH_NAME, Option, command
from gpt.commands.models import model_options
from gpt.commands.options import JSON, READING
from gpt.config import DataConfig, TrainConfig, pick
from gpt.errors import UserError


@command(
    "eval",
    short_help="Score a model on a whole text, or on HellaSwag.",
    sections={
        "Model": model_options("Run whose model to score."),
        "Test": (
            Option("--data-path", metavar="PATH", type=PATH_NAME, multiple=True,
                   default_text="the text that the run held out",
                   help="Text to predict, from beginning to end: a file, a folder or a quoted pattern of names. May be "
                        "given more than once."),
            *READING,
            Option("--hellaswag", metavar="FILE", type=PATH,
                   help="JSON Lines file of HellaSwag, such as hellaswag_val.jsonl, to answer in place of a text."),
            JSON,
        ),
    },
    epilog="""
    hipgpt eval --run-name mine --data-path other.txt
    hipgpt eval --run-name mine --best
    """,
)  # fmt: skip
def evaluate_model(
    run_name: str, runs_dir: Path, step: int | None, best: bool, device: str, blas: str, data_path: tuple[str, ...],
    hellaswag: Path | None, as_json: bool, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Score a model on a whole text: loss, perplexity, accuracy and bits per byte. Or on HellaSwag's questions.

    Each token is predicted once, in windows as long as the model's context, like lm-evaluation-harness's rolling
    log-likelihood. Bits per byte allow comparing models with different tokenizers.
    """
    from gpt import checkpoint, scoring
    from gpt import hellaswag as questions
    from gpt.corpus.sources import check_field, find, left_out_words
    from gpt.corpus.text_file import UTF_8
    from gpt.corpus.without_text import WithoutText
    from gpt.generate import load_model
    from gpt.ops import select
    from gpt.run import Run
    from gpt.system.console import Console
    from gpt.tokenizer import Tokenizer

    if data_path and hellaswag is not None:
        raise UserError(
            f"--data-path {data_path[0]} and --hellaswag {hellaswag} exclude each other: give them one by one"
        )
    for flag, key in (("--encoding", "encoding"), ("--text-field", "text_field")):
        if key in settings and not data_path:
            raise UserError(f"{flag} {settings[key]} says how to read --data-path, which is missing: give it too")
    reading = DataConfig(**pick(DataConfig, settings))
    run = Run(run_name, runs_dir)
    saved = checkpoint.load(run, step, best)
    asked = questions.read_questions(hellaswag) if hellaswag else []
    text = find(data_path, reading.encoding or UTF_8, reading.text_field) if data_path else None
    if text:
        check_field([text.sources], reading.text_field)
        if text.left_out:
            click.echo(f"Note: {left_out_words(text.left_out)}", err=True)
    ops = select(device, settings.pop("precision", TrainConfig.precision), blas=blas)
    batch = max([scoring.BATCH, *(len(question.endings) for question in asked)])
    model, tokenizer = load_model(saved, ops, batch=batch), Tokenizer.load(run.tokenizer_path)
    saved.model_config.check_tokenizer(run.tokenizer_path, tokenizer.vocab_size)
    for note in ops.notes:
        click.echo(note, err=True)
    found: dict[str, Any] = {"run": run.name, "step": saved.step}
    without_text = WithoutText()
    with Console().progress("Scoring", 0) as advance:
        if hellaswag:
            result = questions.evaluate(model, tokenizer, asked, advance)
            found |= {"hellaswag": str(hellaswag), **result.to_json()}
            said = f"HellaSwag: {result.questions:,} questions\n{result}"
        else:
            if text is None:
                name, (blocks, counts) = "held out", scoring.held_out(saved, advance)
            else:
                name, blocks = text.sources.name, scoring.ids_of(text.sources, tokenizer, advance, without_text.add)
                counts = scoring.counts_of(tokenizer)
            score = scoring.score(model, tokenizer, blocks, counts)
            found |= {"text": name, **score.to_json()}
            said = f"Text: {name}, {score.tokens:,} tokens, {score.text_bytes:,} bytes\n{score.metrics}"
    if text and without_text.files:
        click.echo(f"Note: {without_text.words(text.sources)}", err=True)
    if tokenizer.lost:
        click.echo(f"Note: {tokenizer.dropped:,} characters were left out, which the vocabulary lacks", err=True)
    click.echo(json.dumps(found, indent=2) if as_json else f"Model: {run.path}, step {saved.step}\n{said}")
