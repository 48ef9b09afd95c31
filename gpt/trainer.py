"""The training loop: batch, forward, backward, clip, step; log, evaluate, checkpoint; stop when asked, resume exactly.

Everything a step depends on is a function of its number: the batch, the dropout masks and the learning rate. A
checkpoint therefore holds weights, moments and a step, and no generator state.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.console import Console, duration
from gpt.data import Batches, token_order
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.model import GPT
from gpt.optim import Optimizer, learning_rate
from gpt.run import Run

MAX_SKIPPED_IN_A_ROW = 10
FORETOLD_AFTER = 3  # steps after the first: then the length of the whole run is foretold
LONG_ON_A_CPU = 3600  # seconds: from here on a smaller model is suggested


@dataclass(frozen=True)
class Metrics:
    """Means over the tokens of a step or an evaluation."""

    loss: float
    accuracy: float

    @classmethod
    def of(cls, sums: np.ndarray, tokens: int) -> "Metrics":
        return cls(float(sums[0]) / tokens, float(sums[1]) / tokens)

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss > 700 else math.exp(self.loss)

    def __str__(self) -> str:
        return f"Loss: {self.loss:.4f} | Perplexity: {self.perplexity:.2f} | Accuracy: {self.accuracy:.2%}"


class Training:
    """A model, its optimizer and its batches: everything that a step of training reads and writes."""

    def __init__(self, model: ModelConfig, config: TrainConfig, batches: Batches, ops: Any) -> None:
        self.config, self.batches, self.ops = config, batches, ops
        self.model = GPT(model, ops, batch=config.batch_size, training=True)
        self.optimizer = Optimizer(self.model, config)
        shape = (config.batch_size, model.max_seq_len)
        self.inputs = ops.inputs(
            ids=(shape, "int32"), labels=(shape, "int32"), order=((math.prod(shape),), "int32"),
            dropout_key=((2,), "uint32"), lr=((1,), "float32"),
        )  # fmt: skip
        self.model.dropout_key = self.inputs.device["dropout_key"]
        self._passes = {each: ops.replayed(partial(self._pass, *each)) for each in product((True, False), repeat=2)}
        self.tokens_per_step = config.batch_size * config.accumulate * model.max_seq_len

    def step(self, number: int) -> None:
        """Step `number` (the first is 1): the gradients of its batches, and the update. Waits for nothing."""
        config = self.config
        for micro_step in range(config.accumulate):
            index = (number - 1) * config.accumulate + micro_step
            with self.inputs.written() as inputs:
                self.batches.train(index, out=(inputs["ids"], inputs["labels"]))
                inputs["order"][...] = token_order(inputs["ids"], self.model.sequences)
                inputs["dropout_key"][...] = config.seed % 2**32, index % 2**32
                inputs["lr"][...] = learning_rate(number, config)
            self._passes[micro_step == 0, micro_step == config.accumulate - 1]()

    def _pass(self, first: bool, last: bool) -> None:
        """A micro-batch; before the step's first gradients and metrics are zero, after its last the weights move."""
        inputs, model = self.inputs.device, self.model
        if first:
            self.ops.fill(model.gradients.flat, 0)
            self.ops.fill(model.metrics, 0)
        model.loss_and_gradients(inputs["ids"], inputs["labels"], inputs["order"], scale=1 / self.tokens_per_step)
        if last:
            self.optimizer.step(inputs["lr"])

    def metrics(self) -> Metrics:
        """The last step's, once all work so far is done."""
        return Metrics.of(self.ops.to_host(self.model.metrics), self.tokens_per_step)


