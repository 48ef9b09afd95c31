"""How fast this machine trains a model of some shape, and where the time goes: the figures that `hipgpt bench` prints.

The steps are those of `hipgpt train`, on random tokens and without a run directory. The figures are made like this:

- The time of a step is the median over groups of steps, after a warm-up (gpt/timing.py). A run waits for its device
  only when it logs, so the device is waited for only at the ends of a group.
- The floating-point operations of a model are counted by the usual formula (Chowdhery et al. 2022, appendix B),
  6 · parameters + 12 · layers · dim · seq per token, whatever the kernels do.
- The peak comes from no data sheet. It is the speed of one large matrix product here and now, computed by the same
  library and in the same precision as the products of the model.
- Operations are timed by marks in the device's timeline, in passes that replay no graph. A GPU is quicker than the host
  that asks it, so two marks around a short operation would measure the host. Therefore the GPU first gets large
  products to do, and a whole step is queued behind them. A call that the GPU reached before the host had queued all of
  it counts as late, because its time may include waiting. The times of the others are their own, with a microsecond or
  two for the start of a kernel.
"""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from gpt import plan
from gpt.batches import Batches
from gpt.config import NO_EOS, ModelConfig, SamplingConfig, TrainConfig
from gpt.decoder import Decoder, Request, Stream
from gpt.generate import MOST_PLACES, batch_for, fitting
from gpt.initialization import initial_weights
from gpt.model import GPT
from gpt.ops.interface import Affine, Operations
from gpt.optim import stacks_here
from gpt.parameters import parameter_count
from gpt.system.console import size
from gpt.timing import Groups, after, time_groups
from gpt.trainer import TrainStep

WARM_UP = 3  # steps after the first, in which graphs are recorded and the GPU's clock rises
PASSES = 3  # passes over the operations of a step
ATTEMPTS = 4  # attempts to queue whole passes before the device begins them
GPU_PRODUCT, LEAST_PRODUCT, CPU_PRODUCT = 8192, 1024, 2048  # rows and columns of the product that measures the peak
GENERATED = 200  # tokens of one sequence
GENERATED_TOGETHER = 50  # tokens of each of several
TOGETHER_ON_CPU = 16  # sequences; on a GPU as many as a decoder has places


class Operation(NamedTuple):
    """All calls of one operation in a step."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Pass:
    """One step, operation by operation, the longest first."""

    operations: list[Operation]
    seconds: float  # from the beginning of the first operation to the end of the last
    late: int  # number of calls that the device may have waited for

    @property
    def between(self) -> float:
        """The seconds that the device spent in no operation."""
        return self.seconds - sum(operation.seconds for operation in self.operations)


@dataclass(frozen=True)
class Report:
    """All that was measured. Times are in seconds."""

    device: str
    notes: list[str]  # about the device, for the user
    precision: str
    model_config: ModelConfig
    sequences: int  # in a step
    first_step: float  # from the beginning of the command to the end of the first step
    steps: Groups
    held_bytes: int  # memory of the device that this process holds after those steps
    planned_bytes: int  # its part for weights, gradients, moments and activations
    product_size: int  # rows and columns
    product: Groups
    operations: Pass
    generated_per_second: float
    together: int  # sequences that are written at once
    together_per_second: float  # tokens of all of them

    @property
    def tokens_per_second(self) -> float:
        return self.sequences * self.model_config.max_seq_len / self.steps.median

    @property
    def model_flops(self) -> float:
        """Floating-point operations per second, by the formula."""
        return flops_per_token(self.model_config) * self.tokens_per_second

    @property
    def peak_flops(self) -> float:
        """Floating-point operations per second of the large product."""
        return 2 * self.product_size**3 / self.product.median

    def to_json(self) -> dict[str, Any]:
        one_pass = self.operations
        return {
            "device": self.device,
            "notes": self.notes,
            "precision": self.precision,
            "model": self.model_config.to_json(),
            "parameters": parameter_count(self.model_config),
            "tokens_per_step": self.sequences * self.model_config.max_seq_len,
            "first_step_s": self.first_step,
            "ms_per_step": self.steps.median * 1e3,
            "groups_ms_per_step": [seconds * 1e3 for seconds in self.steps.seconds],
            "steps_per_group": self.steps.calls,
            "tokens_per_second": self.tokens_per_second,
            "model_tflops": self.model_flops / 1e12,
            "peak_tflops": self.peak_flops / 1e12,
            "peak_product": self.product_size,
            "fraction_of_peak": self.model_flops / self.peak_flops,
            "held_bytes": self.held_bytes,
            "planned_bytes": self.planned_bytes,
            "generated_tokens_per_second": self.generated_per_second,
            "sequences_together": self.together,
            "generated_tokens_per_second_together": self.together_per_second,
            "operations": [
                {"name": name, "calls": calls, "ms": seconds * 1e3, "share": seconds / one_pass.seconds}
                for name, calls, seconds in one_pass.operations
            ],
            "between_operations_ms": one_pass.between * 1e3,
            "operations_and_between_ms": one_pass.seconds * 1e3,
            "late_calls": one_pass.late,
        }

    def __str__(self) -> str:
        one_pass, each = self.operations, ", ".join(f"{seconds * 1e3:.2f}" for seconds in self.steps.seconds)
        rows = [(name, seconds, str(calls)) for name, calls, seconds in one_pass.operations]
        rows += [("(between)", one_pass.between, ""), ("all", one_pass.seconds, "")]
        late = f"; {one_pass.late} calls were late, so that waiting counts too" if one_pass.late else ""
        lines = [
            f"Device:     {self.device}",
            *self.notes,
            f"Model:      {plan.describe(self.model_config)}",
            f"First step: done {self.first_step:.2f} s after the command began",
            f"Step:       {self.steps.median * 1e3:.2f} ms for {self.sequences} x {self.model_config.max_seq_len} "
            f"tokens, the median of {each} (means of {self.steps.calls})",
            f"Tokens:     {self.tokens_per_second:,.0f} a second",
            f"Arithmetic: {self.model_flops / 1e12:.3g} TFLOP/s by the formula, "
            f"{self.model_flops / self.peak_flops:.1%} of the {self.peak_flops / 1e12:.3g} that a product of "
            f"{self.product_size} x {self.product_size} matrices in {self.precision} reaches here",
            f"Memory:     {size(self.held_bytes)} held, {size(self.planned_bytes)} of it planned before the first step",
            f"Generating: {self.generated_per_second:,.0f} tokens a second, one sequence; "
            f"{self.together_per_second:,.0f}, {self.together} sequences at once",
            "",
            f"One step, operation by operation, without a graph{late}:",
            f"{'OPERATION':<22}{'MS':>11}{'SHARE':>8}{'CALLS':>7}",
        ]
        for name, seconds, calls in rows:
            lines.append(f"{name:<22}{seconds * 1e3:>11.3f}{seconds / one_pass.seconds:>8.1%}{calls:>7}".rstrip())
        return "\n".join(lines)


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of the forward and backward passes per token, by the formula."""
    return 6 * parameter_count(config) + 12 * config.num_layers * config.embed_dim * config.max_seq_len


