"""One step of training: batch, forward and backward pass, update."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

from gpt.batches import Batches, token_order
from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.ranks import ALONE, Ranks
from gpt.evaluation import Metrics
from gpt.model import TrainableGPT
from gpt.ops.interface import Array, Operations, Work
from gpt.optim import Optimizer
from gpt.schedule import learning_rate

Droppable: TypeAlias = Callable[[], AbstractContextManager[None]]


class TrainStep:
    """One step of training, as a function of its number, with all that it reads and writes.

    That is a model, its optimizer and its batches. A step adds up the gradients of `accumulate` batches, and each of
    several ranks computes as many of them: rank r of R those with the numbers r, R + r, 2 R + r and so on.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        batches: Batches,
        ops: Operations,
        ranks: Ranks = ALONE,
    ) -> None:
        self.train_config, self.batches, self.ops, self.ranks = train_config, batches, ops, ranks
        self.model = TrainableGPT(model_config, ops, train_config.batch_size, train_config.recompute, train_config.lora)
        self.optimizer = Optimizer(self.model, train_config, ranks)
        shape = (train_config.batch_size, model_config.max_seq_len)
        self.tokens = train_config.accumulate * math.prod(shape)  # that a step reads, on all ranks
        self.counted = self.tokens  # labels of the step that count
        self._passes = train_config.accumulate // ranks.size  # of this rank in a step
        self._inputs = ops.inputs(
            ids=(shape, "int32"), labels=(shape, "int32"), order=((math.prod(shape),), "int32"),
            scale=((1,), "float32"), dropout_key=((2,), "uint32"), lr=((1,), "float32"),
        )  # fmt: skip
        self.model.dropout_key = self._inputs.device["dropout_key"]
        self._pass = _Pass(self.model, self.optimizer, self._inputs.device)
        # A GPU records each of these when it runs for the second time, and replays the recording from then on.
        self._only_pass = ops.replayed(partial(self._pass, first=True, last=True))
        self._first_pass = ops.replayed(partial(self._pass, first=True))
        self._middle_pass = ops.replayed(self._pass)
        self._last_pass = ops.replayed(partial(self._pass, last=True))

    @property
    def droppable(self) -> Droppable:
        """Work inside this may be given up: see `run`."""
        return self._pass.droppable

    @droppable.setter
    def droppable(self, droppable: Droppable) -> None:
        self._pass.droppable = droppable

    def run(self, number: int) -> None:
        """Take step `number` (the first is 1): the gradients of its batches, and one update. Waits for nothing.

        Work inside `droppable` may be given up, because it changes nothing that a checkpoint holds. On a CPU that is
        all but the update. A GPU finishes the work that it was given, so only the host's work between passes is.
        """
        if self.batches.counted is not None:
            first = (number - 1 - self.train_config.text_start) * self.train_config.accumulate
            self.counted = sum(map(self.batches.count, range(first, first + self.train_config.accumulate)))
        for micro_step in range(self._passes):
            with self.droppable():
                self._write_inputs(number, micro_step)
            self._pass_of(micro_step)()

    def _write_inputs(self, number: int, micro_step: int) -> None:
        config = self.train_config
        # It counts the batches of all ranks since the run's first step.
        index = (number - 1) * config.accumulate + micro_step * self.ranks.size + self.ranks.rank
        with self._inputs.written() as inputs:
            self.batches.train(index - config.text_start * config.accumulate, out=(inputs["ids"], inputs["labels"]))
            inputs["order"][...] = token_order(inputs["ids"], self.model.sequences)
            inputs["scale"][...] = 1 / max(1, self.counted)
            inputs["dropout_key"][...] = config.seed % 2**32, index % 2**32
            inputs["lr"][...] = learning_rate(number, config)

    def _pass_of(self, micro_step: int) -> Work:
        last = self._passes - 1
        if last == 0:
            return self._only_pass
        if micro_step == 0:
            return self._first_pass
        return self._last_pass if micro_step == last else self._middle_pass

    def metrics(self) -> Metrics:
        """The metrics of the last step. Waits until all work so far is done."""
        return Metrics.of(self.ops.to_host(self.model.metrics), max(1, self.counted))


class _Pass:
    """The forward and backward pass of a batch, and after the last one of a step the update.

    It is not a method of TrainStep, which keeps recordings of it: the two would keep each other, and all arrays, alive.
    """

    def __init__(self, model: TrainableGPT, optimizer: Optimizer, inputs: Mapping[str, Array]) -> None:
        self._model, self._optimizer, self._inputs = model, optimizer, inputs
        self.droppable: Droppable = nullcontext

    def __call__(self, first: bool = False, last: bool = False) -> None:
        """`first`: gradients and metrics begin anew. `last`: clip, and update the weights."""
        inputs, model = self._inputs, self._model
        with self.droppable() if model.ops.is_cpu else nullcontext():
            if first:
                model.ops.clear(model.metrics)
            ids, labels, order, scale = (inputs[name] for name in ("ids", "labels", "order", "scale"))
            block_done = self._optimizer.block_done if last else None
            model.loss_and_gradients(ids, labels, order, scale, block_done, fresh=first)
        if last:
            self._optimizer.step(inputs["lr"])
