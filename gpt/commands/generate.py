"""`hipgpt generate`: continues prompts, and prints the text while it is written."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from gpt.commands.command_line import Option, Setting, command
from gpt.commands.options import BLAS, CHECKPOINT, DEVICE, PRECISION, RUNS, complete_run
from gpt.commands.texts import given, note_unknown, print_stream
from gpt.config import NO_EOS, NUM_TOKENS, SamplingConfig, TrainConfig
from gpt.errors import UserError


@command(
    "generate",
    sections={
        "Model": (
            Option("--run-name", metavar="NAME", required=True, shell_complete=complete_run,
                   help="Run whose model to use."),
            RUNS, *CHECKPOINT, DEVICE, PRECISION, BLAS,
        ),
        "Text": (
            Option("--prompt", metavar="TEXT", help="Text to continue; - reads standard input."),
            Option("--prompts", metavar="FILE",
                   help="File with a text to continue on each line; - reads standard input."),
            Option("--num-samples", default=1, metavar="N", help="Number of continuations of each prompt."),
            Option("--num-tokens", "--num_tokens", default=NUM_TOKENS, metavar="N", help="Number of tokens to add."),
            Option("--stop", "stops", multiple=True, metavar="TEXT",
                   help="Text before which a continuation ends. May be given more than once."),
            Option("--eos-id", "--eos_id", default=NO_EOS, metavar="ID",
                   help="Token that ends the text early; -1 = none."),
            Option("--max-seq-len", "--max_seq_len", type=int, metavar="N", default_text="the model's",
                   help="Context length in tokens."),
            Option("--json", "as_json", is_flag=True, help="Print one JSON object for each continuation, on a line."),
        ),
        "Sampling": (
            Setting(SamplingConfig, "temperature", "--temp", metavar="T",
                    help="Temperature; 0 always takes the likeliest token."),
            Setting(SamplingConfig, "top_k", "--top-k", "--top_k", metavar="K",
                    help="Draw from the K likeliest tokens; 0 = all."),
            Setting(SamplingConfig, "top_p", "--top-p", "--top_p", metavar="P",
                    help="Draw from the fewest likeliest tokens whose probabilities add up to P; 1 = all."),
            Setting(SamplingConfig, "repetition_penalty", "--rep-penalty", "--rep_penalty", metavar="R",
                    default_text=f"{SamplingConfig().penalty:g}, or {SamplingConfig(temperature=0).penalty:g} with "
                                 "--temp 0",
                    help="Repetition penalty: values above 1 avoid tokens of the context."),
            Option("--seed", default=TrainConfig.seed, metavar="N",
                   help="Random seed; the same seed writes the same texts, however many."),
        ),
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

    One continuation of --prompt is printed while it is written. Several are written at once, and each is printed with
    a heading, in order. A continuation does not depend on how many others there are.
    """
    from gpt import checkpoint
    from gpt.generate import fitting, generate, generate_many, load_model
    from gpt.ops import select
    from gpt.run import Run
    from gpt.tokenizer import Tokenizer

    precision = settings.pop("precision", TrainConfig.precision)
    sampling, run = SamplingConfig(**settings), Run(run_name, runs_dir)
    given = _prompts(prompt, prompts)
    saved, ops = checkpoint.load(run, step, best), select(device, precision, blas=blas)
    places = fitting(saved.model_config, ops, len(given) * num_samples)
    model = load_model(saved, ops, places)
    for note in ops.notes:
        click.echo(note, err=True)
    tokenizer = Tokenizer.load(run.tokenizer_path)
    options: dict[str, Any] = {
        "num_tokens": num_tokens, "sampling": sampling, "eos_id": eos_id, "stops": stops, "seed": seed,
        "max_seq_len": max_seq_len,
    }  # fmt: skip
    streams = prompts is None and num_samples == 1 and not as_json
    pieces = generate(model, tokenizer, given[0][1], **options) if streams else ()
    texts = () if streams else generate_many(
        model, tokenizer, given, num_samples=num_samples, places=places, **options
    )  # fmt: skip
    for name, text in given:
        note_unknown(name, tokenizer, text)
    if streams:
        click.echo(given[0][1], nl=False)
        print_stream(pieces)
    for number, sample, continuation in texts:
        start = given[number][1]
        if as_json:
            numbers = {"prompt_number": number + 1, "sample": sample + 1}
            click.echo(json.dumps({**numbers, "prompt": start, "continuation": continuation}, ensure_ascii=False))
        else:
            heading = [f"prompt {number + 1}"] * (prompts is not None) + [f"sample {sample + 1}"] * (num_samples > 1)
            click.echo(f"--- {', '.join(heading)} ---\n{start}{continuation}")
        sys.stdout.flush()


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
            raise UserError(f"--prompts {file}: there is no such file") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"--prompts {file}: line {number} is empty, but each line must be a text to continue")
    return [(f"--prompts {file}, line {number}:", line) for number, line in enumerate(lines, start=1)]
