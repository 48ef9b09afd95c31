"""Train the same GPT-2 twice, with hipgpt and with PyTorch: same first weights, batches, schedule and precision.

    python benchmarks/loss_against_pytorch.py data/shakespeare.txt --preset small --device cpu
    python benchmarks/loss_against_pytorch.py data/shakespeare.txt --preset gpt2-124M --steps 200

Prints both losses on the way, and at the end how far the two curves lie apart, over all steps. Of hipgpt's, PyTorch
gets the first weights, the batches and the learning rates, and nothing after that. In bf16 it computes under autocast,
which keeps the residual stream in float32. Needs PyTorch; 200 steps of `--preset small` take two minutes on two cores.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytorch_gpt2
import torch

from gpt import plan
from gpt.config import PRECISIONS, PRESETS
from gpt.data import Batches
from gpt.errors import UserError
from gpt.ops import select
from gpt.optim import learning_rate
from gpt.prepare import prepare
from gpt.run import Run
from gpt.trainer import Training


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False))
@click.option("--preset", type=click.Choice(list(PRESETS)), help="As of hipgpt train; without it, the default model.")
@click.option("--steps", default=200, show_default=True, metavar="N")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|gpu")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
def main(text: str, preset: str | None, steps: int, device: str, precision: str) -> None:
    """Train the same GPT-2 on TEXT with hipgpt and with PyTorch, and compare their losses."""
    try:
        model, config = plan.settle({"total_steps": steps}, preset, start=None, resume=False)
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

    training = Training(model, config, batches, ops)
    training.model.initialize(config.seed)
    torch_device = "cpu" if ops.is_cpu else "cuda"
    peer = pytorch_gpt2.Training(model, config, torch_device, ops.precision, mode="eager")
    peer.module.load({name: ops.to_host(view) for name, view in training.model.weights.named.items()})

    losses = np.empty((steps, 2))
    for step in range(1, steps + 1):
        training.step(step)
        ids, labels = (torch.from_numpy(array).to(torch_device).long() for array in batches.train(step - 1))
        theirs = peer.step(ids, labels, learning_rate(step, config))
        losses[step - 1] = training.metrics().loss, theirs.item()
        if step % max(1, steps // 10) == 0:
            click.echo("[Step {}] hipgpt {:.4f}, PyTorch {:.4f}".format(step, *losses[step - 1]))
    apart = np.abs(np.diff(losses, axis=1))
    click.echo(
        f"Apart: {apart.mean():.1e} in the mean, {apart.max():.1e} at most (step {apart.argmax() + 1}), "
        f"{apart[-1, 0]:.1e} at the end"
    )


def tokenized(text: str, preset: str | None) -> tuple[np.ndarray, int]:
    """The ids of a text as `hipgpt train` makes them, and the size of their vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run("peer", Path(folder))
        with run.lock():
            corpus = prepare(run, data_path=text, defaults=plan.tokenizer_defaults(preset), report=click.echo)
        return np.array(corpus.tokens), corpus.tokenizer.vocab_size


if __name__ == "__main__":
    main()
