"""The `hipgpt` command. Each command imports the modules that it needs only when it runs, so `--help` is fast."""

from gpt.system import interrupts

interrupts.begin()  # before the imports below, which take a while

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gpt
from gpt import config_file
from gpt.command_line import Option, Program, Setting
from gpt.config import (
    DATA_PATH,
    LEARNING_RATES,
    LONGEST_WARMUP,
    NO_EOS,
    NUM_TOKENS,
    PRESETS,
    TUNING,
    WARMUPS,
    DataConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
    pick,
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
    complete_run,
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
    """Train GPT-2 style language models from text files, on AMD GPUs, NVIDIA GPUs and plain CPUs.

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
            Option("--from", "source", metavar="RUN|FILE|DIR",
                   help="Trained model with which a new run begins: a run, a file of a checkpoint or a Hugging Face "
                        "directory."),
            Option("--config", metavar="FILE", type=click.Path(path_type=Path), is_eager=True, expose_value=False,
                   callback=config_file.apply,
                   help="TOML file with options, such as `steps = 500`; explicit flags override it."),
            Option("--save-config", metavar="FILE", type=click.Path(path_type=Path),
                   help="TOML file to write, with the options that were given."),
        ),
        "Data": (
            *DATA, *TOKENIZER,
            Setting(TrainConfig, "val_fraction", "--val-fraction", metavar="P",
                    help="Fraction of the text, from its end, kept for validation."),
            Setting(TrainConfig, "sampling", "--sampling",
                    help="Order of the training windows. shuffled: each once per pass; sequential: in the order of the "
                         "text; random: drawn independently."),
        ),
        "Model": MODEL,
        "Optimization": (
            Setting(TrainConfig, "total_steps", "--steps", metavar="N",
                    default_text=f"{TrainConfig.total_steps}; --from: {TUNING['total_steps']}",
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
    source: str | None, save_config: Path | None, reset: bool, gpus: str | None, global_batch: int | None,
    shard_optimizer: bool, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Train a model on text files.

    Tokenizes the text first if the run has no tokens yet. Ctrl-C finishes the step and saves a checkpoint; --resume
    continues from there exactly. --ckpt goes on from a checkpoint with a new learning-rate schedule. With either, flags
    that are left out keep the run's values. --from begins a new run with the weights and the tokenizer of a trained
    model, and learning rates that suit that.
    """
    from gpt import checkpoint, plan, pretrained
    from gpt.distributed.ranks import joined
    from gpt.system.console import Console

    if gpus is not None:
        if device not in ("auto", "gpu"):
            raise UserError(f"--gpus {gpus} takes the first GPUs, which --device {device} contradicts: leave one out")
        device = "gpu"
    if source is not None and (resume or ckpt is not None):
        other = "--resume" if resume else f"--ckpt {ckpt}"
        raise UserError(f"--from {source} begins a new run, but {other} goes on with one: leave one of them out")
    with joined(gpus) as ranks:
        console = Console(silent=not ranks.is_first)
        if save_config is not None and ranks.is_first:
            config_file.save(click.get_current_context(), save_config)
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
            if not ranks.is_first:
                ranks.share()  # a mistake that all ranks would find is the first one's to tell
            origin = pretrained.find(source, runs_dir) if source is not None else None
            model, train = plan.settle(settings, preset, start, resume, origin)
            train = plan.shared_out(train, settings, start, global_batch, ranks.size)
            if ranks.is_first:
                ranks.share()
            inherited = start is not None and "precision" not in settings
            ops, train = plan.select_ops(device, blas, train, inherited, ranks)
            console.line(f"Device: {ops.description}")
            chosen = plan.make(
                run, start, model, train, flags=settings, preset=preset, reset=reset, console=console, ranks=ranks,
                origin=origin,
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
                origin.cut(model.max_seq_len).weights if origin else None,
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
            *DATA,
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


# ---- import, generate, export -------------------------------------------------------------------------------------


@main.command(
    "import",
    short_help="Make a run of a GPT-2 that another program trained.",
    sections={
        "Options": (
            Option("--run-name", metavar="NAME", required=True, help="Name of the run to make."),
            RUNS,
        ),
    },
    epilog="hipgpt import data/gpt2 --run-name gpt2",
)  # fmt: skip
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
def import_model(source: Path, run_name: str, runs_dir: Path) -> None:
    """Make a run of the GPT-2 in DIR, a Hugging Face directory.

    DIR has config.json, model.safetensors (or several files with an index) and the tokenizer. The run can generate,
    be evaluated and exported, and other runs can start from it (train --from).
    """
    from gpt.plan import describe
    from gpt.pretrained import import_into
    from gpt.run import Run

    run = Run(run_name, runs_dir)
    made = import_into(run, source)
    click.echo(f"Imported {describe(made.model_config)} to {run.path}")
    click.echo(f'Next: hipgpt generate {run.options} --prompt "…", or hipgpt train --from {run_name} --data-path FILE')


@main.command(
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
    short_help="Write a model for transformers or llama.cpp.",
    sections={
        "Options": (
            Option("--run-name", metavar="NAME", required=True, shell_complete=complete_run,
                   help="Run whose model to export."),
            RUNS,
            Option("--out", metavar="PATH", required=True, type=click.Path(path_type=Path),
                   help="Directory to create, or file with --format gguf."),
            Option("--format", "format_name", type=click.Choice(["hf", "gguf"]), default="hf",
                   help="Format to write. hf: a directory that Hugging Face's from_pretrained loads; gguf: a file for "
                        "llama.cpp."),
            Option("--type", "type_name", type=click.Choice(["f32", "f16", "q8_0"]), default_text="f32",
                   help="Number format of the matrices in a GGUF file. q8_0: 8 bits, in blocks with a scale each."),
            *CHECKPOINT,
        ),
    },
    epilog="""
    hipgpt export --run-name mine --out mine-hf
    hipgpt export --run-name mine --out mine.gguf --format gguf --type q8_0
    """,
)  # fmt: skip
def export_model(
    run_name: str, runs_dir: Path, out: Path, format_name: str, type_name: str | None, step: int | None, best: bool
) -> None:
    """Write a model and its tokenizer for other programs: Hugging Face's transformers, or llama.cpp."""
    from gpt import checkpoint
    from gpt.export import export
    from gpt.gguf import export_gguf
    from gpt.run import Run

    if format_name == "hf" and type_name is not None:
        raise UserError(f"--type {type_name} is for --format gguf: a Hugging Face directory has float32")
    saved = checkpoint.load(Run(run_name, runs_dir), step, best)
    paths = export(saved, out) if format_name == "hf" else [export_gguf(saved, out, type_name or "f32")]
    for path in paths:
        click.echo(path)


# ---- eval ---------------------------------------------------------------------------------------------------------


@main.command(
    "eval",
    short_help="Score a model on a whole text, or on HellaSwag.",
    sections={
        "Model": (
            Option("--run-name", metavar="NAME", required=True, shell_complete=complete_run,
                   help="Run whose model to score."),
            RUNS, *CHECKPOINT, DEVICE, PRECISION, BLAS,
        ),
        "Test": (
            Option("--data-path", metavar="FILE", type=click.Path(path_type=Path),
                   default_text="the text that the run held out",
                   help="UTF-8 text to predict, from beginning to end."),
            Option("--hellaswag", metavar="FILE", type=click.Path(path_type=Path),
                   help="JSON Lines file of HellaSwag, such as hellaswag_val.jsonl, to answer in place of a text."),
            Option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        ),
    },
    epilog="""
    hipgpt eval --run-name mine --data-path other.txt
    hipgpt eval --run-name mine --best
    """,
)  # fmt: skip
def evaluate_model(
    run_name: str, runs_dir: Path, step: int | None, best: bool, device: str, blas: str, data_path: Path | None,
    hellaswag: Path | None, as_json: bool, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Score a model on a whole text: loss, perplexity, accuracy and bits per byte. Or on HellaSwag's questions.

    Each token is predicted once, in windows as long as the model's context, like lm-evaluation-harness's rolling
    log-likelihood. Bits per byte allow comparing models with different tokenizers.
    """
    from gpt import checkpoint, scoring
    from gpt import hellaswag as questions
    from gpt.generate import load_model
    from gpt.ops import select
    from gpt.run import Run
    from gpt.system.console import Console
    from gpt.tokenizer import Tokenizer

    if data_path is not None and hellaswag is not None:
        raise UserError(f"--data-path {data_path} and --hellaswag {hellaswag} exclude each other: give them one by one")
    run = Run(run_name, runs_dir)
    saved = checkpoint.load(run, step, best)
    asked = questions.read_questions(hellaswag) if hellaswag else []
    ops = select(device, settings.pop("precision", TrainConfig.precision), blas=blas)
    batch = max([scoring.BATCH, *(len(question.endings) for question in asked)])
    model, tokenizer = load_model(saved, ops, batch=batch), Tokenizer.load(run.tokenizer_path)
    saved.model_config.check_tokenizer(run.tokenizer_path, tokenizer.vocab_size)
    for note in ops.notes:
        click.echo(note, err=True)
    found: dict[str, Any] = {"run": run.name, "step": saved.step}
    with Console().progress("Scoring", 0) as advance:
        if hellaswag:
            result = questions.evaluate(model, tokenizer, asked, advance)
            found |= {"hellaswag": str(hellaswag), **result.to_json()}
            said = f"HellaSwag: {result.questions:,} questions\n{result}"
        else:
            if data_path is None:
                name, blocks = "held out", scoring.held_out_ids(saved, advance)
            else:
                name, blocks = str(data_path), scoring.ids_of_file(data_path, tokenizer, advance)
            score = scoring.score(model, tokenizer, blocks)
            found |= {"text": name, **score.to_json()}
            said = f"Text: {name}, {score.tokens:,} tokens, {score.text_bytes:,} bytes\n{score.metrics}"
    if tokenizer.lost:
        click.echo(f"Note: {tokenizer.dropped:,} characters were left out, which the vocabulary lacks", err=True)
    click.echo(json.dumps(found, indent=2) if as_json else f"Model: {run.path}, step {saved.step}\n{said}")


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
    short_help="List the runs: states, steps, losses, parameters, size.",
    sections={"Options": (RUNS, Option("--json", "as_json", is_flag=True, help="Print one JSON array."))},
    epilog="hipgpt runs",
)
def list_runs(runs_dir: Path, as_json: bool) -> None:
    """List the runs under --runs-dir.

    Shows the state (training, stopped, done, diverged, tokenized, imported), the steps done, the last loss, the best
    and the last validation loss with their steps, the tokens and the time of training, the number of parameters and
    the size on disk.
    """
    from gpt import run
    from gpt.metrics import listing
    from gpt.metrics.summary import summary

    found = [summary(each) for each in run.list_runs(runs_dir)]
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    elif found:
        click.echo("\n".join(listing.table(found)))
    else:
        click.echo(f"No runs in {runs_dir}/ yet: hipgpt train makes one")


@main.command(
    "show",
    params=[click.Argument(["name"], metavar="RUN", shell_complete=complete_run)],
    short_help="Tell all about one run.",
    sections={"Options": (RUNS, Option("--json", "as_json", is_flag=True, help="Print one JSON object."))},
    epilog="hipgpt show first",
)
def show_run(name: str, runs_dir: Path, as_json: bool) -> None:
    """Tell all about one run: its state, model, data, losses, settings and checkpoints, and what to do next."""
    from gpt.metrics import listing
    from gpt.metrics.summary import summary
    from gpt.run import Run

    run = Run(name, runs_dir)
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path}: `hipgpt runs` lists those there are")
    found = summary(run)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(listing.page(run, found)))


@main.command(
    "plot",
    params=[click.Argument(["names"], metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)],
    short_help="Draw the curves of runs, in the terminal or as a picture.",
    sections={
        "Options": (
            RUNS,
            Option("--out", metavar="FILE", type=click.Path(path_type=Path), default_text="draw in the terminal",
                   help="Picture to write: .png, .svg or .pdf."),
            Option("--over", type=click.Choice(["steps", "tokens", "time"]), default="steps",
                   help="Quantity on the horizontal axis."),
            Option("--terminal", is_flag=True, help="Draw in the terminal, also with --out."),
        )
    },
    epilog="""
    hipgpt plot first
    hipgpt plot first second --over tokens --out curves.png
    """,
)  # fmt: skip
def plot_runs(names: tuple[str, ...], runs_dir: Path, out: Path | None, over: str, terminal: bool) -> None:
    """Draw the curves of one or more runs: losses, learning rate, gradient norm, tokens per second.

    The lowest validation loss is marked. A picture needs matplotlib (pip install 'hipgpt[plot]').
    """
    import shutil

    from gpt.metrics import curves, picture
    from gpt.metrics import terminal as text
    from gpt.run import Run

    logs = curves.logs([Run(name, runs_dir) for name in dict.fromkeys(names)], over)
    if out is not None:
        picture.draw(logs, over, out)
        click.echo(f"Saved to {out}")
    if out is None or terminal:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        click.echo(text.drawn(logs, over, shutil.get_terminal_size().columns, color))


@main.command(
    "completion",
    params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    short_help="Print a script that completes hipgpt's commands in a shell.",
    sections={"Options": ()},
    epilog="hipgpt completion bash",
)
def print_completion(shell: str) -> None:
    """Print a script that lets a shell complete commands, options and the names of runs.

    For bash put `eval "$(hipgpt completion bash)"` into ~/.bashrc, for zsh the same with zsh into ~/.zshrc, and for
    fish `hipgpt completion fish | source` into ~/.config/fish/config.fish.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UserError(f"click has no completion for {shell}: update it with pip install -U click")
    click.echo(kind(main, {}, "hipgpt", "_HIPGPT_COMPLETE").source())


@main.command(
    "fetch",
    short_help="Download a well-known text or GPT-2.",
    sections={"Options": ()},
    epilog="""
    hipgpt fetch shakespeare
    hipgpt fetch gpt2
    """,
)
@click.argument("name", type=click.Choice(["shakespeare", "gpt2", "gpt2-tokenizer"]))
def fetch_files(name: str) -> None:
    """Download into data/: shakespeare, a text to train on (1.1 MB); gpt2, OpenAI's model with 124 million parameters
    (550 MB); or gpt2-tokenizer, its vocabulary alone (1.5 MB).

    Each file is checked by its SHA-256. A download that breaks goes on where it stopped.
    """
    from gpt.fetch import SOURCES, fetch
    from gpt.system.console import Console

    console = Console()
    for source in SOURCES[name]:
        with console.progress(f"Downloading {source.file}", 0) as advance:
            path = fetch(source, Path(DATA_PATH).parent, advance)
        console.line(f"Saved to {path}")
    if name == "shakespeare":
        console.line(f"Next: hipgpt train --data-path {path}")
    elif name == "gpt2":
        console.line(f"Next: hipgpt import {path.parent} --run-name gpt2")


if __name__ == "__main__":
    main()