def measure(
    model_config: ModelConfig, train_config: TrainConfig, ops: Operations, *, steps: int | None, began: float,
    advance: Callable[[int], object],
) -> Report:  # fmt: skip
    """Train such a model on `ops` in groups of `steps` steps (None: about a second's worth), and generate with it.

    `began` is the time.perf_counter() of the command's beginning. `advance` is called with the number of parts that
    are done, of 4. Raises UserError if the device lacks the memory.
    """
    planned, _ = plan.memory(model_config, train_config, ops)
    stacks = stacks_here(model_config, train_config, ops)
    ops.check_products(model_config, train_config.batch_size, training=True, stacks=stacks)
    batches = _random_batches(model_config, train_config)
    first_step, groups, held = _time_steps(TrainStep(model_config, train_config, batches, ops), steps, began)
    advance(1)
    product = Product(ops, planned)
    advance(2)
    operations = _time_operations(model_config, train_config, batches, TimedOps(ops), product.occupy)
    advance(3)
    generated = _generated_per_second(model_config, train_config.seed, ops, 1, GENERATED)
    together = fitting(model_config, ops, TOGETHER_ON_CPU if ops.is_cpu else MOST_PLACES)
    generated_together = _generated_per_second(model_config, train_config.seed, ops, together, GENERATED_TOGETHER)
    advance(4)
    return Report(
        device=ops.description,
        notes=list(ops.notes),
        precision=ops.precision,
        model_config=model_config,
        sequences=train_config.batch_size * train_config.accumulate,
        first_step=first_step,
        steps=groups,
        held_bytes=held,
        planned_bytes=planned,
        product_size=product.size,
        product=product.groups,
        operations=operations,
        generated_per_second=generated,
        together=together,
        together_per_second=generated_together,
    )


def _random_batches(model_config: ModelConfig, train_config: TrainConfig) -> Batches:
    """Four batches of tokens, over and over, of the type that tokens on disk have."""
    batch, seq, vocab_size = train_config.batch_size, model_config.max_seq_len, model_config.vocab_size
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    tokens = np.random.default_rng(train_config.seed).integers(vocab_size, size=4 * batch * seq + 1, dtype=dtype)
    return Batches(tokens, batch, seq, sampling=train_config.sampling, seed=train_config.seed, val_fraction=0)


def _time_steps(train_step: TrainStep, steps: int | None, began: float) -> tuple[float, Groups, int]:
    """The seconds from `began` to the end of the first step, the groups after a warm-up, and the bytes then held."""
    train_step.optimizer.initialize(initial_weights(train_step.model.config, train_step.train_config.seed))
    numbers = itertools.count(1)
    now = after(train_step.metrics)

    def step() -> None:
        train_step.run(next(numbers))

    step()
    first_step = now() - began
    for _ in range(WARM_UP):
        step()
    return first_step, time_groups(step, now, steps), train_step.ops.held_bytes()


