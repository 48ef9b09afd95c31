"""`hipgpt bench`: measures training and generation on this machine."""

import json
import time
from dataclasses import replace
from typing import Any

import click

from gpt.commands.command_line import Setting, command
from gpt.commands.options import BATCH, BLAS, DEVICE, JSON, MODEL, OPTIMIZER, PRECISION, PRESET
from gpt.config import TokenizerConfig, TrainConfig


@command(
    "bench",
    short_help="Measure how fast a model trains and generates here.",
    sections={
        "Measurement": (
            PRESET, DEVICE, PRECISION, BLAS,
            Setting(TrainConfig, "total_steps", "--steps", metavar="N", default_text="a second's worth",
                    help="Steps per timed group; three groups are timed."),
            JSON,
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
    console = Console()
    with console.progress("Measuring", 4) as advance:
        ops = select(device, train.precision, training=True, blas=blas)
        report = bench.measure(model, train, ops, steps=settings.get("total_steps"), began=began, advance=advance)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        console.line(str(report))
