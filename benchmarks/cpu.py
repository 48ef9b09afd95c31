"""hipgpt on this CPU beside PyTorch and transformers: steps, generated tokens, memory, start-up times.

    python benchmarks/cpu.py [ROW …] [--rounds N]

Rows are those of ROWS (default: all, about ten minutes on two cores). Every measurement is a process of its own, and a
round measures hipgpt and each peer right after one another. Machines drift, so the ratio printed is the median over
rounds of the ratio to the fastest peer of that round. Each process reports the median time of a step after a warm-up,
as gpt/timing.py takes it, and its largest resident memory (ru_maxrss). All sides may use all cores, in float32.

"numba" is hipgpt as it trains if numba is installed, "hipgpt" computes with NumPy alone. The steps are compared with a
GPT-2 in PyTorch with scaled_dot_product_attention, fused AdamW and gradient clipping, both eager and compiled.
Generation is compared with GPT2LMHeadModel.generate with its cache and the same sampling. Weights are random. Needs
`pip install "hipgpt[peers]"`, and for "compile" a C++ compiler.
"""

import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).parents[1]
WARM_UP = 2  # steps that are not timed
GENERATED = 200  # tokens

SHAPES: dict[str, dict[str, Any]] = {
    "32 x 256, dim 256, 8 layers (default)": {"vocab_size": 5000, "batch": 32},
    "16 x 128, dim 128, 4 layers": {
        "vocab_size": 2000, "batch": 16, "max_seq_len": 128, "embed_dim": 128, "num_heads": 4, "ff_hidden_dim": 512,
        "num_layers": 4,
    },
    "4 x 32, dim 128, 2 layers": {
        "vocab_size": 1000, "batch": 4, "max_seq_len": 32, "embed_dim": 128, "num_heads": 4, "ff_hidden_dim": 512,
        "num_layers": 2,
    },
}  # fmt: skip
DEFAULT, MEDIUM, SMALL = SHAPES
OURS = ("hipgpt", *(["numba"] if importlib.util.find_spec("numba") else []))
STEP_SIDES = (*OURS, "eager", "compile")
ROWS = {
    "default": ("step", DEFAULT, STEP_SIDES),
    "medium": ("step", MEDIUM, STEP_SIDES),
    "small": ("step", SMALL, STEP_SIDES),
    "generate": ("generate", DEFAULT, ("hipgpt", "transformers")),
}


@click.command()
@click.argument("rows", nargs=-1, metavar="[ROW]…", type=click.Choice([*ROWS, "start"]))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often both sides take turns.")
@click.option("--side", hidden=True)  # of a process that takes one measurement
def main(rows: tuple[str, ...], rounds: int, side: str | None) -> None:
    """Compare hipgpt with PyTorch and transformers on this CPU. ROW is default, medium, small, generate or start."""
    if side:
        work, shape, _ = ROWS[rows[0]]
        click.echo(json.dumps({"seconds": MEASUREMENTS[work, side](SHAPES[shape]), "bytes": peak_bytes()}))
        return
    for row in rows or [*ROWS, "start"]:
        if row == "start":
            print_start(rounds)
        else:
            print_row(row, rounds)


def print_row(row: str, rounds: int) -> None:
    work, shape, sides = ROWS[row]
    command = [sys.executable, __file__, row, "--side"]
    results = [{side: json.loads(output([*command, side])) for side in sides} for _ in range(rounds)]
    click.echo(f"{work}, {shape}")
    for side in sides:
        seconds, size = (statistics.median(each[side][key] for each in results) for key in ("seconds", "bytes"))
        speed = f"{1 / seconds:,.0f} tokens/s" if work == "generate" else f"{seconds * 1e3:,.2f} ms"
        click.echo(f"  {side:<14}{speed:>20}{size / 2**20:>12,.0f} MiB at most")
    for side in (side for side in sides if side in OURS):
        faster, smaller = (
            statistics.median(
                min(each[peer][key] for peer in sides if peer not in OURS) / each[side][key] for each in results
            )
            for key in ("seconds", "bytes")
        )
        click.echo(f"  {side} is {faster:.2f} times as fast, in {1 / smaller:.2f} of the memory")


def print_start(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        times = [start_times(Path(folder), f"run{number}") for number in range(rounds + 1)][
            1:
        ]  # the first reads the disk
    for name, seconds in zip(times[0], zip(*(each.values() for each in times), strict=True), strict=True):
        click.echo(f"start: {name:<52}{statistics.median(seconds):>6.2f} s")


def start_times(folder: Path, name: str) -> dict[str, float]:
    """Seconds from the start of a process."""
    hipgpt = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); from gpt.cli import main; main()"]
    data = ["--data-path", str(ROOT / "data/data.txt"), "--run-name", name]
    begin = time.perf_counter()
    output([*hipgpt, "--help"])
    help_seconds = time.perf_counter() - begin
    first = until_step_1([*hipgpt, "train", "--preset", "tiny", "--steps", "1", "--log-every", "1", *data], folder)
    data[-1] += "-tokenized"
    output([*hipgpt, "tokenize", *data], folder)
    ready = until_step_1([*hipgpt, "train", "--steps", "1", "--log-every", "1", *data], folder)
    return {
        "hipgpt --help": help_seconds,
        "to the beginning of step 1, default, tokens ready": ready[0],
        "to the end of step 1, --preset tiny, tokenizing too": first[1],
    }


