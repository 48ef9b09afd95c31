"""Train the same GPT-2 twice, with hipgpt and with PyTorch: same first weights, batches, schedule and precision.

    python benchmarks/loss_against_pytorch.py data/shakespeare.txt --preset small --device cpu
    python benchmarks/loss_against_pytorch.py data/shakespeare.txt --preset gpt2-124M --steps 200

Prints both losses on the way, and at the end the distance of the two curves over all steps. PyTorch gets hipgpt's first
weights, batches and learning rates, and nothing else. In bf16 it computes under autocast, which keeps the residual
stream in float32.

Training magnifies differences: while the loss stalls, a difference in the last digit of the weights grows to percents
of the loss. So PyTorch trains a second time, from weights that differ by one rounding, and its distance from itself is
printed too. Needs PyTorch; 200 steps of `--preset small` take two minutes on two cores.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytorch_gpt2
import torch

from gpt import plan
from gpt.batches import Batches
from gpt.config import PRECISIONS, PRESETS, DataConfig
from gpt.errors import UserError
from gpt.initialization import initial_weights
from gpt.ops import select
from gpt.prepare import prepare
from gpt.run import Run
from gpt.schedule import learning_rate
from gpt.trainer import TrainStep

MANTISSA_BITS = {"fp32": 24, "tf32": 11, "bf16": 8}  # the leading one included


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), help="Preset of hipgpt train; without it, the default model."
)
@click.option("--steps", default=200, show_default=True, metavar="N", help="Steps of each.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|gpu", help="Device of both.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True, help="Precision of both."
)
def main(text: str, preset: str | None, steps: int, device: str, precision: str) -> None:
    """Train the same GPT-2 on TEXT with hipgpt and with PyTorch, and compare their losses."""
    try:
        model, config = plan.settle({"total_steps": steps, "optimizer": "adamw"}, preset, start=None, resume=False)
        ops = select(device, precision)
        tokens, vocab_size = tokenized(text, preset)
        model = replace(model, vocab_size=vocab_size)
        batches = Batches(
            tokens, config.batch_size, model.max_seq_len,
            sampling=config.sampling, seed=config.seed, val_fraction=config.val_fraction,
        )  # fmt: skip
    except UserError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{ops.description}; PyTorch {torch.__version__}; {plan.describe(model)}")

    ours = TrainStep(model, config, batches, ops)
    ours.optimizer.initialize(initial_weights(model, config.seed))
    weights = ours.optimizer.weights_on_host()
    torch_device = "cpu" if ops.is_cpu else "cuda"
    peers = [pytorch_gpt2.TrainStep(model, config, torch_device, ops.precision, mode="eager") for _ in range(2)]
    peers[0].module.load(weights)
    peers[1].module.load(rounded_otherwise(weights, ops.precision))

    losses = np.empty((steps, 3))  # hipgpt's, PyTorch's, and PyTorch's from the other weights
    for step in range(1, steps + 1):
        ours.run(step)
        ids, labels = (torch.from_numpy(array).to(torch_device).long() for array in batches.train(step - 1))
        theirs = [peer.run(ids, labels, learning_rate(step, config)) for peer in peers]
        losses[step - 1] = ours.metrics().loss, *(loss.item() for loss in theirs)
        if step % max(1, steps // 10) == 0:
            click.echo("[Step {}] hipgpt {:.4f}, PyTorch {:.4f}".format(step, *losses[step - 1]))
    for name, other in (("hipgpt and PyTorch", 0), ("PyTorch and itself", 2)):
        apart = np.abs(losses[:, other] - losses[:, 1])
        click.echo(
            f"{name} are apart by {apart.mean():.1e} in the mean, {apart.max():.1e} at most (step "
            f"{apart.argmax() + 1}), {apart[-1]:.1e} at the end"
        )


def rounded_otherwise(weights: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Each weight up or down by the largest relative error of one rounding to that precision."""
    rng, unit = np.random.default_rng(0), np.float32(2.0 ** -MANTISSA_BITS[precision])
    return {name: array * (1 + rng.choice([-unit, unit], array.shape)) for name, array in weights.items()}


def tokenized(text: str, preset: str | None) -> tuple[np.ndarray, int]:
    """The ids of a text as `hipgpt train` makes them, and the size of their vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run("peer", Path(folder))
        with run.lock():
            corpus = prepare(run, data=DataConfig((text,)), preset=preset, report=click.echo)
        return corpus.tokens[:], corpus.tokenizer.vocab_size


if __name__ == "__main__":
    main()
