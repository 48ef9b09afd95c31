"""The loop of training: take a step, log, evaluate, save; stop when asked to, and resume exactly."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from gpt import checkpoint
from gpt.batches import Batches
from gpt.checkpoint import Checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.evaluation import HeldOut, Samples, printable
from gpt.history import RISES, History, owes_result
from gpt.initialization import initial_weights
from gpt.lora import initial_adapters
from gpt.ops.interface import Operations, blame
from gpt.run import Run
from gpt.schedule import learning_rate
from gpt.system.console import Console, duration, rate
from gpt.system.interrupts import SIGPIPE, Dropped, deferred
from gpt.tokenizer import Tokenizer
from gpt.trainer.best import Best
from gpt.trainer.clock import Clock
from gpt.trainer.step import TrainStep

MAX_SKIPPED_IN_A_ROW = 10  # steps that are not finite before the run ends
ESTIMATE_AFTER = 3  # steps after the first before the rest of the run is estimated
LONG_ON_A_CPU = 3600  # seconds: a longer run gets the advice to train a smaller model


class Trainer:
    """Trains one run from `start` (a checkpoint, or None for a new run) to `train_config.total_steps`.

    A new run begins with `first_weights` (named as in `parameter_shapes`), or with random ones if that is None. If it
    trains adapters, it gets a copy of `first_weights`.

    The caller holds the run's lock and has checked that the memory suffices.

    Ctrl-C, or any other signal of gpt/system/interrupts.py, ends training like this. The step that is being taken is
    finished; on a CPU it is given up if that takes more than a second. An evaluation or a sample is cut short, or left
    out: the resumed run makes up for it. Then the last finished step is saved, and `train` returns the signal's number.
    A second signal ends the process at once, without saving.
    """

    def __init__(
        self,
        run: Run,
        model_config: ModelConfig,
        train_config: TrainConfig,
        batches: Batches,
        tokenizer: Tokenizer,
        ops: Operations,
        console: Console,
        *,
        start: Checkpoint | None = None,
        ranks: Ranks = ALONE,
        first_weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.run, self.train_config, self.batches, self.ops, self.console = run, train_config, batches, ops, console
        self.ranks = ranks
        self.train_step = TrainStep(model_config, train_config, batches, ops, ranks)
        self.model, self.optimizer = self.train_step.model, self.train_step.optimizer
        self.held_out = HeldOut(self.model, batches, tokenizer, ranks)
        samples = train_config.sample_every and ranks.is_first
        self.samples = Samples(self.model, batches, tokenizer, train_config) if samples else None
        self.step = start.step if start else 0  # the last one that was taken
        is_new = start is None or start.run.path != run.path
        self.saved = None if is_new else self.step  # the last step that is on disk
        if is_new and ranks.is_first:
            run.base_path.unlink(missing_ok=True)  # left by a run that was killed before its first checkpoint
        self._best = Best(run, self.optimizer, train_config, ranks, is_new)
        if train_config.lora:
            self._take_base(start.base() if start else first_weights, is_new)
        if start:
            self.optimizer.initialize(start.trained().items())
            self.optimizer.load(*start.optimizer())
        elif train_config.lora:
            self.optimizer.initialize(initial_adapters(model_config, train_config.lora, train_config.seed))
        else:
            drawn = initial_weights(model_config, train_config.seed)
            self.optimizer.initialize(drawn if first_weights is None else first_weights.items())
        # The last thing, because it drops lines of the log.
        self.history = History(
            run, self.step, self.train_step.tokens, batches.train_tokens, text_start=train_config.text_start,
            val_fraction=train_config.val_fraction, writes=ranks.is_first,
        )  # fmt: skip

    def _take_base(self, base: Mapping[str, np.ndarray] | None, is_new: bool) -> None:
        """Load the weights beside which adapters are trained, and give them to a new run."""
        if base is None:
            raise ValueError("adapters need weights to be trained beside")
        if is_new and self.ranks.is_first:
            checkpoint.save_base(self.run, base)
        self.model.load(base.items())

    @property
    def best(self) -> Checkpoint | None:
        """The best checkpoint so far."""
        return self._best.checkpoint

    def train(self) -> int | None:
        """Take the remaining steps. Returns None when training has ended, or the number of the signal that stopped it.

        Training ends with the last step, or when the validation loss has not been better for `patience` evaluations.
        In either case the last step is on disk. Raises UserError, after a checkpoint, if ten steps in a row were not
        finite, or fewer at the end (`_diverged_for`), and at once if patience has ended already.
        """
        if self._patience_is_over():
            raise UserError(
                f"run {self.run.name} was ended by --patience {self.train_config.patience} at step {self.step}: "
                "to train on, give --patience 0 or more than that"
            )
        with (
            deferred(self._announce_stop, self._farewell) as self._stop,
            self.console.progress("Training", self.train_config.total_steps, completed=self.step) as self._advance,
        ):
            if self.ranks.size > 1:
                self.ranks.listen(self._received)
            elif self.ops.is_cpu:
                self.train_step.droppable = self._stop.droppable
            self._clock = Clock(self.step, self.history.seconds, wait=self.train_step.metrics)
            with suppress(Dropped):  # a signal came, and the step in progress took too long
                self._take_steps()
            if self.saved != self.step:
                self._save()
        return self._ending()

    def _take_steps(self) -> None:
        """The training loop. A signal ends it after a step, or raises Dropped out of it."""
        first, last = self.step + 1, self.train_config.total_steps
        if self.step:  # a signal cut these short, or another run made the checkpoint
            self._evaluate_and_sample(only_missing=True)
        for step in range(first, last + 1):
            if self._patience_is_over() or not self._may_begin(step):
                break
            self.train_step.run(step)  # batch, forward, backward, clip, update
            self.step = step
            self._show_progress(steps_after_first=step - first)
            logs = self._is_due(self.train_config.log_every, or_last=True)
            saves = self._is_due(self.train_config.ckpt_every)
            if logs:
                self._log()
            if step == first:  # it touches every page of memory for the first time: no later lap counts it
                self._clock.lap(step)
            self._evaluate_and_sample()
            if logs or saves:
                self._stop_if_diverged()
            if saves:
                self._save()

    def _ending(self) -> int | None:
        """The result of `train`, after a line for the user if patience has ended."""
        config = self.train_config
        if self._patience_is_over():
            self.console.line(
                f"Ended at step {self.step} by --patience {config.patience}: the last {self.history.without_best} "
                f"evaluations were no better than the best. {self._best}"
            )
            return None
        is_done = self.step == config.total_steps and not owes_result(self.run, config, self.step)
        ending: int | None = self.ranks.share(None if is_done else self._stopped_by)
        return ending

    @property
    def _stopped_by(self) -> int | None:
        """The number of the signal that ends this training, if any. Several ranks agree on it."""
        return self._received() if self.ranks.size == 1 else self.ranks.stopped_by

    def _received(self) -> int | None:
        """The number of the signal that asked this process for an end. Output without a reader counts as SIGPIPE."""
        return SIGPIPE if self._stop.received is None and self.console.reader_is_gone else self._stop.received

    def _may_begin(self, step: int) -> bool:
        return self._stopped_by is None if self.ranks.size == 1 else self.ranks.may_begin(step)

    def _announce_stop(self) -> None:
        self.console.urgent(f"Finishing step {self.step + 1}, then saving; again to stop at once")

    def _farewell(self) -> str:
        if self.saved is None:
            return "Stopped at once. Nothing was saved"
        return f"Stopped at once. Go on from step {self.saved}: hipgpt train {self.run.options} --resume"

    def _evaluate_and_sample(self, only_missing: bool = False) -> None:
        """Evaluate and sample if this step is one for it; with `only_missing` only if the log lacks the result."""
        history = self.history
        evaluates = self._is_due(self.train_config.eval_every, or_last=True)
        samples = self._is_due(self.train_config.sample_every, or_last=True)
        if only_missing:
            evaluates = evaluates and not history.has_evaluated(self.step)
            samples = samples and not history.has_sampled(self.step)
        if evaluates or samples:
            with self._clock.paused():
                if evaluates:
                    self._evaluate()
                if samples:
                    self._sample()

    def _is_due(self, every: int, or_last: bool = False) -> bool:
        """Whether the step is a multiple of `every`, or with `or_last` the last one. Never, if `every` is 0."""
        return every > 0 and (self.step % every == 0 or (or_last and self.step == self.train_config.total_steps))

    def _patience_is_over(self) -> bool:
        return 0 < self.train_config.patience <= self.history.without_best

    def _log(self) -> None:
        seconds_per_step = self._clock.lap(self.step)
        if not self.train_step.counted:
            self.console.line(f"[Step {self.step}] No loss: its texts have nothing that the assistant says")
            return
        metrics, lr = self.train_step.metrics(), learning_rate(self.step, self.train_config)
        norm, skipped = float(self.ops.to_host(self.optimizer.norm)[0]), self.optimizer.state()["skipped"]
        speed = self.train_step.tokens / seconds_per_step
        self.console.line(
            f"[Step {self.step}] {metrics} | LR: {lr:.2e} | Grad: {norm:.2f} | Time: {seconds_per_step * 1e3:.1f} ms"
            f" | {speed:.0f} tok/s" + (f" | Skipped: {skipped}" if skipped else "")
        )
        self._record(
            loss=metrics.loss, perplexity=metrics.perplexity, accuracy=metrics.accuracy, lr=lr, grad_norm=norm,
            ms=seconds_per_step * 1e3, tokens_per_second=speed, skipped=skipped,
        )  # fmt: skip

    def _evaluate(self) -> None:
        """Measure the held-out loss, unless a signal comes meanwhile. Keep the weights if they are the best so far."""
        is_first = not self.history.evaluations
        metrics = None
        with suppress(Dropped), self.train_step.droppable():
            metrics = self.held_out.evaluate(stopped=lambda: self.ranks.size == 1 and self._stopped_by is not None)
        if metrics is None:
            return
        self.console.line(f"[Step {self.step}] Validation {metrics}")
        if is_first:
            loss, bits = self.held_out.guess()
            also = "" if bits is None else f" ({bits:.2f} bits/byte)"
            self.console.line(f"Guessing by frequency would give {loss:.2f}{also}.")
        self._best.offer(self.step, metrics.loss)
        self._record(
            val_loss=metrics.loss, val_perplexity=metrics.perplexity, val_accuracy=metrics.accuracy,
            val_bits_per_byte=metrics.bits_per_byte,
        )  # fmt: skip
        if self.history.memorizes:
            self.console.line(
                f"The validation loss has risen {RISES} times in a row: the model now memorizes its text. "
                f"{self._best} More --dropout, fewer --steps or more text help."
            )

    def _sample(self) -> None:
        """Show a text that the model writes, unless a signal comes meanwhile."""
        if self.samples is None or self._stopped_by is not None:
            return
        try:
            with self.train_step.droppable():
                text = self.samples.text()
        except (Dropped, UserError):  # a UserError says that the weights are not finite, as _stop_if_diverged will
            return
        head, *rest = printable(text).strip().split("\n")
        self.console.line("\n".join([f"[Step {self.step}] Sample: {head}", *(f"    {line}".rstrip() for line in rest)]))
        self._record(sample=text)

    def _record(self, **values: Any) -> None:
        self.history.record(self.step, self._clock.seconds(), **values)

    def _save(self) -> None:
        with self._clock.paused():
            weights, tensors = self.optimizer.weights_on_host(), self.optimizer.tensors_on_host()
            if self.ranks.is_first:
                self.history.sync()
                checkpoint.save(
                    self.run, self.step, self.model.config, self.train_config, weights, tensors, self.optimizer.state()
                )
                checkpoint.prune(self.run, self.train_config.keep_last)
            self.saved = self.step

    def _show_progress(self, steps_after_first: int) -> None:
        """Say once how long the run will take, and move the progress bar twice a second."""
        if steps_after_first == ESTIMATE_AFTER:
            self._estimate_rest(self._clock.seconds_per_step(self.step))
        if self._clock.due():
            self._advance(self.step, status=self._status(self._clock.seconds_per_step(self.step)))

    def _estimate_rest(self, seconds_per_step: float) -> None:
        seconds = seconds_per_step * (self.train_config.total_steps - self.step)
        self.console.line(f"At {seconds_per_step * 1e3:.0f} ms a step the rest will take about {duration(seconds)}.")
        if self.ops.is_cpu and seconds > LONG_ON_A_CPU:
            self.console.line("That is long on a CPU: --preset tiny trains a small model in minutes.")

    def _status(self, seconds_per_step: float) -> str:
        """The text beside the progress bar: "120/400, loss 3.210, val 3.456, 33.7k tok/s"."""
        evaluations = self.history.evaluations
        val = f", val {evaluations[-1][1]:.3f}" if evaluations else ""
        return (
            f"{self.step}/{self.train_config.total_steps}, loss {self.train_step.metrics().loss:.3f}{val}, "
            f"{rate(self.train_step.tokens / seconds_per_step)} tok/s"
        )

    def _stop_if_diverged(self) -> None:
        if count := self._diverged_for():
            self._save()
            self.ranks.share()  # after the first rank has saved: an error of another would end it
            raise UserError(
                f"the loss or its gradient was not finite in the last {count} step{'s' * (count > 1)}, up to step "
                f"{self.step} (saved); start again with a lower --lr (it is {self.train_config.peak_lr:g}), "
                f"a longer --warmup-steps or a --grad-clip above 0{blame(self.ops)}"
            )

    def _diverged_for(self) -> int:
        """The steps up to this one that were not finite, if they are too many; else 0.

        Ten in a row are too many. At the end of the training, one is too many if the held-out loss is not finite
        either, and two are if that was not measured.
        """
        count: int = self.optimizer.state()["skipped_in_a_row"]
        enough = MAX_SKIPPED_IN_A_ROW
        if self.step == self.train_config.total_steps:
            losses = [loss for step, loss in self.history.evaluations if step == self.step]
            if not losses:
                enough = min(enough, 2)
            elif not math.isfinite(losses[-1]):
                enough = 1
        return count if count >= enough else 0