def until_step_1(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds until a training process begins its first step, and until it has logged that."""
    begin = time.perf_counter()
    with subprocess.Popen([*command, "--device", "cpu"], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[Step 1] Loss"):
                end = time.perf_counter() - begin
                step = float(line.partition("Time: ")[2].split()[0]) / 1e3
                process.kill()  # it would evaluate and save the model
        process.stdout.close()
    return end - step, end


def output(command: list[str], folder: Path = ROOT) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def median_seconds(step: Callable[[int], object]) -> float:
    """The median time of step(0), step(1), … after a warm-up."""
    from gpt.timing import time_groups

    numbers = itertools.count()
    for _ in range(WARM_UP):
        step(next(numbers))
    return time_groups(lambda: step(next(numbers)), time.perf_counter).median


# ---- hipgpt ----------------------------------------------------------------------------------------------------------


def model_config(shape: dict[str, Any]) -> Any:
    sys.path.insert(0, str(ROOT))
    from gpt.config import ModelConfig

    return ModelConfig(**{key: value for key, value in shape.items() if key != "batch"})


def hipgpt_step(shape: dict[str, Any], numba: bool) -> float:
    model = model_config(shape)
    from gpt.batches import Batches
    from gpt.config import TrainConfig
    from gpt.initialization import initial_weights
    from gpt.ops import select
    from gpt.trainer import TrainStep

    config = TrainConfig(batch_size=shape["batch"])
    tokens = np.random.default_rng(0).integers(
        model.vocab_size, size=4 * shape["batch"] * model.max_seq_len + 1, dtype=np.uint16
    )
    batches = Batches(tokens, shape["batch"], model.max_seq_len, sampling="sequential", seed=0, val_fraction=0)
    ops = select("cpu", training=numba)
    if numba and ops.description == select("cpu").description:
        sys.exit("\n".join(ops.notes))
    train_step = TrainStep(model, config, batches, ops)
    train_step.optimizer.initialize(initial_weights(model, 0))
    return median_seconds(lambda number: train_step.run(number + 1))


def hipgpt_generate(shape: dict[str, Any]) -> float:
    config = model_config(shape)
    from gpt.config import SamplingConfig
    from gpt.generate import draw
    from gpt.model import GPT
    from gpt.ops import select

    model = GPT(config, select("cpu"))
    model.initialize(0)

    def generate(seed: int) -> None:
        list(draw(model, [0], GENERATED, SamplingConfig(), eos_id=-1, seed=seed, window=config.max_seq_len))

    return median_seconds(generate) / GENERATED


# ---- PyTorch and transformers ----------------------------------------------------------------------------------------


def torch_step(shape: dict[str, Any], mode: str) -> float:
    model = model_config(shape)
    import torch
    from pytorch_gpt2 import TrainStep

    from gpt.config import TrainConfig

    config = TrainConfig(batch_size=shape["batch"])
    train_step = TrainStep(model, config, "cpu", "fp32", mode)
    tokens = torch.randint(model.vocab_size, (4, shape["batch"], model.max_seq_len + 1))

    def step(number: int) -> None:
        batch = tokens[number % 4]
        train_step.run(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), config.peak_lr)

    return median_seconds(step)


def transformers_generate(shape: dict[str, Any]) -> float:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model_config(shape)
    torch.manual_seed(0)
    shape_of_peer = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.embed_dim,
        n_layer=config.num_layers, n_head=config.num_heads, n_inner=config.ff_hidden_dim,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape_of_peer).eval()
    prompt = torch.zeros((1, 1), dtype=torch.long)
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True}

    def generate(_number: int) -> None:
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), **options, min_new_tokens=GENERATED,
            max_new_tokens=GENERATED,
        )  # fmt: skip

    return median_seconds(generate) / GENERATED


MEASUREMENTS = {
    ("step", "hipgpt"): lambda shape: hipgpt_step(shape, numba=False),
    ("step", "numba"): lambda shape: hipgpt_step(shape, numba=True),
    ("step", "eager"): lambda shape: torch_step(shape, "eager"),
    ("step", "compile"): lambda shape: torch_step(shape, "compile"),
    ("generate", "hipgpt"): hipgpt_generate,
    ("generate", "transformers"): transformers_generate,
}

if __name__ == "__main__":
    main()
