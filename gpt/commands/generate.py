"""`hipgpt generate`: continues prompts, and prints the text while it is written."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt.commands.command_line import PATH_NAME, Option, command
from gpt.commands.interactive import Commands, Pieces, Session, Settings, is_terminal
from gpt.commands.models import loaded, model_options
from gpt.commands.options import SAMPLING, WRITING
from gpt.commands.texts import given, note_unknown, print_stream
from gpt.config import NO_EOS, SamplingConfig, TrainConfig
from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer


@command(
    "generate",
    sections={
        "Model": model_options("Run whose model to use."),
        "Text": (
            Option("--prompt", metavar="TEXT", help="Text to continue; - reads standard input."),
            Option("--prompts", metavar="FILE", type=PATH_NAME,
                   help="File with a text to continue on each line; - reads standard input."),
            Option("--num-samples", default=1, metavar="N", help="Number of continuations of each prompt."),
            *WRITING,
            Option("--eos-id", "--eos_id", default=NO_EOS, metavar="ID",
                   help="Token that ends the text early; -1 = none."),
            Option("--max-seq-len", "--max_seq_len", type=int, metavar="N", default_text="the model's",
                   help="Context length in tokens."),
            Option("--json", "as_json", is_flag=True, help="Print one JSON object for each continuation, on a line."),
        ),
        "Sampling": SAMPLING,
    },
    epilog="""
    hipgpt generate --run-name mine --prompt "Once upon a time" --num-tokens 200
    hipgpt generate --run-name mine --prompts prompts.txt --num-samples 4 --json
    """,
)  # fmt: skip
def generate_text(
    run_name: str, runs_dir: Path, step: int | None, best: bool, device: str, blas: str, prompt: str | None,
    prompts: str | None, num_samples: int, num_tokens: int, stops: tuple[str, ...], eos_id: int,
    max_seq_len: int | None, as_json: bool, seed: int, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Continue prompts with a trained model.

    On a terminal, without --prompt and --prompts, it asks for them, one after the other; /help lists its commands.
    One continuation of --prompt is printed while it is written. Several are written at once, and each is printed with
    a heading, in order. A continuation does not depend on how many others there are.
    """
    from gpt.generate import generate, generate_many
    from gpt.run import Run

    precision = settings.pop("precision", TrainConfig.precision)
    sampling, run = SamplingConfig(**settings), Run(run_name, runs_dir)
    is_asking = prompt is None and prompts is None and num_samples == 1 and not as_json and is_terminal()
    starts = [] if is_asking else _prompts(prompt, prompts)
    model, tokenizer, places = loaded(run, step, best, device, precision, blas, len(starts) * num_samples)
    options: dict[str, Any] = {"eos_id": eos_id, "max_seq_len": max_seq_len}
    if is_asking:
        Session(Settings(num_tokens, sampling, stops, seed), _Writer(model, tokenizer, options)).run()
        return
    options |= {"num_tokens": num_tokens, "sampling": sampling, "stops": stops, "seed": seed}
    if prompts is None and num_samples == 1 and not as_json:
        ((name, start),) = starts
        pieces = generate(model, tokenizer, start, **options)
        note_unknown(name, tokenizer, start)
        click.echo(start, nl=False)
        print_stream(pieces)
        return
    texts = generate_many(model, tokenizer, starts, num_samples=num_samples, places=places, **options)
    for name, start in starts:
        note_unknown(name, tokenizer, start)
    for number, sample, continuation in texts:
        start = starts[number][1]
        if as_json:
            numbers = {"prompt_number": number + 1, "sample": sample + 1}
            click.echo(json.dumps({**numbers, "prompt": start, "continuation": continuation}, ensure_ascii=False))
        else:
            heading = [f"prompt {number + 1}"] * (prompts is not None) + [f"sample {sample + 1}"] * (num_samples > 1)
            click.echo(f"--- {', '.join(heading)} ---\n{start}{continuation}")
        sys.stdout.flush()


class _Writer:
    """Continues each text that is typed, and with /more the last one."""

    greeting = "Type the beginning of a text. /help lists the commands."

    def __init__(self, model: "GPT", tokenizer: "Tokenizer", options: dict[str, Any]) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options
        self._text = ""
        self.commands: Commands = {"more": ("Writes on from the end of the last text.", self._more)}

    def answer(self, text: str, settings: Settings, number: int) -> Pieces:
        pieces = self._written(text, settings, number)
        note_unknown("the text", self._tokenizer, text)
        click.echo(text, nl=False)
        return pieces

    def _more(self, settings: Settings, number: int) -> Pieces:
        if not self._text:
            raise UserError("there is no text to go on with: type the beginning of one")
        return self._written(self._text, settings, number)

    def _written(self, text: str, settings: Settings, number: int) -> Pieces:
        from gpt.generate import generate

        return self._remembered(
            text, generate(self._model, self._tokenizer, text, sample=number, **settings.options, **self._options)
        )

    def _remembered(self, text: str, pieces: Pieces) -> Pieces:
        self._text = text
        with closing(pieces):
            for piece in pieces:
                self._text += piece
                yield piece


def _prompts(prompt: str | None, file: str | None) -> list[tuple[str, str]]:
    """The text of --prompt, or of each line of the file of --prompts, each with a name for messages about it."""
    from gpt.system.reading import LARGE, read

    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts are both given: leave one out")
    if prompt is not None:
        return [("--prompt", given(prompt))]
    if file is None:
        raise UserError('give a text to continue, --prompt "…", or a file with one on each line, --prompts FILE')
    if file == "-":
        text = sys.stdin.read()
    else:
        try:
            # Bytes that are not UTF-8 are refused with the line that they stand in, as those of standard input are.
            text = read(Path(file), LARGE).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            advice = "give the path of a file with a text on each line"
            raise UserError(f"--prompts {file} does not exist: {advice}") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"--prompts {file}: line {number} is empty, but each line must be a text to continue")
    return [(f"--prompts {file}, line {number}:", line) for number, line in enumerate(lines, start=1)]
