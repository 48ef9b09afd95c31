"""The `hipgpt` command. Each command imports the modules that it needs only when it runs, so `--help` is fast."""

from gpt.system import interrupts

interrupts.begin()  # before the imports below, which take a while

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gpt
from gpt.command_line import Option, Program, Setting
from gpt.config import (
    DATA_PATH,
    LEARNING_RATES,
    LONGEST_WARMUP,
    NO_EOS,
    NUM_TOKENS,
    PRESETS,
    WARMUPS,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
)
from gpt.errors import UserError, shown
from gpt.options import (
    BATCH,
    BLAS,
    CHECKPOINT,
    DATA,
    DEVICE,
    MODEL,
    NEW_RUN,
    OPTIMIZER,
    PRECISION,
    PRESET,
    RUNS,
    TOKENIZER,
)

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer


@click.group(
    cls=Program, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
    hipgpt train --preset tiny --run-name first
    hipgpt generate --run-name first --prompt "On a bright morning"
    """,
)  # fmt: skip
@click.version_option(gpt.__version__, prog_name="hipgpt")
@click.pass_context
def main(context: click.Context, /) -> None:
    """Train GPT-2 style language models from a text file, on AMD GPUs, NVIDIA GPUs and plain CPUs.

    The example below trains a small model on the text that comes with hipgpt, in about a minute on a CPU.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# ---- train --------------------------------------------------------------------------------------------------------


@main.command(
    "train",
    sections={
        "Run": (
            NEW_RUN, RUNS, PRESET, DEVICE, PRECISION, BLAS,
            Option("--resume", is_flag=True,
                   help="Continue the latest checkpoint of --run-name, or --ckpt, on its own learning-rate schedule."),
            Option("--ckpt", metavar="FILE", help="Checkpoint to continue with a new schedule, for --steps more."),
        ),
        "Data": (
            DATA, *TOKENIZER,
            Setting(TrainConfig, "val_fraction", "--val-fraction", metavar="P",
                    help="Fraction of the text, from its end, kept for validation."),
            Setting(TrainConfig, "sampling", "--sampling",
                    help="Order of the training windows. shuffled: each once per pass; sequential: in the order of the "
                         "text; random: drawn independently."),
        ),
        "Model": MODEL,
        "Optimization": (
            Setting(TrainConfig, "total_steps", "--steps", metavar="N",
                    help="Steps to train. With --ckpt: steps to add. With --resume: steps in all."),
            *BATCH, OPTIMIZER,
            Setting(TrainConfig, "learning_rate", "--lr", metavar="LR", help="Peak learning rate.",
                    default_text="{adamw:g}; Muon: {muon:g}".format(**LEARNING_RATES)),
            Setting(TrainConfig, "min_lr", "--min-lr", metavar="LR", default_text="lr / 10",
                    help="Final learning rate of a cosine or trapezoid schedule."),
            Setting(TrainConfig, "warmup_steps", "--warmup-steps", metavar="N",
                    default_text=f"{100 / WARMUPS['adamw']:g} % of steps; Muon: {100 / WARMUPS['muon']:g} %; at most "
                                 f"{LONGEST_WARMUP}",
                    help="Steps over which the learning rate rises to its peak."),
            Setting(TrainConfig, "schedule", "--schedule",
                    help="Course of the learning rate after the warmup. trapezoid: constant, then linear."),
            Setting(TrainConfig, "decay_fraction", "--decay-fraction", metavar="P",
                    help="Fraction of the steps, at the end, over which a trapezoid falls."),
            Setting(TrainConfig, "weight_decay", "--weight-decay", metavar="W",
                    help="Decoupled weight decay of the 2-D weights."),
            Setting(TrainConfig, "grad_clip", "--grad-clip", metavar="NORM",
                    help="Largest global norm of the gradient; 0 = no clipping."),
            Setting(TrainConfig, "seed", "--seed", metavar="N",
                    help="Random seed (weights, dropout, order of windows)."),
        ),
        "Several GPUs or machines": (
            Option("--gpus", metavar="N|all", help="Number of this machine's GPUs to train on, a rank on each."),
            Option("--global-batch", type=int, metavar="N", default_text="batch x accumulate x ranks",
                   help="Sequences of a step on all ranks together."),
            Option("--shard-optimizer", is_flag=True,
                   help="Share out the optimizer's moments and float32 weights to the ranks, which saves memory."),
            Setting(TrainConfig, "reduce_precision", "--reduce-precision",
                    help="Number format in which ranks exchange gradients. bf16 halves the bytes."),
        ),
        "Logging and checkpoints": (
            Setting(TrainConfig, "log_every", "--log-every", metavar="N", help="Steps between log lines."),
            Setting(TrainConfig, "eval_every", "--eval-every", metavar="N",
                    help="Steps between evaluations; 0 = never."),
            Setting(TrainConfig, "patience", "--patience", metavar="N",
                    help="Evaluations in a row without a new best validation loss that end the run; 0 = never."),
            Setting(TrainConfig, "sample_every", "--sample-every", metavar="N",
                    help="Steps between short sample texts; 0 = never."),
            Setting(TrainConfig, "sample_prompt", "--sample-prompt", metavar="TEXT",
                    default_text="the beginning of the held-out text", help="Prompt of the sample texts."),
            Setting(TrainConfig, "ckpt_every", "--ckpt-every", metavar="N",
                    help="Steps between checkpoints; 0 = only at the end."),
            Setting(TrainConfig, "keep_last", "--keep-last", metavar="N", help="Number of checkpoints to keep."),
        ),
    },
    epilog="hipgpt train --data-path my.txt --run-name mine --preset small --steps 4000",
)  # fmt: skip
def train_model(
    run_name: str | None, runs_dir: Path, preset: str | None, device: str, blas: str, resume: bool, ckpt: str | None,
    data_path: str | None, reset: bool, gpus: str | None, global_batch: int | None, shard_optimizer: bool,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    """Train a model on a text file.

    Tokenizes the text first if the run has no tokens yet. Ctrl-C finishes the step and saves a checkpoint; --resume
    continues from there exactly. --ckpt starts from a checkpoint's weights with a new learning-rate schedule. With
    either, flags that are left out keep the run's values.
    """
    from gpt import checkpoint, plan
    from gpt.distributed.ranks import joined
    from gpt.system.console import Console

    if gpus is not None:
        if device not in ("auto", "gpu"):
            raise UserError(f"--gpus {gpus} takes the first GPUs, which --device {device} contradicts: leave one out")
        device = "gpu"
    with joined(gpus) as ranks:
        console = Console(silent=not ranks.is_first)
        run, start = plan.locate(run_name, resume, ckpt, runs_dir) if ranks.is_first else (None, None)
        with run.lock() if run else nullcontext():
            run_name = ranks.share(run.name if run and ckpt is None else run_name)
            # Look again, now that no other process writes to the run: no decision below is older than the lock.
            run, start = plan.locate(run_name, resume, ckpt, runs_dir)
            if ranks.share(start and resume and plan.is_done(start, settings.get("total_steps"))):
                if start and ranks.is_first:
                    checkpoint.finish(start)
                    console.line(
                        f"Run {run.name} is done: it has reached step {start.step} of {start.step}. "
                        f"To train on: hipgpt train --ckpt {run.latest_weights_path} --steps N"
                    )
                return
            model, train = plan.settle(settings, preset, start, resume)
            train = plan.shared_out(train, settings, start, global_batch, ranks.size)
            inherited = start is not None and "precision" not in settings
            ops, train = plan.select_ops(device, blas, train, inherited, ranks)
            console.line(f"Device: {ops.description}")
            chosen = plan.make(
                run, start, model, train, flags=settings, data_path=data_path, preset=preset, reset=reset,
                console=console, ranks=ranks,
            )  # fmt: skip
            plan.agree(chosen, ops, ranks, shard_optimizer)
            ranks.connect(ops, shard_optimizer)
            plan.announce(chosen, ops, console, ranks, shard_optimizer)
            from gpt.trainer import Trainer

            trainer = Trainer(
                run,
                chosen.model_config,
                chosen.train_config,
                chosen.batches,
                chosen.corpus.tokenizer,
                ops,
                console,
                start,
                ranks,
            )
            stopped_by = trainer.train()
    if stopped_by:
        console.urgent(f"Stopped at step {trainer.step}, saved. Go on: hipgpt train {run.options} --resume")
        sys.exit(128 + stopped_by)
    best = " --best" if trainer.best and trainer.best.step != trainer.step else ""
    console.line(f'Done. Try it: hipgpt generate {run.options}{best} --prompt "…"')


# ---- tokenize -----------------------------------------------------------------------------------------------------


@main.command(
    "tokenize",
    short_help="Train a tokenizer and encode a text, or look at ids.",
    sections={
        "Run": (NEW_RUN, RUNS),
        "Data": (
            DATA,
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
    run_name: str | None, runs_dir: Path, data_path: str | None, preset: str | None, reset: bool, text: str | None,
    ids: str | None, settings: dict[str, Any],
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
        if run_name is None or both or data_path is not None or preset is not None or reset or settings:
            raise UserError("--text and --decode need --run-name, and go with no other option")
        _show_ids(Run(run_name, runs_dir).tokenizer_path, text, ids)
        return
    with joined() as ranks:
        console = Console(silent=not ranks.is_first)
        run = Run(ranks.share(Run.new_name() if run_name is None else run_name), runs_dir)
        with run.lock() if ranks.is_first else nullcontext():
            info = prepare(
                run, data_path=data_path, preset=preset, reset=reset, report=console.line, progress=console.progress,
                ranks=ranks, **settings,
            ).info  # fmt: skip
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
    text = _given(text)
    try:
        encoded = tokenizer.encode(text)
    except ValueError:
        raise UserError(f"--text {shown(text)} is not valid text: give it in UTF-8") from None
    _say_unknown("--text", tokenizer, text)
    click.echo(" ".join(map(str, encoded)))
    click.echo(" ".join(map(tokenizer.piece, encoded)))


def _given(text: str) -> str:
    """The text of an option, read from standard input, without its last newline, if the option is "-"."""
    return sys.stdin.read().removesuffix("\n") if text == "-" else text


def _say_unknown(flag: str, tokenizer: "Tokenizer", text: str) -> None:
    """List on standard error the characters of an option's text that the tokenizer leaves out."""
    from gpt.tokenizer import lost_note

    if unknown := tokenizer.unknown(text):
        click.echo(f"Note: {lost_note(flag, unknown, len(text))}", err=True)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f'--decode is {shown(text)}, but must be ids such as "17 4 256"') from None


# ---- generate, export ---------------------------------------------------------------------------------------------


@main.command(
    "generate",
    sections={
        "Model": (
            Option("--run-name", metavar="NAME", required=True, help="Run whose model to use."),
            RUNS, *CHECKPOINT, DEVICE, PRECISION, BLAS,
        ),
        "Text": (
            Option("--prompt", metavar="TEXT", help="Text to continue; - reads standard input."),
            Option("--prompts", metavar="FILE",
                   help="File with a text to continue on each line; - reads standard input."),
            Option("--num-samples", default=1, metavar="N", help="Number of continuations of each prompt."),
            Option("--num-tokens", "--num_tokens", default=NUM_TOKENS, metavar="N", help="Number of tokens to add."),
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
    prompts: str | None, num_samples: int, num_tokens: int, eos_id: int, max_seq_len: int | None, as_json: bool,
    seed: int, settings: dict[str, Any],
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
        "num_tokens": num_tokens, "sampling": sampling, "eos_id": eos_id, "seed": seed, "max_seq_len": max_seq_len
    }  # fmt: skip
    streams = prompts is None and num_samples == 1 and not as_json
    pieces = generate(model, tokenizer, given[0][1], **options) if streams else ()
    texts = () if streams else generate_many(
        model, tokenizer, given, num_samples=num_samples, places=places, **options
    )  # fmt: skip
    for name, text in given:
        _say_unknown(name, tokenizer, text)
    if streams:
        click.echo(given[0][1], nl=False)
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
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
        return [("--prompt", _given(prompt))]
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


@main.command(
    "export",
    short_help="Write a directory that Hugging Face loads.",
    sections={
        "Options": (
            Option("--run-name", metavar="NAME", required=True, help="Run whose model to export."),
            RUNS,
            Option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path),
                   help="Directory to create."),
            *CHECKPOINT,
        ),
    },
    epilog="hipgpt export --run-name mine --out mine-hf",
)  # fmt: skip
def export_model(run_name: str, runs_dir: Path, out: Path, step: int | None, best: bool) -> None:
    """Write a directory that Hugging Face's from_pretrained loads, model and tokenizer."""
    from gpt import checkpoint
    from gpt.export import export
    from gpt.run import Run

    for path in export(checkpoint.load(Run(run_name, runs_dir), step, best), out):
        click.echo(path)


# ---- bench, doctor, runs, fetch -----------------------------------------------------------------------------------


@main.command(
    "bench",
    short_help="Measure how fast a model trains and generates here.",
    sections={
        "Measurement": (
            PRESET, DEVICE, PRECISION, BLAS,
            Setting(TrainConfig, "total_steps", "--steps", metavar="N", default_text="a second's worth",
                    help="Steps per timed group; three groups are timed."),
            Option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        ),
        "Model": (
            Setting(TokenizerConfig, "vocab_limit", "--vocab-size", metavar="N", help="Vocabulary size."), *MODEL,
        ),
        "Optimization": (*BATCH, OPTIMIZER),
    },
    epilog="hipgpt bench --preset small",
)  # fmt: skip
def bench_model(preset: str | None, device: str, blas: str, as_json: bool, settings: dict[str, Any]) -> None:
    """Measure how fast a model of some shape trains and generates here, and list the time of each operation.

    Trains on random tokens, with the defaults and presets of `hipgpt train`, and writes no files.
    """
    began = time.perf_counter()
    from gpt import bench, plan
    from gpt.ops import select
    from gpt.system.console import Console

    model, train = plan.settle(settings, preset, start=None, resume=False)
    model = replace(model, vocab_size=settings.get("vocab_limit", TokenizerConfig.of(preset).vocab_limit))
    with Console().progress("Measuring", 4) as advance:
        ops = select(device, train.precision, training=True, blas=blas)
        report = bench.measure(model, train, ops, steps=settings.get("total_steps"), began=began, advance=advance)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report)


@main.command(
    "doctor",
    short_help="Test this machine: list it, check every operation, time some.",
    sections={
        "Options": (DEVICE, Option("--json", "as_json", is_flag=True, help="Print one JSON object.")),
    },
    epilog="hipgpt doctor",
)  # fmt: skip
def examine_machine(device: str, as_json: bool) -> None:
    """Test this machine, and print a report that can be pasted into a bug report.

    Lists GPUs and libraries. Compares every operation with NumPy, on the GPU in each precision and on the CPU,
    and takes some training steps. Times a few operations. The exit status is 1 if a result is wrong. The report leaves
    out the user's name, the home folder and the host's name.
    """
    from gpt import doctor
    from gpt.system.console import Console

    console = Console()
    diagnosis = doctor.examine(device, (lambda text: None) if as_json else console.line, console)
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=2))
    if diagnosis.failed:
        sys.exit(1)


@main.command(
    "runs",
    short_help="List the runs: steps, losses, parameters, size.",
    sections={"Options": (RUNS,)},
    epilog="hipgpt runs",
)
def list_runs(runs_dir: Path) -> None:
    """List the runs under --runs-dir.

    Shows the steps done, the last loss, the best and the last validation loss with their steps, the number of
    parameters and the size on disk.
    """
    from gpt import listing, run

    found = run.list_runs(runs_dir)
    if not found:
        click.echo(f"No runs in {runs_dir}/ yet: hipgpt train makes one")
        return
    click.echo("\n".join(listing.table(found)))


@main.command("fetch", sections={"Options": ()}, epilog="hipgpt fetch shakespeare")
@click.argument("name", type=click.Choice(["shakespeare"]))
def fetch_text(name: str) -> None:
    """Download a text to train on into data/: shakespeare (1.1 MB)."""
    from gpt.fetch import fetch
    from gpt.system.console import Console

    console = Console()
    with console.progress("Downloading", 0) as advance:
        path = fetch(name, Path(DATA_PATH).parent, lambda done, total: advance(done, total=total))
    console.line(f"Saved to {path}. Next: hipgpt train --data-path {path}")


if __name__ == "__main__":
    main()
