"""How fast this machine trains a model of some shape, and where the time goes: what `hipgpt bench` prints.

The steps are those of `hipgpt train`, on random tokens and without a run directory. How the numbers come about:

- A step's time is the median over groups of steps, after a warm-up. The device is waited for only at the ends of a
  group, as a run waits for it only when it logs.
- A model's floating-point operations are counted by the usual formula (Chowdhery et al. 2022, appendix B),
  6 · parameters + 12 · layers · dim · seq for a token, whatever the kernels do.
- The peak is no data sheet's: it is what one large matrix product reaches here and now, on the path and in the
  precision of the model's own products.
- Operations are timed by marks in the device's timeline, in passes that replay no graph. Two marks around a quick
  operation would measure the host, which asks more slowly than a GPU works. So the GPU is first given large products
  to do, and a whole step is queued behind them. A call that the GPU reached before all of it was queued is late: its
  time may hold some waiting. That of the others is the work's own, with a microsecond or two for a kernel's start.
"""

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from gpt import plan
from gpt.batches import Batches
from gpt.config import ModelConfig, SamplingConfig, TrainConfig
from gpt.generate import draw
from gpt.model import GPT
from gpt.ops.interface import Affine, Operations
from gpt.parameters import parameter_count
from gpt.system.console import size
from gpt.trainer import Training

GROUPS = 3
GROUP_SECONDS = 1.0  # about what a group takes where nobody says how long it is
WARM_UP = 3  # steps after the first, in which graphs are captured and the GPU's clock rises
PASSES = 3  # over the operations of a step
ATTEMPTS = 4  # at queueing passes before the device begins them
GPU_PRODUCT, LEAST_PRODUCT, CPU_PRODUCT = 8192, 1024, 2048  # rows and columns of the product that measures the peak
GENERATED = 200  # tokens


class Groups(NamedTuple):
    """Something done `count` times in a row, in each of some groups."""

    count: int
    seconds: list[float]  # for each group, of one time

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Operation(NamedTuple):
    """All calls of one operation in a step."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Pass:
    """One step, operation by operation, the longest first."""

    operations: list[Operation]
    seconds: float  # from the first one's begin to the last one's end
    late: int  # calls that the device may have waited for

    @property
    def between(self) -> float:
        """Seconds in none of them."""
        return self.seconds - sum(operation.seconds for operation in self.operations)


@dataclass(frozen=True)
class Report:
    """What was measured. Times are in seconds."""

    device: str
    notes: list[str]  # what the user should know about it
    precision: str
    model: ModelConfig
    sequences: int  # in a step
    first_step: float  # from the command's begin to its end
    steps: Groups
    held_bytes: int  # on the device, by this process, after those steps
    planned_bytes: int  # by the model, its gradients and moments, and its activations
    product_size: int
    product: Groups
    operations: Pass
    generated_per_second: float

    @property
    def tokens_per_second(self) -> float:
        return self.sequences * self.model.max_seq_len / self.steps.median

    @property
    def model_flops(self) -> float:
        """Floating-point operations a second."""
        return flops_per_token(self.model) * self.tokens_per_second

    @property
    def peak_flops(self) -> float:
        return 2 * self.product_size**3 / self.product.median

    def to_json(self) -> dict[str, Any]:
        one_pass = self.operations
        return {
            "device": self.device,
            "notes": self.notes,
            "precision": self.precision,
            "model": self.model.to_json(),
            "parameters": parameter_count(self.model),
            "tokens_per_step": self.sequences * self.model.max_seq_len,
            "first_step_s": self.first_step,
            "ms_per_step": self.steps.median * 1e3,
            "groups_ms_per_step": [seconds * 1e3 for seconds in self.steps.seconds],
            "steps_per_group": self.steps.count,
            "tokens_per_second": self.tokens_per_second,
            "model_tflops": self.model_flops / 1e12,
            "peak_tflops": self.peak_flops / 1e12,
            "peak_product": self.product_size,
            "fraction_of_peak": self.model_flops / self.peak_flops,
            "held_bytes": self.held_bytes,
            "planned_bytes": self.planned_bytes,
            "generated_tokens_per_second": self.generated_per_second,
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
            f"Model:      {plan.describe(self.model)}",
            f"First step: done {self.first_step:.2f} s after the command began",
            f"Step:       {self.steps.median * 1e3:.2f} ms for {self.sequences} x {self.model.max_seq_len} tokens, the "
            f"median of {each} (means of {self.steps.count})",
            f"Tokens:     {self.tokens_per_second:,.0f} a second",
            f"Arithmetic: {self.model_flops / 1e12:.3g} TFLOP/s by the formula, "
            f"{self.model_flops / self.peak_flops:.1%} of the {self.peak_flops / 1e12:.3g} that a product of "
            f"{self.product_size} x {self.product_size} matrices in {self.precision} reaches here",
            f"Memory:     {size(self.held_bytes)} held, {size(self.planned_bytes)} of it planned before the first step",
            f"Generating: {self.generated_per_second:,.0f} tokens a second, one sequence",
            "",
            f"One step, operation by operation, without a graph{late}:",
            f"{'OPERATION':<22}{'MS':>11}{'SHARE':>8}{'CALLS':>7}",
        ]
        for name, seconds, calls in rows:
            lines.append(f"{name:<22}{seconds * 1e3:>11.3f}{seconds / one_pass.seconds:>8.1%}{calls:>7}".rstrip())
        return "\n".join(lines)


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations of a token's way forward and back, by the formula."""
    return 6 * parameter_count(model) + 12 * model.num_layers * model.embed_dim * model.max_seq_len


