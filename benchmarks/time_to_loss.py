"""The time until a model is as good as PyTorch's: a preset's recipe beside AdamW, on the same text.

    python benchmarks/time_to_loss.py TEXT --preset medium --steps 2500 --ours 500,600,700 --seeds 3

PyTorch trains the preset's model for `--steps` steps with AdamW, compiled, on windows drawn at random, with a cosine to
a tenth, 2 % of warmup and clipping at 1.0: once for each rate of `--rates`, and with the best of them for each seed.
Then hipgpt trains the same model from the same weights by the preset's recipe in runs of `--ours` steps each. It says
which of them reach PyTorch's loss, and how much sooner. Losses are those of the held-out tail. Times count the steps,
not compiling, tokenizing and evaluating. With `--baseline`, hipgpt's plain defaults on windows in the order of the text
(the way of hipgpt before there were recipes) take PyTorch's place.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import click
import numpy as np
from loss_against_pytorch import tokenized

from gpt import plan
from gpt.batches import Batches
from gpt.config import PRESETS, ModelConfig, TrainConfig
from gpt.initialization import initial_weights
from gpt.model import GPT
from gpt.ops import select
from gpt.ops.cpu.operations import CpuOps
from gpt.schedule import learning_rate
from gpt.trainer import TrainStep

WARM_UP = 5  # steps that are not timed, because they compile, plan and record


def numbers(kind: type) -> Any:
    return lambda _context, _parameter, text: [kind(part) for part in text.split(",")]


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False))
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Model and recipe.")
@click.option("--steps", type=int, required=True, help="Steps of the peer.")
@click.option("--rates", default="3e-4,1e-3,3e-3", show_default=True, callback=numbers(float), help="The peer's rates.")
@click.option("--tried", type=int, help="Steps of the runs that choose the rate; as many as --steps unless given.")
@click.option("--ours", required=True, callback=numbers(int), help="Steps of hipgpt's runs.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each, with different weights and batches.")
@click.option("--mode", default="graphs", show_default=True, help="How PyTorch compiles.")
@click.option("--baseline", is_flag=True, help="Compare with hipgpt's plain defaults instead of PyTorch.")
@click.option("--device", default="auto", show_default=True, help="Device of both.")
def main(
    text: str, preset: str, steps: int, rates: list[float], tried: int | None, ours: list[int], seeds: int, mode: str,
    baseline: bool, device: str,
) -> None:  # fmt: skip
    """Measure how soon hipgpt's recipe is as good on TEXT as the peer is after its steps."""
    tokens, vocab_size = tokenized(text, preset)
    ops = select(device, training=True)
    runs = Hipgpt(tokens, vocab_size, preset, ops)
    if baseline:
        config = TrainConfig(total_steps=steps, sampling="sequential", batch_size=runs.config(1, 0).batch_size)
        peer = [runs.train(replace(config, seed=seed)) for seed in range(seeds)]
    else:
        peer = PyTorch(tokens, runs.model, mode, ops).best(steps, rates, tried or steps, seeds)
    target, took = (statistics.median(each) for each in zip(*peer, strict=True))
    click.echo(f"the peer: {target:.4f} (median of {seeds}) after {steps} steps and {took:.2f} s")
    for count in ours:
        losses, seconds = zip(*(runs.train(runs.config(count, seed)) for seed in range(seeds)), strict=True)
        loss, mine = statistics.median(losses), statistics.median(seconds)
        verdict = f"reached, {took / mine:.2f} times sooner" if loss <= target else "not reached"
        spread = ", ".join(f"{each:.4f}" for each in losses)
        click.echo(f"hipgpt: {loss:.4f} ({spread}) after {count} steps and {mine:.2f} s: {verdict}")


