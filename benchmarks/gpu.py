"""hipgpt beside PyTorch and Hugging Face on one GPU: training, memory, attention alone, start-up, generating.

    python benchmarks/gpu.py [--rows TEXT] [--runs N] [--json]

Each measurement runs in a process of its own, and in every run the sides take turns, so that a GPU that gets warm or a
neighbor that gets busy slows all of them down. The figures printed are medians over the runs. PyTorch trains in three
ways (eager, compiled, compiled with CUDA graphs) and has three attention kernels. The first run measures all of them,
the others those that were the best by some measure. Needs PyTorch, and transformers for its rows. A side that cannot
run is named and left out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import click

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONUNBUFFERED": "1"}
HIPGPT = (sys.executable, "-m", "gpt.cli")
PYTORCH = (sys.executable, str(HERE / "pytorch_gpt2.py"))
ATTENTION = (sys.executable, str(HERE / "attention.py"))
DATA = str(HERE.parent / "data" / "data.txt")
OURS = "hipgpt"

Side = Callable[[], dict[str, float]]  # takes one measurement: values by the keys of MEASURES


class FailedError(Exception):
    """A side could not run; the message is one line that says why."""


@dataclass(frozen=True)
class Measure:
    """The meaning of a number. It is divided by `unit` before it is printed."""

    label: str
    unit: float = 1
    more_is_better: bool = False

    def best(self, values: dict[str, float]) -> str:
        return (max if self.more_is_better else min)(values, key=values.__getitem__)

    def times_better(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.more_is_better else theirs / ours


MEASURES = {
    "ms_per_step": Measure("ms a step"),
    "held_bytes": Measure("GiB of GPU memory", unit=2**30),
    "ms": Measure("ms"),
    "first_start_s": Measure("s to step 1, nothing compiled yet"),
    "next_start_s": Measure("s to step 1, the next time"),
    "generated_tokens_per_second": Measure("tokens/s generated", more_is_better=True),
}


@dataclass(frozen=True)
class Comparison:
    """Sides that do the same work, OURS among them, and the measures to compare."""

    name: str
    measures: tuple[str, ...]
    sides: dict[str, Side]


# ---- sides ----------------------------------------------------------------------------------------------------------


def printed(*command: str) -> dict[str, float]:
    """The JSON object that a command prints."""
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FailedError(_last_line(result.stderr) or f"exit status {result.returncode}")
    numbers: dict[str, float] = json.loads(result.stdout)
    return numbers


def starts(command: tuple[str, ...], before: tuple[str, ...] | None = None) -> dict[str, float]:
    """Seconds until a command has done its first step, before and after compilers have filled their caches."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {name: f"{folder}/{name}" for name in ("CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        if before:
            subprocess.run(before, env=ENVIRONMENT, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        first, later = (_seconds_to_step_1(command, folder, {**ENVIRONMENT, **caches}) for _ in range(2))
        return {"first_start_s": first, "next_start_s": later}


def _seconds_to_step_1(command: tuple[str, ...], folder: str, environment: dict[str, str]) -> float:
    begin, line = perf_counter(), ""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[Step 1]"):
                seconds = perf_counter() - begin
                process.kill()
                return seconds
    raise FailedError(line.strip())


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


# ---- comparisons -----------------------------------------------------------------------------------------------------


def training(name: str, precision: str, *measures: str, flags: str = "") -> Comparison:
    """A step of a preset, or of the default model; or of a model that `flags` make of gpt2-124M."""
    preset = () if name == "default" else ("--preset", "gpt2-124M" if flags else name)
    chosen = (*preset, "--precision", precision, *flags.split())
    ours = (*HIPGPT, "bench", "--device", "gpu", "--json", "--optimizer", "adamw")  # PyTorch's too
    sides: dict[str, Side] = {OURS: partial(printed, *ours, *chosen)}
    for mode in ("eager", "compile", "graphs"):
        sides[f"PyTorch {mode}"] = partial(printed, *PYTORCH, "train", "--mode", mode, *chosen)
    if "generated_tokens_per_second" in measures:
        sides["Hugging Face"] = partial(printed, *PYTORCH, "generate", *preset)
    return Comparison(f"{name}, {precision}", ("ms_per_step", *measures), sides)


def attention(*shape: int) -> Comparison:
    kernels = {
        OURS: "hipgpt", "FlashAttention-2": "fa2", "the same, deterministic": "fa2-deterministic", "cuDNN": "cudnn",
    }  # fmt: skip
    sides: dict[str, Side] = {
        side: partial(printed, *ATTENTION, kernel, *map(str, shape)) for side, kernel in kernels.items()
    }
    return Comparison(f"attention {list(shape)}, bf16", ("ms",), sides)


def start_up() -> Comparison:
    """Times from the start of a process. hipgpt's text is tokenized already."""
    run = ("--run-name", "start", "--data-path", DATA)
    train = (*HIPGPT, "train", "--device", "gpu", "--precision", "bf16", "--log-every", "1", *run)
    sides: dict[str, Side] = {OURS: partial(starts, train, before=(*HIPGPT, "tokenize", *run))}
    for mode in ("eager", "compile", "graphs"):
        sides[f"PyTorch {mode}"] = partial(starts, (*PYTORCH, "train", "--mode", mode))
    return Comparison("start-up, bf16", ("first_start_s", "next_start_s"), sides)


COMPARISONS = [
    training("default", "bf16", "generated_tokens_per_second"),
    training("gpt2-124M", "bf16", "held_bytes", "generated_tokens_per_second"),
    training("gpt2-124M with dropout", "bf16", flags="--dropout 0.1"),
    training("gpt2-350M", "bf16", "held_bytes"),
    training("36 layers of 1280", "bf16", "held_bytes", flags="--dim 1280 --heads 20 --ff 5120 --layers 36 --batch 4"),
    training(
        "24 layers of 2048",
        "bf16",
        "held_bytes",
        flags="--dim 2048 --heads 16 --ff 8192 --layers 24 --seq 2048 --batch 2",
    ),
    training("default", "tf32"),
    attention(32, 12, 1024, 64),
    attention(8, 16, 4096, 64),
    attention(32, 8, 256, 32),
    attention(4, 16, 2048, 64),
    attention(4, 16, 2048, 80),
    attention(4, 16, 2048, 96),
    attention(4, 16, 2048, 128),
    start_up(),
]


# ---- the table ------------------------------------------------------------------------------------------------------


def compare(comparison: Comparison, runs: int) -> dict[str, dict[str, list[float]]]:
    """Every value measured, by measure and side. Sides that are not the best peer by any measure are measured once."""
    values: dict[str, dict[str, list[float]]] = {measure: {} for measure in comparison.measures}
    sides = comparison.sides
    for _ in range(runs):
        for side, measure_once in sides.items():
            try:
                result = measure_once()
            except FailedError as error:
                click.echo(f"{comparison.name}, {side}: left out ({error})", err=True)
                continue
            for measure in values.keys() & result.keys():
                values[measure].setdefault(side, []).append(result[measure])
        kept = {OURS, *(best_peer(measure, values[measure]) for measure in values)}
        sides = {side: measure_once for side, measure_once in comparison.sides.items() if side in kept}
    return values


def best_peer(measure: str, sides: dict[str, list[float]]) -> str | None:
    medians = {side: statistics.median(each) for side, each in sides.items() if side != OURS}
    return MEASURES[measure].best(medians) if medians else None


def row(name: str, measure: str, sides: dict[str, list[float]]) -> str:
    """One line of the table: ours, the best peer's, how many times better ours is, and the other peers'."""
    kind, medians = MEASURES[measure], {side: statistics.median(each) for side, each in sides.items()}
    ours, best = medians.pop(OURS, None), best_peer(measure, sides)
    cells = [_figure(ours, kind), "-", "-", ""]
    if best is not None:
        theirs = medians.pop(best)
        cells[1:3] = f"{_figure(theirs, kind)} ({best})", f"{kind.times_better(ours, theirs):.2f}" if ours else "-"
        cells[3] = ", ".join(f"{side} {_figure(value, kind)}" for side, value in medians.items())
    return f"{name + ': ' + kind.label:<56}{cells[0]:>9}{cells[1]:>36}{cells[2]:>8}  {cells[3]}".rstrip()


def _figure(value: float | None, kind: Measure) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    value /= kind.unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


@click.command()
@click.option("--rows", "chosen", default="", metavar="TEXT", help="Only comparisons whose name holds this text.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often everything is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every value measured.")
def main(chosen: str, runs: int, as_json: bool) -> None:
    """Compare hipgpt with PyTorch and Hugging Face on this machine's first GPU."""
    comparisons = [comparison for comparison in COMPARISONS if chosen in comparison.name]
    if not comparisons:
        names = "; ".join(comparison.name for comparison in COMPARISONS)
        raise click.BadParameter(f"no comparison's name holds {chosen!r}: {names}", param_hint="--rows")
    report: dict[str, Any] = {}
    if not as_json:
        click.echo(f"{'':<56}{'HIPGPT':>9}{'BEST PEER':>36}{'TIMES':>8}  OTHERS")
    for comparison in comparisons:
        values = report[comparison.name] = compare(comparison, runs)
        if not as_json:
            for measure, sides in values.items():
                click.echo(row(comparison.name, measure, sides))
    if as_json:
        click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
