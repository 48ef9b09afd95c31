"""The `hipgpt` command: parses, calls, prints, exits. A command imports the modules that compute when it needs them."""

from gpt.system import interrupts

interrupts.begin()  # the imports below take a while

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import gpt
from gpt.config import (
    ACTIVATIONS,
    DATA_PATH,
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    RUNS_DIR,
    RUNS_DIR_VARIABLE,
    SAMPLINGS,
    SCHEDULES,
    TOKENIZERS,
    VOCAB_LIMIT,
    ModelConfig,
    TrainConfig,
)  # fmt: skip
from gpt.errors import UserError, shown, told

LONGEST = 2000  # characters of an error's message

# Advice for a command that runs out of memory; None stands for all other commands.
SPARING = {
    "train": "lower --batch, --seq or the size of the model",
    "bench": "lower --batch, --seq or the size of the model",
    "tokenize": "give a shorter text or a lower --vocab-size, or take a machine with more",
    None: "close other programs, or take a machine with more",
}


class Cli(click.Group):
    """A group whose every error is one line on standard error and exit status 2."""

    def main(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        kwargs |= {"prog_name": "hipgpt", "standalone_mode": False}
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character must not end a run
        # Decoded as arguments are, so that a command that needs text can refuse bytes that are not text.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        # hipgpt has threads of its own. OpenBLAS would start as many again, and die where it may not.
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
            click.echo("Interrupted", err=True)
            sys.exit(interrupts.status())
        except OSError as error:
            _fail(f"cannot read or write {told(error.filename) if error.filename else 'a file'}: {error.strerror}")

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MemoryError:
            raise UserError(f"out of memory: {SPARING.get(context.invoked_subcommand, SPARING[None])}") from None


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
    message = " ".join(message.split())
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
    click.echo(f"Error: {message}", err=True)
    sys.exit(2)


def _command_path(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "hipgpt"


def options(*decorators: Callable) -> Callable:
    """Several options as one decorator, listed in the order of the help."""

    def apply(command: Callable) -> Callable:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return apply


def explicit(context: click.Context, *names: str) -> dict[str, Any]:
    """The options among `names` (all, if none are given) that stand on the command line itself."""
    return {
        name: value
        for name, value in context.params.items()
        if (not names or name in names) and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


class Once(click.Option):
    """An option that may stand on the command line once. click itself would take the last of several values.

    `advice` says what to do with several.
    """

    def __init__(self, *args: Any, advice: str = "give it once", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.advice = advice

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        self.multiple = True  # to the parser alone, which then collects the values
        super().add_to_parser(parser, ctx)
        self.multiple = False

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        values = opts.get(self.name)
        if values:
            if len(values) > 1:
                *first, last = map(str, values)
                given = "" if self.is_flag else f", {', '.join(first)} and {last}"
                raise UserError(f"{self.opts[0]} is given {len(values)} times{given}: {self.advice}")
            opts = {**opts, self.name: values[0]}
        return super().handle_parse_result(ctx, opts, args)


def option(*names: str, **kwargs: Any) -> Callable:
    kwargs.setdefault("show_default", True)
    return click.option(*names, cls=Once, **kwargs)


def model_option(flag: str, key: str, **kwargs: Any) -> Callable:
    return option(flag, key, default=getattr(ModelConfig, key), **kwargs)


def train_option(flag: str, key: str, **kwargs: Any) -> Callable:
    return option(flag, key, default=getattr(TrainConfig, key), **kwargs)


TEXT_OPTIONS = options(
    option("--data-path", default=DATA_PATH, metavar="FILE", help="UTF-8 text to learn from.",
           show_default=f"{DATA_PATH}; if there is none, the text that comes with hipgpt",
           advice="hipgpt reads one text, so join the files with <|endoftext|> between them"),
    option("--vocab-size", "vocab_size", default=VOCAB_LIMIT, metavar="N", help="Most tokens the tokenizer may have."),
    option("--tokenizer", type=click.Choice(TOKENIZERS), default=TOKENIZERS[0],
           help="word: split at white space, which decodes to single spaces. byte: lossless for any text."),
    option("--reset", is_flag=True, show_default=False, help="Make tokenizer and tokens anew."),
)  # fmt: skip

MODEL_OPTIONS = options(
    model_option("--dim", "embed_dim", metavar="N", help="Width of the residual stream; a multiple of --heads."),
    model_option("--heads", "num_heads", metavar="N", help="Attention heads per layer."),
    model_option("--ff", "ff_hidden_dim", metavar="N", help="Width of the feed-forward layer."),
    model_option("--layers", "num_layers", metavar="N", help="Transformer blocks."),
    model_option("--seq", "max_seq_len", metavar="N", help="Tokens per sequence."),
    model_option("--dropout", "dropout", metavar="P", help="Share of activations dropped while training."),
    model_option("--activation", "activation", type=click.Choice(ACTIVATIONS), help="Of the feed-forward layer."),
    option("--no-tie", "tie_embeddings", is_flag=True, default=True, flag_value=False, show_default=False,
           help="Give the head weights of its own instead of the embedding's."),
)  # fmt: skip
BATCH_OPTIONS = options(
    train_option("--batch", "batch_size", metavar="N", help="Sequences per forward pass."),
    train_option("--accumulate", "accumulate", metavar="N", help="Forward passes per step."),
)
OPTIMIZER_OPTION = train_option(
    "--optimizer", "optimizer", type=click.Choice(OPTIMIZERS),
    help="Optimizer. muon: Muon for the blocks' matrices and AdamW for the rest.",
)  # fmt: skip
PRESET_OPTION = option(
    "--preset", type=click.Choice(list(PRESETS)), help="Sizes, steps and rates that go together; a flag wins."
)
RUNS_DIR_OPTION = option(
    "--runs-dir", default=RUNS_DIR, envvar=RUNS_DIR_VARIABLE, show_envvar=True, metavar="DIR",
    type=click.Path(path_type=Path), help="Directory that holds the runs.",
)  # fmt: skip
DEVICE_OPTION = option("--device", default="auto", metavar="auto|cpu|gpu[:N]", help="Where to compute.")
PRECISION_OPTION = train_option(
    "--precision", "precision", type=click.Choice(PRECISIONS),
    help="Of activations and matrix products. auto: bf16 where the GPU has matrix units for it, else fp32.",
)  # fmt: skip
CHECKPOINT_OPTIONS = options(
    option("--step", type=int, metavar="N", show_default="latest", help="Step of the checkpoint to use."),
    option("--best", is_flag=True, show_default=False, help="Use the checkpoint with the lowest validation loss."),
)


@click.group(
    cls=Cli, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.version_option(gpt.__version__, prog_name="hipgpt")
@click.pass_context
def main(context: click.Context) -> None:
    """Train GPT-2 style language models from a text file, on AMD GPUs, NVIDIA GPUs and plain CPUs.

    A first run, on the text that comes with hipgpt:

    \b
      hipgpt train --preset tiny --run-name first
      hipgpt generate --run-name first --prompt "On a bright morning"
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@option("--run-name", metavar="NAME", show_default="run_<timestamp>", help="The run's directory under --runs-dir.")
@RUNS_DIR_OPTION
@PRESET_OPTION
@DEVICE_OPTION
@PRECISION_OPTION
@TEXT_OPTIONS
@MODEL_OPTIONS
@BATCH_OPTIONS
@train_option("--steps", "total_steps", metavar="N",
              help="Steps to train; with --ckpt, steps to add; with --resume, steps in all.")  # fmt: skip
@OPTIMIZER_OPTION
@train_option("--lr", "learning_rate", type=float, metavar="LR", show_default="3e-4; Muon: 3e-3",
              help="Peak learning rate.")  # fmt: skip
@train_option("--min-lr", "min_lr", type=float, metavar="LR", show_default="lr / 10",
              help="Learning rate at the last step.")  # fmt: skip
@train_option("--warmup-steps", "warmup_steps", type=int, metavar="N",
              show_default="2 % of steps, Muon: 10 %; at most 2000",
              help="Steps over which the rate rises to its peak.")  # fmt: skip
@train_option("--schedule", "schedule", type=click.Choice(SCHEDULES),
              help="Course of the learning rate after the warmup. trapezoid: constant, then linear.")  # fmt: skip
@train_option("--decay-fraction", "decay_fraction", metavar="P",
              help="Fraction of the steps, the last ones, in which a trapezoid decays.")  # fmt: skip
@train_option("--weight-decay", "weight_decay", metavar="W", help="Decoupled decay of the 2-D weights.")
@train_option("--grad-clip", "grad_clip", metavar="NORM", help="Largest global norm of the gradient; 0 = off.")
@train_option("--sampling", "sampling", type=click.Choice(SAMPLINGS),
              help="Order in which training windows are read: shuffled, each once per pass; sequential, as the text "
                   "runs; random, drawn independently.")  # fmt: skip
@train_option("--val-fraction", "val_fraction", metavar="P", help="Share of the text's end held out.")
@train_option("--seed", "seed", metavar="N", help="Of weights, dropout and random sampling.")
@train_option("--log-every", "log_every", metavar="N", help="Steps between log lines.")
@train_option("--eval-every", "eval_every", metavar="N", help="Steps between evaluations; 0 = none.")
@train_option("--patience", "patience", metavar="N",
              help="Evaluations in a row without a new best validation loss that end the run; 0 = never.")  # fmt: skip
@train_option("--sample-every", "sample_every", metavar="N", help="Steps between short texts by the model; 0 = none.")
@train_option("--sample-prompt", "sample_prompt", type=str, metavar="TEXT", show_default="the held-out text's",
              help="Beginning of those texts.")  # fmt: skip
@train_option("--ckpt-every", "ckpt_every", metavar="N", help="Steps between checkpoints; 0 = only the last.")
@train_option("--keep-last", "keep_last", metavar="N", help="Checkpoints to keep.")
@option("--resume", is_flag=True, show_default=False,
        help="Go on with the schedule of the run's latest checkpoint, or of --ckpt.")  # fmt: skip
@option("--ckpt", metavar="FILE", help="Go on from this checkpoint, for --steps more, with a schedule of their own.")
@click.pass_context
def train(
    context: click.Context, run_name: str | None, runs_dir: Path, preset: str | None, device: str, reset: bool,
    resume: bool, ckpt: str | None, **_: Any,
) -> None:  # fmt: skip
    """Train a model on a text file.

    Tokenizes the text first if the run has no tokens yet. Ctrl-C finishes the step and saves; --resume goes on
    exactly where that was, and --ckpt starts a schedule of the learning rate anew from a checkpoint's weights. Flags
    left out on either keep the values the run was started with.
    """
    from gpt import checkpoint, plan
    from gpt.system.console import Console

    given, console = explicit(context), Console()
    run, start = plan.locate(run_name, resume, ckpt, runs_dir)
    with run.lock():
        # Again, now that no other process writes to the run. Nothing that is decided below is from before the lock.
        run, start = plan.locate(run.name if ckpt is None else run_name, resume, ckpt, runs_dir)
        if resume and plan.is_done(start, given.get("total_steps")):
            checkpoint.finish(start)
            console.line(
                f"Run {run.name} is done: it has reached step {start.step} of {start.step}. "
                f"To train on: hipgpt train --ckpt {run.latest_weights_path} --steps N"
            )
            return
        model, settings = plan.settle(given, preset, start, resume)
        ops, settings = plan.select_ops(device, settings, inherited=start is not None and "precision" not in given)
        console.line(f"Device: {ops.description}")
        chosen = plan.make(
            run, start, model, settings, data_path=given.get("data_path"), vocab_limit=given.get("vocab_size"),
            tokenizer=given.get("tokenizer"), preset=preset, reset=reset, console=console,
        )  # fmt: skip
        plan.announce(chosen, ops, console)
        from gpt.trainer import Trainer

        trainer = Trainer(run, chosen.model, chosen.train, chosen.batches, chosen.corpus.tokenizer, ops, console, start)
        stopped_by = trainer.train()
    if stopped_by:
        console.urgent(f"Stopped at step {trainer.step}, saved. Go on: hipgpt train {run.options} --resume")
        sys.exit(128 + stopped_by)
    best = " --best" if trainer.best and trainer.best.step != trainer.step else ""
    console.line(f'Done. Try it: hipgpt generate {run.options}{best} --prompt "…"')


@main.command(short_help="Train a tokenizer and encode a text, or look at ids.")
@option("--run-name", metavar="NAME", show_default="run_<timestamp>", help="The run's directory under --runs-dir.")
@RUNS_DIR_OPTION
@option("--preset", type=click.Choice(list(PRESETS)),
        help="Preset whose tokenizer and vocabulary size to use; explicit flags override it.")  # fmt: skip
@TEXT_OPTIONS
@option("--text", metavar="TEXT",
        help="Show the ids and pieces of TEXT in the run's tokenizer; - reads standard input.")  # fmt: skip
@option("--decode", "ids", metavar="IDS", help='Show the text of ids such as "17 4 256".')
@click.pass_context
def tokenize(
    context: click.Context, run_name: str | None, runs_dir: Path, preset: str | None, reset: bool, text: str | None,
    ids: str | None, **_: Any,
) -> None:  # fmt: skip
    """Train a run's tokenizer and encode its text, or look at what the tokenizer does.

    Writes tokenizer.json (which Hugging Face's tokenizers reads) and tokens.bin (which numpy.memmap reads).
    """
    from gpt.prepare import prepare
    from gpt.run import Run
    from gpt.system.console import Console
    from gpt.tokenizer import Tokenizer

    given, console = explicit(context), Console()
    if text is not None or ids is not None:
        if run_name is None or len(given.keys() - {"runs_dir"}) > 2:
            raise UserError("--text and --decode need --run-name, and go with no other option")
        tokenizer = Tokenizer.load(Run(run_name, runs_dir).tokenizer_path)
        text = _given(text)
        if ids is not None:
            click.echo(tokenizer.decode(_parse_ids(ids)))
            return
        try:
            encoded = tokenizer.encode(text)
        except ValueError:
            raise UserError(f"--text {shown(text)} is not valid text: give it in UTF-8") from None
        _say_unknown("--text", tokenizer, text)
        click.echo(" ".join(map(str, encoded)))
        click.echo(" ".join(map(tokenizer.piece, encoded)))
        return
    run = Run(Run.new_name() if run_name is None else run_name, runs_dir)
    with run.lock():
        info = prepare(
            run, data_path=given.get("data_path"), vocab_limit=given.get("vocab_size"), kind=given.get("tokenizer"),
            preset=preset, reset=reset, report=console.line, progress=console.progress,
        ).info  # fmt: skip
    console.line(
        f"{run.path}: {info['count']:,} tokens for {info['characters']:,} characters "
        f"({info['characters'] / info['count']:.2f} a token), {info['dropped']:,} characters dropped, "
        f"vocabulary {info['vocab_size']:,}"
    )


def _given(text: str | None) -> str | None:
    """An option's text, or that on standard input without its last newline if the option is "-"."""
    return sys.stdin.read().removesuffix("\n") if text == "-" else text


def _say_unknown(flag: str, tokenizer: Any, text: str) -> None:
    """Say on standard error which characters of an option's text the tokenizer leaves out."""
    from gpt.tokenizer import loss

    if unknown := tokenizer.unknown(text):
        click.echo(f"Note: {loss(flag, unknown, len(text))}", err=True)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f'--decode is {shown(text)}, but must be ids such as "17 4 256"') from None


@main.command()
@option("--run-name", metavar="NAME", required=True, help="The run whose model writes.")
@RUNS_DIR_OPTION
@option("--prompt", metavar="TEXT", required=True, help="How the text begins; - reads standard input.")
@CHECKPOINT_OPTIONS
@option("--num-tokens", "--num_tokens", default=100, metavar="N", help="Tokens to add.")
@option("--temp", default=0.8, metavar="T", help="Temperature; 0 always takes the likeliest token.")
@option("--top-k", "--top_k", default=50, metavar="K", help="Draw among the K likeliest tokens; 0 = all.")
@option("--top-p", "--top_p", default=0.9, metavar="P", help="… and among the likeliest that reach probability P.")
@option("--rep-penalty", "--rep_penalty", type=float, metavar="R", show_default="1.1, or 1 with --temp 0",
        help="Above 1: avoid tokens already written.")  # fmt: skip
@option("--eos-id", "--eos_id", default=-1, metavar="ID", help="Stop at this token; -1 = never.")
@option("--seed", default=0, metavar="N", help="The same seed writes the same text.")
@option("--max-seq-len", "--max_seq_len", type=int, metavar="N", show_default="the model's",
        help="Tokens the model looks back on.")  # fmt: skip
@DEVICE_OPTION
@PRECISION_OPTION
def generate(
    run_name: str, runs_dir: Path, prompt: str, step: int | None, best: bool, num_tokens: int, temp: float, top_k: int,
    top_p: float, rep_penalty: float | None, eos_id: int, seed: int, max_seq_len: int | None, device: str,
    precision: str,
) -> None:  # fmt: skip
    """Continue a prompt with a trained model."""
    from gpt import checkpoint
    from gpt import generate as generator
    from gpt.ops import select
    from gpt.run import Run
    from gpt.tokenizer import Tokenizer

    sampling = generator.Sampling(temp, top_k, top_p, rep_penalty)
    run = Run(run_name, runs_dir)
    model = generator.load_model(checkpoint.load(run, step, best), select(device, precision))
    text, tokenizer = _given(prompt), Tokenizer.load(run.tokenizer_path)
    pieces = generator.generate(
        model, tokenizer, text, num_tokens=num_tokens, sampling=sampling, eos_id=eos_id,
        seed=seed, max_seq_len=max_seq_len,
    )  # fmt: skip
    _say_unknown("--prompt", tokenizer, text)
    click.echo(text, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


@main.command(short_help="Write a directory that Hugging Face loads.")
@option("--run-name", metavar="NAME", required=True, help="The run to export.")
@RUNS_DIR_OPTION
@option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="A directory to create.")
@CHECKPOINT_OPTIONS
def export(run_name: str, runs_dir: Path, out: Path, step: int | None, best: bool) -> None:
    """Write a directory that Hugging Face's from_pretrained loads, model and tokenizer."""
    from gpt import checkpoint
    from gpt import export as exporter
    from gpt.run import Run

    for path in exporter.export(checkpoint.load(Run(run_name, runs_dir), step, best), out):
        click.echo(path)


@main.command(short_help="Measure how fast a model trains here, and where the time goes.")
@PRESET_OPTION
@DEVICE_OPTION
@PRECISION_OPTION
@option("--vocab-size", "vocab_size", default=VOCAB_LIMIT, metavar="N", help="Size of the vocabulary.")
@MODEL_OPTIONS
@BATCH_OPTIONS
@OPTIMIZER_OPTION
@option("--steps", "total_steps", type=int, metavar="N", show_default="a second's worth",
        help="Steps in a row that are timed together, three times.")  # fmt: skip
@option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object.")
@click.pass_context
def bench(context: click.Context, preset: str | None, device: str, as_json: bool, **_: Any) -> None:
    """Measure how fast a model of some shape trains and generates here, and where the time goes.

    Trains on random tokens, with the defaults and presets of `hipgpt train`, and writes no files.
    """
    began = time.perf_counter()
    from gpt import bench as benchmark
    from gpt import plan
    from gpt.ops import select
    from gpt.prepare import tokenizer_of
    from gpt.system.console import Console

    given, console = explicit(context), Console()
    model, settings = plan.settle(given, preset, start=None, resume=False)
    model = replace(model, vocab_size=given.get("vocab_size", tokenizer_of(preset)["vocab_limit"]))
    with console.progress("Measuring", 4) as advance:
        ops = select(device, settings.precision, training=True)
        report = benchmark.measure(model, settings, ops, steps=given.get("total_steps"), began=began, advance=advance)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report)


@main.command(short_help="List the runs: steps, losses, parameters, size.")
@RUNS_DIR_OPTION
def runs(runs_dir: Path) -> None:
    """List the runs under --runs-dir: steps done, last loss, best and last validation loss and their steps,
    parameters, size on disk."""
    from gpt import checkpoint
    from gpt.history import lowest, validation_losses
    from gpt.parameters import parameter_count
    from gpt.run import list_runs
    from gpt.system.console import size

    found = list_runs(runs_dir)
    if not found:
        click.echo(f"No runs in {runs_dir}/ yet: hipgpt train makes one")
        return
    rows = [("RUN", "STEP", "LOSS", "BEST VALIDATION", "LAST VALIDATION", "PARAMETERS", "SIZE")]
    for run in found:
        step, loss, parameters = "-", "-", "-"
        with suppress(UserError, OSError):  # tokenized only, or damaged: still worth a line
            latest = checkpoint.load(run)
            step, parameters = f"{latest.step}/{latest.train.total_steps}", f"{parameter_count(latest.model):,}"
        metrics = run.metrics()
        for line in metrics:
            loss = f"{line['loss']:.4f}" if line.get("loss") is not None else loss
        evaluations, kept = validation_losses(metrics), checkpoint.best(run)
        best = (kept.step, kept.val_loss) if kept else lowest(evaluations)
        validation = [f"{each[1]:.4f} at {each[0]}" if each else "-" for each in (best, (evaluations or [None])[-1])]
        rows.append((run.name, step, loss, *validation, parameters, size(run.disk_bytes())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        click.echo("  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]))


@main.command()
@click.argument("name", type=click.Choice(["shakespeare"]))
def fetch(name: str) -> None:
    """Download a text to train on into data/: shakespeare (1.1 MB)."""
    from gpt import fetch as fetcher
    from gpt.system.console import Console

    console = Console()
    with console.progress("Downloading", 0) as advance:
        path = fetcher.fetch(name, Path(DATA_PATH).parent, lambda done, total: advance(done, total=total))
    console.line(f"{path} is there. Train on it: hipgpt train --data-path {path}")


if __name__ == "__main__":
    main()