def measure(
    model: ModelConfig, config: TrainConfig, ops: Operations, *, steps: int | None, began: float,
    advance: Callable[[int], object],
) -> Report:  # fmt: skip
    """Train such a model on `ops` in groups of `steps` steps (None: about a second's worth), and generate with it.

    `began`, of time.perf_counter(), is what the first step is counted from; `advance` hears how many of the 4 parts
    are done. Raises UserError if the memory is not there.
    """
    planned, _ = plan.memory(model, config, ops)
    batches = _random_batches(model, config)
    first_step, groups, held = _time_steps(Training(model, config, batches, ops), steps, began)
    advance(1)
    product = Product(ops, planned)
    advance(2)
    operations = _time_operations(model, config, batches, TimedOps(ops), product.occupy)
    advance(3)
    generated = _generated_per_second(model, config.seed, ops)
    advance(4)
    return Report(
        ops.description, list(ops.notes), ops.precision, model, config.batch_size * config.accumulate, first_step,
        groups, held, planned, product.size, product.groups, operations, generated,
    )  # fmt: skip


def _random_batches(model: ModelConfig, config: TrainConfig) -> Batches:
    """Four batches of tokens, over and over, of the type that tokens on disk have."""
    count = 4 * config.batch_size * model.max_seq_len + 1
    dtype = np.uint16 if model.vocab_size <= 2**16 else np.uint32
    tokens = np.random.default_rng(config.seed).integers(model.vocab_size, size=count, dtype=dtype)
    return Batches(
        tokens, config.batch_size, model.max_seq_len, sampling=config.sampling, seed=config.seed, val_fraction=0
    )


def _groups(once: Callable[[], object], wait: Callable[[], object], count: int | None = None) -> Groups:
    """Time what `once` asks for, `wait` returning when all of it is done."""

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            once()
        wait()
        return (time.perf_counter() - begin) / count

    count = count or max(1, round(GROUP_SECONDS / seconds(1)))
    return Groups(count, [seconds(count) for _ in range(GROUPS)])


def _time_steps(training: Training, steps: int | None, began: float) -> tuple[float, Groups, int]:
    """Seconds from `began` to the end of the first step, the groups after it, and the bytes then held."""
    training.model.initialize(training.config.seed)
    numbers = itertools.count(1)

    def step() -> None:
        training.step(next(numbers))

    step()
    training.metrics()
    first = time.perf_counter() - began
    for _ in range(WARM_UP):
        step()
    training.metrics()
    return first, _groups(step, training.metrics, steps), training.ops.held_bytes()


class Product:
    """A large matrix product in the operations' own way: what the device can do, and what keeps it busy.

    On a GPU it is as large as fits beside `planned` bytes, up to GPU_PRODUCT.
    """

    def __init__(self, ops: Operations, planned: int) -> None:
        self.ops, size = ops, CPU_PRODUCT if ops.is_cpu else GPU_PRODUCT
        while size > LEAST_PRODUCT and 2 * size**2 * 4 > ops.free_bytes() - planned:
            size //= 2
        self.size, self._x, self._out = size, ops.empty((size, size)), ops.empty((size, size))
        # Random numbers: a GPU that multiplies zeros draws less power and is faster.
        ops.copy(np.random.default_rng(0).standard_normal((size, size), np.float32), out=self._x)
        self._multiply()  # planned, or compiled, here
        self._wait()
        self.groups = _groups(self._multiply, self._wait)

    def occupy(self, seconds: float) -> None:
        """Give a GPU about so much to do, and return at once."""
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
        self._calls: list[tuple[str, Any, Any]] = []  # name, begin and end
        self._late = 0

    def replayed(self, function: Callable[[], object]) -> Callable[[], object]:
        """The function itself: what is replayed is one operation, and this is about all that it is made of."""
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
        """Every operation that `step` asks for."""
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
    model: ModelConfig, config: TrainConfig, batches: Batches, ops: TimedOps, occupy: Callable[[float], None]
) -> Pass:
    training = Training(model, config, batches, cast(Operations, ops))  # it has all of them by __getattr__
    training.model.initialize(config.seed)
    numbers = itertools.count(1)
    return time_ahead(ops, lambda: training.step(next(numbers)), occupy)


def time_ahead(ops: TimedOps, step: Callable[[], object], occupy: Callable[[float], None]) -> Pass:
    """The middle one of some passes over `step`, queued while the device is kept busy by `occupy`, if that can be."""
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


def _generated_per_second(config: ModelConfig, seed: int, ops: Operations) -> float:
    model = GPT(config, ops)
    model.initialize(seed)
    ids = draw(model, [0], WARM_UP + GENERATED, SamplingConfig(), eos_id=-1, seed=seed, window=config.max_seq_len)
    for _ in itertools.islice(ids, WARM_UP):
        pass
    begin = time.perf_counter()
    count = sum(1 for _ in ids)
    return count / (time.perf_counter() - begin)
