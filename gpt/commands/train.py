"""`hipgpt train`: joins the ranks, and trains as gpt/training.py does."""

import sys
from pathlib import Path
from typing import Any

import click

from gpt.commands import config_file
from gpt.commands.command_line import PATH, PATH_NAME, Option, Setting, command
from gpt.commands.options import (
    BATCH,
    BLAS,
    DATA,
    DEVICE,
    MODEL,
    NEW_RUN,
    OPTIMIZER,
    PRECISION,
    PRESET,
    RUNS,
    TOKENIZER,
    TOKENS,
)
from gpt.config import LEARNING_RATES, LONGEST_WARMUP, TUNING, WARMUPS, TrainConfig
from gpt.errors import UserError
from gpt.metrics.trackers import PACKAGES


@command(
    "train",
    sections={
        "Run": (
            NEW_RUN, PRESET,
            Option("--resume", is_flag=True,
                   help="Continue the latest checkpoint of --run-name, or --ckpt, on its own learning-rate schedule."),
            Option("--ckpt", metavar="FILE", type=PATH_NAME,
                   help="Checkpoint to continue with a new schedule, for --steps more."),
            Option("--from", "source", metavar="RUN|FILE|DIR", type=PATH_NAME,
                   help="Trained model with which a new run begins: a run, a file of a checkpoint or a Hugging Face "
                        "directory."),
            DEVICE, PRECISION, BLAS, RUNS,
            Option("--config", metavar="FILE", type=PATH, is_eager=True, expose_value=False,
                   callback=config_file.apply,
                   help="TOML file with options, such as `steps = 500`; explicit flags override it."),
            Option("--save-config", metavar="FILE", type=PATH,
                   help="TOML file to write, with the options that were given."),
        ),
        "Data": (
            *DATA, *TOKENS,
            Setting(TrainConfig, "val_fraction", "--val-fraction", metavar="P",
                    help="Fraction of the text, from its end, kept for validation."),
            Setting(TrainConfig, "sampling", "--sampling",
                    help="Order of the training windows. shuffled: each once per pass; sequential: in the order of the "
                         "text; random: drawn independently."),
        ),
        "Tokenizer": TOKENIZER,
        "Model": MODEL,
        "Optimization": (
            Setting(TrainConfig, "total_steps", "--steps", metavar="N",
                    default_text=f"{TrainConfig.total_steps}; --from: {TUNING['total_steps']}",
                    help="Steps to train. With --ckpt: steps to add. With --resume: steps in all."),
            *BATCH, OPTIMIZER,
            Setting(TrainConfig, "lora", "--lora", metavar="R", default_text="train all weights",
                    help="Rank of adapters that learn in place of the weights of --from, which takes far less memory."),
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
            Option("--track", type=click.Choice(list(PACKAGES)), default_text="metrics.jsonl alone",
                   help="Tracker that gets the metrics, samples and settings of the run too."),
        ),
    },
    epilog="hipgpt train --data-path my.txt --run-name mine --preset small --steps 4000",
)  # fmt: skip
def train_model(
    run_name: str | None, runs_dir: Path, preset: str | None, device: str, blas: str, resume: bool, ckpt: str | None,
    source: str | None, save_config: Path | None, reset: bool, gpus: str | None, global_batch: int | None,
    shard_optimizer: bool, track: str | None, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Train a model on text files.

    Tokenizes the text first if the run has no tokens yet. Ctrl-C finishes the step and saves a checkpoint; --resume
    continues from there exactly. --ckpt goes on from a checkpoint with a new learning-rate schedule. With either, flags
    that are left out keep the run's values. --from begins a new run with the weights and the tokenizer of a trained
    model, and learning rates that suit that.
    """
    from gpt.distributed.ranks import joined
    from gpt.system.console import Console
    from gpt.training import Asked, carry_out

    if gpus is not None:
        if device not in ("auto", "gpu"):
            raise UserError(f"--gpus {gpus} takes the first GPUs, which --device {device} contradicts: leave one out")
        device = "gpu"
    asked = Asked(
        run_name=run_name, runs_dir=runs_dir, preset=preset, device=device, blas=blas, resume=resume, ckpt=ckpt,
        source=source, reset=reset, global_batch=global_batch, shard_optimizer=shard_optimizer, track=track,
        settings=settings,
    )  # fmt: skip
    with joined(gpus) as ranks:
        console = Console(silent=not ranks.is_first)
        if save_config is not None and ranks.is_first:
            config_file.save(click.get_current_context(), save_config)
        ended = carry_out(asked, console, ranks)
    if ended.was_done:
        return
    if ended.stopped_by:
        console.urgent(f"Stopped at step {ended.step}, saved. Go on: hipgpt train {ended.run.options} --resume")
        sys.exit(128 + ended.stopped_by)
    console.line(f"Done. Try it: {ended.run.trial(best=ended.best_step not in (None, ended.step))}")