class Product:
    """A large matrix product, computed as the model's own are. It measures the peak, and keeps a GPU busy.

    On a GPU it is as large as fits beside `planned` bytes, up to GPU_PRODUCT.
    """

    def __init__(self, ops: Operations, planned: int) -> None:
        self.ops, size = ops, CPU_PRODUCT if ops.is_cpu else GPU_PRODUCT
        while size > LEAST_PRODUCT and 2 * size**2 * 4 > ops.free_bytes() - planned:
            size //= 2
        self.size, self._x, self._out = size, ops.empty((size, size)), ops.empty((size, size))
        # The numbers are random, because a GPU that multiplies zeros draws less power and is faster.
        ops.copy(np.random.default_rng(0).standard_normal((size, size), np.float32), out=self._x)
        self._multiply()  # the first call plans, or compiles, the product
        self.groups = time_groups(self._multiply, after(self._wait))

    def occupy(self, seconds: float) -> None:
        """Give a GPU work for about `seconds`, and return at once. A CPU, which would do it first, gets none."""
        if not self.ops.is_cpu:
            for _ in range(math.ceil(seconds / self.groups.median)):
                self._multiply()

    def _multiply(self) -> None:
        self.ops.linear(self._x, Affine(self._x, bias=None), out=self._out)

    def _wait(self) -> None:
        self.ops.to_host(self._out[:1])


class TimedOps:
    """An operations object that marks the begin and the end of every operation asked of it."""

    def __init__(self, ops: Operations) -> None:
        self._ops, self._timeline = ops, ops.timeline
        self._calls: list[tuple[str, Any, Any]] = []  # name, and marks at the beginning and the end
        self._late = 0

    def replayed(self, function: Callable[[], object]) -> Callable[[], object]:
        """The function itself, because a recording that is replayed would count as a single operation."""
        return function

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._ops, name)
        if not callable(attribute) or name in vars(Operations):  # those of Arithmetic are timed
            return attribute

        def operation(*args: Any, **kwargs: Any) -> Any:
            begin = self._timeline.mark()
            result = attribute(*args, **kwargs)
            self._calls.append((name, begin, self._timeline.mark()))
            self._late += self._timeline.has_passed(begin)
            return result

        return operation

    def time(self, step: Callable[[], object]) -> Pass:
        """Run `step`, and time every operation that it asks for."""
        self._calls.clear()
        self._late = 0
        step()
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for name, begin, end in self._calls:
            seconds[name].append(self._timeline.seconds_between(begin, end))
        whole = self._timeline.seconds_between(self._calls[0][1], self._calls[-1][2])
        operations = [Operation(name, len(each), math.fsum(each)) for name, each in seconds.items()]
        return Pass(sorted(operations, key=lambda operation: -operation.seconds), whole, self._late)


def _time_operations(
    model_config: ModelConfig,
    train_config: TrainConfig,
    batches: Batches,
    ops: TimedOps,
    occupy: Callable[[float], None],
) -> Pass:
    # TimedOps has all of the operations by __getattr__.
    train_step = TrainStep(model_config, train_config, batches, cast(Operations, ops))
    train_step.optimizer.initialize(initial_weights(model_config, train_config.seed))
    numbers = itertools.count(1)
    return time_ahead(ops, lambda: train_step.run(next(numbers)), occupy)


def time_ahead(ops: TimedOps, step: Callable[[], object], occupy: Callable[[float], None]) -> Pass:
    """The middle one, by time, of PASSES passes over `step`.

    Before each, `occupy` keeps the device busy while the host queues the pass: for as long as queueing took at the last
    attempt, and twice as long if calls were late.
    """
    ops.time(step)
    begin = time.perf_counter()
    ops.time(step)
    ahead = time.perf_counter() - begin
    for _ in range(ATTEMPTS):
        passes = []
        for _ in range(PASSES):
            occupy(ahead)
            passes.append(ops.time(step))
        if not any(each.late for each in passes):
            break
        ahead *= 2
    return sorted(passes, key=lambda each: each.seconds)[PASSES // 2]


def _generated_per_second(config: ModelConfig, seed: int, ops: Operations, sequences: int, tokens: int) -> float:
    """The tokens a second of so many sequences together, from their first tokens on, without those of the warm-up."""
    model = GPT(config, ops, batch_for(config, sequences))
    model.initialize(seed)
    decoder = Decoder(model, sequences)
    for number in range(sequences):
        stream = Stream(seed, sample=number)
        decoder.join(Request([0], WARM_UP + tokens, SamplingConfig(), NO_EOS, stream, config.max_seq_len))
    began, warm, counts = time.perf_counter(), 0, [0] * sequences
    while decoder.sequences:
        for sequence, id in decoder.step():
            if id is not None:
                counts[sequence.place] += 1
        if counts[-1] <= WARM_UP:
            began, warm = time.perf_counter(), sum(counts)
    return (sum(counts) - warm) / (time.perf_counter() - began)