class Trainer:
    """Trains one run from `start` (a checkpoint, or None for fresh weights) to `config.total_steps`.

    The caller holds the run's lock and has checked that the memory suffices.
    """

    def __init__(
        self,
        run: Run,
        model: ModelConfig,
        config: TrainConfig,
        batches: Batches,
        ops: Any,
        console: Console,
        start: Checkpoint | None = None,
    ) -> None:
        self.run, self.config, self.batches, self.ops, self.console = run, config, batches, ops, console
        self.training = Training(model, config, batches, ops)
        self.model, self.optimizer = self.training.model, self.training.optimizer
        self.step = start.step if start else 0
        if start:
            self.model.load(start.weights())
            self.optimizer.load(*start.optimizer())
        else:
            self.model.initialize(config.seed)

    def train(self) -> int | None:
        """Run the remaining steps. Returns None when all are done, or the number of the signal that stopped it.

        Either way the last step is on disk. Raises UserError, after a checkpoint, when ten steps in a row were not
        finite.
        """
        first, total = self.step + 1, self.config.total_steps
        self._forget_metrics_after(self.step)
        clock = _Clock(self.step, wait=self.training.metrics)
        with _StopSignal() as stop, self.console.progress("Training", total, completed=self.step) as advance:
            for self.step in range(first, total + 1):
                self.training.step(self.step)
                stopping = stop.received is not None
                last = stopping or self.step == total
                if self.step == first + FORETOLD_AFTER:
                    self._foretell(clock.seconds_per_step(self.step))
                if clock.due():
                    advance(self.step, status=self._status(clock.seconds_per_step(self.step)))
                logging, evaluating, saving = (
                    last or (every and self.step % every == 0)
                    for every in (self.config.log_every, self.config.eval_every, self.config.ckpt_every)
                )
                if logging:
                    self._log(clock.lap(self.step))
                elif self.step == first:
                    clock.lap(self.step)  # the first step is no measure: it touches every page for the first time
                if logging or evaluating or saving:  # else nothing waits for the device
                    with clock.paused():
                        if evaluating:
                            self._evaluate(stop)
                        if logging or saving:
                            self._stop_if_diverged()
                        if saving:
                            self._save()
                if last:
                    break
        return stop.received if self.step < total else None

    def _log(self, seconds_per_step: float) -> None:
        metrics, lr = self.training.metrics(), learning_rate(self.step, self.config)
        norm, skipped = float(self.ops.to_host(self.optimizer.norm)[0]), self.optimizer.state()["skipped"]
        speed = self.training.tokens_per_step / seconds_per_step
        self.console.line(
            f"[Step {self.step}] {metrics} | LR: {lr:.2e} | Grad: {norm:.2f} | Time: {seconds_per_step * 1e3:.1f} ms"
            f" | {speed:.0f} tok/s" + (f" | Skipped: {skipped}" if skipped else "")
        )
        self._record(
            loss=metrics.loss, perplexity=metrics.perplexity, accuracy=metrics.accuracy, lr=lr, grad_norm=norm,
            ms=seconds_per_step * 1e3, tokens_per_second=speed, skipped=skipped,
        )  # fmt: skip

    def _evaluate(self, stop: "_StopSignal") -> None:
        self.ops.fill(self.model.metrics, 0)
        tokens = 0
        for ids, labels in self.batches.validation():
            if stop.received is not None:
                return
            self.model.loss(self.ops.from_host(ids), self.ops.from_host(labels))
            tokens += ids.size
        if tokens:
            metrics = Metrics.of(self.ops.to_host(self.model.metrics), tokens)
            self.console.line(f"[Step {self.step}] Validation {metrics}")
            self._record(val_loss=metrics.loss, val_perplexity=metrics.perplexity, val_accuracy=metrics.accuracy)

    def _save(self) -> None:
        weights, optimizer = (
            {name: self.ops.to_host(view) for name, view in views.items()}
            for views in (self.model.weights.named, self.optimizer.tensors)
        )
        state = self.optimizer.state()
        checkpoint.save(self.run, self.step, self.model.config, self.config, weights, optimizer, state)
        checkpoint.prune(self.run, self.config.keep_last)

    def _status(self, seconds_per_step: float) -> str:
        return f"loss {self.training.metrics().loss:.3f}, {self.training.tokens_per_step / seconds_per_step:,.0f} tok/s"

    def _foretell(self, seconds_per_step: float) -> None:
        seconds = seconds_per_step * (self.config.total_steps - self.step)
        self.console.line(f"At {seconds_per_step * 1e3:.0f} ms a step the rest will take about {duration(seconds)}.")
        if self.ops.is_cpu and seconds > LONG_ON_A_CPU:
            self.console.line("That is long on a CPU: --preset tiny trains a small model in minutes.")

    def _stop_if_diverged(self) -> None:
        if self.optimizer.state()["skipped_in_a_row"] >= MAX_SKIPPED_IN_A_ROW:
            self._save()
            raise UserError(
                f"the loss or its gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{self.step} (saved); start again with a lower --lr (it is {self.config.learning_rate:g}), "
                "a longer --warmup-steps or a --grad-clip above 0"
            )

    def _record(self, **values: float) -> None:
        """Append one line to metrics.jsonl; JSON has no NaN, so what is not finite becomes null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with open(self.run.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **finite}) + "\n")

    def _forget_metrics_after(self, step: int) -> None:
        """Drop the lines that a killed run logged after the checkpoint it now goes on from."""
        kept = [json.dumps(line) + "\n" for line in self.run.metrics() if line["step"] <= step]
        write_atomically(self.run.metrics_path, "".join(kept))


class _Clock:
    """Seconds per step, not counting what happens while it is paused; `wait` returns when all steps so far are done."""

    def __init__(self, step: int, wait: Callable[[], object]) -> None:
        self._step, self._start, self._shown, self._wait = step, time.perf_counter(), 0.0, wait

    def seconds_per_step(self, step: int) -> float:
        self._wait()
        return (time.perf_counter() - self._start) / max(1, step - self._step)

    def lap(self, step: int) -> float:
        """Seconds per step since the last lap."""
        seconds = self.seconds_per_step(step)
        self._step, self._start = step, time.perf_counter()
        return seconds

    def due(self) -> bool:
        """True at most twice a second: often enough for a progress bar."""
        now = time.perf_counter()
        if now - self._shown < 0.5:
            return False
        self._shown = now
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._wait()
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin


class _StopSignal:
    """Remembers the first Ctrl-C or SIGTERM, so that the step can be finished and saved; a second one exits at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    received: int | None = None

    def __enter__(self) -> "_StopSignal":
        self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
