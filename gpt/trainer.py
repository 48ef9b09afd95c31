"""The training loop: batch, forward, backward, clip, step; log, evaluate, checkpoint; stop when asked, resume exactly.

Everything a step depends on is a function of its number: the batch, the dropout masks and the learning rate. A
checkpoint therefore holds weights, moments and a step, and no generator state.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from gpt import checkpoint
from gpt.batches import Batches, token_order
from gpt.checkpoint import Checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.evaluation import HeldOut, Metrics, Samples, printable
from gpt.history import RISES, History, owes_evaluation
from gpt.model import TrainableGPT
from gpt.ops.interface import Array, Operations
from gpt.optim import Optimizer, learning_rate
from gpt.run import Run
from gpt.system.console import Console, duration, rate
from gpt.system.interrupts import SIGPIPE, Dropped, deferred
from gpt.tokenizer import Tokenizer

MAX_SKIPPED_IN_A_ROW = 10
FORETOLD_AFTER = 3  # steps after the first: then the length of the whole run is foretold
LONG_ON_A_CPU = 3600  # seconds: from here on a smaller model is suggested


class Training:
    """A model, its optimizer and its batches: everything that a step of training reads and writes."""

    def __init__(self, model: ModelConfig, config: TrainConfig, batches: Batches, ops: Operations) -> None:
        self.config, self.batches, self.ops = config, batches, ops
        self.model = TrainableGPT(model, ops, batch=config.batch_size)
        self.optimizer = Optimizer(self.model, config)
        shape = (config.batch_size, model.max_seq_len)
        self.inputs = ops.inputs(
            ids=(shape, "int32"), labels=(shape, "int32"), order=((math.prod(shape),), "int32"),
            dropout_key=((2,), "uint32"), lr=((1,), "float32"),
        )  # fmt: skip
        self.model.dropout_key = self.inputs.device["dropout_key"]
        self._passes = {each: ops.replayed(partial(self._pass, *each)) for each in product((True, False), repeat=2)}
        self.tokens_per_step = config.batch_size * config.accumulate * model.max_seq_len
        self.droppable: Callable[[], AbstractContextManager[None]] = nullcontext

    def step(self, number: int) -> None:
        """Step `number` (the first is 1): the gradients of its batches, and the update. Waits for nothing.

        Work within `droppable` may be given up, because nothing that a checkpoint holds changes there: on a CPU all
        but the update, on a GPU, which has been asked for work that nobody takes back, between micro-batches.
        """
        config = self.config
        for micro_step in range(config.accumulate):
            index = (number - 1) * config.accumulate + micro_step
            with self.droppable(), self.inputs.written() as inputs:
                self.batches.train(index - config.text_start * config.accumulate, out=(inputs["ids"], inputs["labels"]))
                inputs["order"][...] = token_order(inputs["ids"], self.model.sequences)
                inputs["dropout_key"][...] = config.seed % 2**32, index % 2**32
                inputs["lr"][...] = learning_rate(number, config)
            self._passes[micro_step == 0, micro_step == config.accumulate - 1]()

    def _pass(self, first: bool, last: bool) -> None:
        """A micro-batch; before the step's first gradients and metrics are zero, after its last the weights move."""
        inputs, model = self.inputs.device, self.model
        with self.droppable() if self.ops.is_cpu else nullcontext():
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
        tokenizer: Tokenizer,
        ops: Operations,
        console: Console,
        start: Checkpoint | None = None,
    ) -> None:
        self.run, self.config, self.batches, self.ops, self.console = run, config, batches, ops, console
        self.training = Training(model, config, batches, ops)
        self.model, self.optimizer = self.training.model, self.training.optimizer
        self.held_out = HeldOut(self.model, batches, tokenizer)
        self.samples = Samples(self.model, batches, tokenizer, config) if config.sample_every else None
        self.step = start.step if start else 0
        self.saved = start.step if start and start.run.path == run.path else None  # the last step that is on disk
        self.best = None
        if start and start.run.path == run.path:
            best = checkpoint.best(run)
            if best and best.train.val_fraction == config.val_fraction:  # or it was the best on other text
                self.best = best
        else:
            checkpoint.forget_best(run)  # of a run that was killed before its first checkpoint
        if start:
            self.model.load(start.weights())
            self.optimizer.load(*start.optimizer())
        else:
            self.model.initialize(config.seed)

    def train(self) -> int | None:
        """Run the remaining steps. Returns None when training has ended, or the number of the signal that stopped it.

        Training ends with the last step, or when the validation loss has not been better for `config.patience`
        evaluations. Either way the step it ends with is on disk. Raises UserError, after a checkpoint, when ten steps
        in a row were not finite, and at once if patience has ended already.
        """
        first, total = self.step + 1, self.config.total_steps
        tokens_per_step, train_tokens = self.training.tokens_per_step, self.batches.train_tokens
        self.history = History(
            self.run, self.step, tokens_per_step, train_tokens, self.config.text_start, self.config.val_fraction
        )
        if self._patience_is_over():
            raise UserError(
                f"run {self.run.name} was ended by --patience {self.config.patience} at step {self.step}: "
                "to train on, give --patience 0 or more than that"
            )
        with (
            deferred(self._announce_stop, self._farewell) as self._stop,
            self.console.progress("Training", total, completed=self.step) as advance,
        ):
            if self.ops.is_cpu:
                self.training.droppable = self._stop.droppable
            self.clock = clock = _Clock(self.step, self.history.seconds, wait=self.training.metrics)
            with suppress(Dropped):
                if self.step:
                    with clock.paused():  # a signal cut these short, or another run made the checkpoint
                        self._evaluate_and_sample(only_missing=True)
                for number in range(first, total + 1) if not self._patience_is_over() else ():
                    if self._stopped_by is not None:
                        break
                    self.training.step(number)
                    self.step = number
                    if number == first + FORETOLD_AFTER:
                        self._foretell(clock.seconds_per_step(number))
                    if clock.due():
                        advance(number, status=self._status(clock.seconds_per_step(number)))
                    logging = number == total or self._is_due(self.config.log_every)
                    saving = self._is_due(self.config.ckpt_every)
                    if logging:
                        self._log(clock.lap(number))
                    elif number == first:
                        clock.lap(number)  # the first step is no measure: it touches every page for the first time
                    if logging or saving or self._has_to_evaluate or self._has_to_sample:
                        with clock.paused():  # else nothing waits for the device
                            self._evaluate_and_sample()
                            if logging or saving:
                                self._stop_if_diverged()
                            if saving:
                                self._save()
                    if self._patience_is_over():
                        break
            if self.saved != self.step:
                self._save()
        if self._patience_is_over():
            self.console.line(
                f"Ended at step {self.step} by --patience {self.config.patience}: the last {self.history.without_best} "
                f"evaluations were no better than the best. {self._kept()}"
            )
            return None
        is_done = self.step == total and not owes_evaluation(self.run, self.config, self.step)
        return None if is_done else self._stopped_by

    @property
    def _stopped_by(self) -> int | None:
        """The number of the signal that asked for an end. Output without a reader counts as SIGPIPE."""
        return SIGPIPE if self._stop.received is None and self.console.reader_is_gone else self._stop.received

    def _announce_stop(self) -> None:
        self.console.urgent(f"Finishing step {self.step + 1}, then saving; again to stop at once")

    def _farewell(self) -> str:
        if self.saved is None:
            return "Stopped at once. Nothing was saved"
        return f"Stopped at once. Go on from step {self.saved}: hipgpt train --run-name {self.run.name} --resume"

    @property
    def _has_to_evaluate(self) -> bool:
        return self._is_due(self.config.eval_every, last=True)

    @property
    def _has_to_sample(self) -> bool:
        return self._is_due(self.config.sample_every, last=True)

    def _evaluate_and_sample(self, only_missing: bool = False) -> None:
        """Evaluate and sample as is due at this step. After a signal do nothing: a resumed run makes up for it."""
        if self._has_to_evaluate and not (only_missing and self.history.has_evaluated(self.step)):
            self._evaluate()
        if self._has_to_sample and not (only_missing and self.history.has_sampled(self.step)):
            self._sample()

    def _is_due(self, every: int, last: bool = False) -> bool:
        """Whether the step is one of every so many, or with `last` the last one; never if `every` is 0."""
        return every > 0 and (self.step % every == 0 or (last and self.step == self.config.total_steps))

    def _patience_is_over(self) -> bool:
        return 0 < self.config.patience <= self.history.without_best

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

    def _evaluate(self) -> None:
        """Measure the held-out loss, unless a signal comes meanwhile; keep the weights if they are the best so far."""
        is_first = not self.history.evaluations
        try:
            with self.training.droppable():
                metrics = self.held_out.evaluate(stopped=lambda: self._stopped_by is not None)
        except Dropped:
            return
        if metrics is None:
            return
        self.console.line(f"[Step {self.step}] Validation {metrics}")
        if is_first:
            loss, bits = self.held_out.guess()
            self.console.line(f"Guessing by frequency would give {loss:.2f} ({bits:.2f} bits/byte).")
        if math.isfinite(metrics.loss) and (self.best is None or metrics.loss < self.best.val_loss):
            weights = self._on_host(self.model.weights.named)
            self.best = checkpoint.save_best(self.run, self.step, self.model.config, self.config, weights, metrics.loss)
        self._record(
            val_loss=metrics.loss, val_perplexity=metrics.perplexity, val_accuracy=metrics.accuracy,
            val_bits_per_byte=metrics.bits_per_byte,
        )  # fmt: skip
        if self.history.memorizes:
            self.console.line(
                f"The validation loss has risen {RISES} times in a row: the model now memorizes its text. "
                f"{self._kept()} More --dropout, fewer --steps or more text help."
            )

    def _kept(self) -> str:
        if self.best is None:
            return "No evaluation gave a finite loss."
        return f"The best checkpoint, step {self.best.step} with {self.best.val_loss:.4f}, is kept: use it with --best."

    def _sample(self) -> None:
        if self._stopped_by is not None:
            return
        try:
            with self.training.droppable():
                text = self.samples.text()
        except (Dropped, UserError):  # the training loop handles steps that are not finite
            return
        head, *rest = printable(text).strip().split("\n")
        self.console.line("\n".join([f"[Step {self.step}] Sample: {head}", *(f"    {line}".rstrip() for line in rest)]))
        self._record(sample=text)

    def _record(self, **values: Any) -> None:
        self.history.record(self.step, self.clock.seconds(), **values)

    def _save(self) -> None:
        self.history.sync()
        checkpoint.save(
            self.run, self.step, self.model.config, self.config, self._on_host(self.model.weights.named),
            self._on_host(self.optimizer.tensors), self.optimizer.state(),
        )  # fmt: skip
        self.saved = self.step
        checkpoint.prune(self.run, self.config.keep_last)

    def _on_host(self, tensors: Mapping[str, Array]) -> dict[str, np.ndarray]:
        return {name: self.ops.to_host(tensor) for name, tensor in tensors.items()}

    def _status(self, seconds_per_step: float) -> str:
        evaluations = self.history.evaluations
        val = f", val {evaluations[-1][1]:.3f}" if evaluations else ""
        return (
            f"{self.step}/{self.config.total_steps}, loss {self.training.metrics().loss:.3f}{val}, "
            f"{rate(self.training.tokens_per_step / seconds_per_step)} tok/s"
        )

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
                f"{self.step} (saved); start again with a lower --lr (it is {self.config.peak_lr:g}), "
                "a longer --warmup-steps or a --grad-clip above 0"
            )


class _Clock:
    """Seconds per step, not counting what happens while it is paused; `wait` returns when all steps so far are done.

    `spent` is how long the run has trained before.
    """

    def __init__(self, step: int, spent: float, wait: Callable[[], object]) -> None:
        self._step, self._shown, self._wait = step, 0.0, wait
        self._start = time.perf_counter()
        self._began, self._pause = self._start - spent, None

    def seconds(self) -> float:
        """How long the run has trained so far; while the clock is paused, until it was."""
        return (self._pause or time.perf_counter()) - self._began

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
        self._pause = time.perf_counter()
        yield
        pause, self._pause = time.perf_counter() - self._pause, None
        self._start += pause
        self._began += pause