class Hipgpt:
    """Runs of a preset's model on some tokens."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, preset: str, ops: Any) -> None:
        self.tokens, self.preset, self.ops = tokens, preset, ops
        model, _ = plan.settle({}, preset, start=None, resume=False)
        self.model = replace(model, vocab_size=vocab_size)

    def config(self, steps: int, seed: int) -> TrainConfig:
        """The recipe for a run of `steps` steps."""
        return plan.settle({"total_steps": steps, "seed": seed}, self.preset, start=None, resume=False)[1]

    def train(self, config: TrainConfig) -> tuple[float, float]:
        """The validation loss at the end, and the seconds that the steps took."""
        batches = batches_of(self.tokens, config, self.model)
        train_step = TrainStep(self.model, config, batches, self.ops)
        train_step.optimizer.initialize(initial_weights(self.model, config.seed))
        began = 0.0
        for step in range(1, config.total_steps + 1):
            train_step.run(step)
            if step == WARM_UP:
                train_step.metrics()
                began = time.perf_counter()
        train_step.metrics()
        seconds = (time.perf_counter() - began) * config.total_steps / (config.total_steps - WARM_UP)
        model, ops, count = train_step.model, self.ops, 0
        ops.clear(model.metrics)
        for ids, labels in batches.validation():
            model.loss(ops.from_host(ids), ops.from_host(labels))
            count += ids.size
        return float(ops.to_host(model.metrics)[0]) / count, seconds


class PyTorch:
    """Runs of the same model in PyTorch, which compiles it once."""

    def __init__(self, tokens: np.ndarray, model: ModelConfig, mode: str, ops: Any) -> None:
        import pytorch_gpt2
        import torch

        self._torch, self._mode, self._precision = torch, mode, ops.precision
        self._device = "cpu" if ops.is_cpu else "cuda"
        self._tokens, self._model, self._host_tokens = torch.from_numpy(tokens.astype(np.int64)), model, tokens
        self._tokens = self._tokens.to(self._device)
        self._peer = pytorch_gpt2
        self._train_step: pytorch_gpt2.TrainStep | None = None

    def best(self, steps: int, rates: list[float], tried: int, seeds: int) -> list[tuple[float, float]]:
        """(loss, seconds) of `seeds` runs with the rate that is best after `tried` steps."""
        first = {rate: self.train(TrainConfig(total_steps=tried, learning_rate=rate)) for rate in rates}
        for rate, (loss, seconds) in first.items():
            click.echo(f"PyTorch, AdamW {rate:g}: {loss:.4f} after {tried} steps and {seconds:.2f} s")
        rate = min(first, key=lambda rate: first[rate][0])
        known = [first[rate]] if tried == steps else []
        more = range(len(known), seeds)
        return known + [self.train(TrainConfig(total_steps=steps, learning_rate=rate, seed=seed)) for seed in more]

    def train(self, config: TrainConfig) -> tuple[float, float]:
        """The same as Hipgpt.train. The first run compiles; later ones put new weights into the same module."""
        torch, seq = self._torch, self._model.max_seq_len
        if self._train_step is None:
            self._train_step = self._peer.TrainStep(self._model, config, self._device, self._precision, self._mode)
        train_step = self._train_step
        first = GPT(self._model, CpuOps())
        first.initialize(config.seed)
        train_step.restart(first.weights.named, config)
        batches = batches_of(self._host_tokens, config, self._model)
        draws = np.random.default_rng(config.seed)
        width = torch.arange(seq, device=self._device)
        began = 0.0
        for step in range(1, config.total_steps + 1):
            drawn = draws.integers(batches.train_tokens - seq, size=config.batch_size)
            starts = torch.from_numpy(drawn).to(self._device, non_blocking=True)[:, None]
            ids, labels = self._tokens[starts + width], self._tokens[starts + width + 1]
            train_step.run(ids, labels, learning_rate(step, config))
            if step == WARM_UP:
                self._wait()
                began = time.perf_counter()
        self._wait()
        seconds = (time.perf_counter() - began) * config.total_steps / (config.total_steps - WARM_UP)
        losses = [
            (train_step.loss(*(torch.from_numpy(x).to(self._device).long() for x in batch)).item(), batch[0].size)
            for batch in batches.validation()
        ]
        return sum(loss * size for loss, size in losses) / sum(size for _, size in losses), seconds

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


def batches_of(tokens: np.ndarray, config: TrainConfig, model: ModelConfig) -> Batches:
    return Batches(
        tokens, config.batch_size, model.max_seq_len,
        sampling=config.sampling, seed=config.seed, val_fraction=config.val_fraction,
    )  # fmt: skip


if __name__ == "__main__":
    main()
