"""How the weights move: gradient clipping, and two optimizers, AdamW and Muon. gpt/schedule.py has the learning rate.

AdamW scales every element of a gradient by the past sizes of that element. Muon looks at a weight matrix as a whole:
its step is the gradient's momentum with all singular values made about 1, so that rare directions move as far as
frequent ones. Muon moves the matrices of the blocks; AdamW moves embeddings, head, biases and layer norms.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.collectives import Exchange
from gpt.distributed.ranks import ALONE, Ranks
from gpt.distributed.reduction import Reduction
from gpt.distributed.shares import Region
from gpt.lora import trained_shapes
from gpt.model import TrainableGPT
from gpt.ops.interface import AdamBuffers, Array, Operations, Stack, StackShape, UpdateRule
from gpt.parameters import matrix_names, matrix_spans, stack_shapes

BETAS = {"adamw": (0.9, 0.95), "muon": (0.9, 0.99)}  # AdamW's, alone and beside Muon
EPS = 1e-8  # AdamW's
MOMENTUM = 0.9  # Muon's
PLAN = 6  # size of the plan, the numbers that the steps of all optimizers share: see Operations.plan_update
COUNTERS = ("adam_step", "skipped", "skipped_in_a_row")

# Newton-Schulz steps x (a + b x² + c x⁴) that bring singular values in [0.001, 1] to about 1. No other five polynomials
# of this form, applied in turn, have a smaller largest error (Polar Express, Amsel et al. 2025). Each but the last gets
# its argument divided by 1.01, because rounding to bf16 can leave a singular value slightly above the range.
_POLAR_EXPRESS = (
    (8.287212018145622, -23.59588651909882, 17.300387312530923),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
NEWTON_SCHULZ = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1]),
    _POLAR_EXPRESS[-1],
)


def optimizer_shapes(model_config: ModelConfig, optimizer: str, lora: int | None = None) -> dict[str, tuple[int, ...]]:
    """Name → shape of every float32 tensor that `optimizer`, "adamw" or "muon", keeps between steps.

    Adam keeps two moments of a tensor, exp_avg.NAME and exp_avg_sq.NAME. Muon keeps one of a matrix, momentum.NAME.
    With `lora` the tensors are the adapters of that rank.
    """
    shapes = trained_shapes(model_config, lora)
    muon = set(matrix_names(model_config)) if optimizer == "muon" else set()
    kept = {f"momentum.{name}": shapes[name] for name in shapes if name in muon}
    for moment in ("exp_avg", "exp_avg_sq"):
        kept |= {f"{moment}.{name}": shape for name, shape in shapes.items() if name not in muon}
    return kept


def optimizer_bytes(config: ModelConfig, train_config: TrainConfig, ops: Operations, ranks: Ranks = ALONE) -> int:
    """Bytes of the arrays that an Optimizer on `ops` keeps or needs for a while; nothing is allocated."""
    optimizer = train_config.optimizer
    shares = ranks.shares(config, ops.vocab_multiple, optimizer, train_config.lora)
    floats = 2 * shares.adamw.size + shares.muon.size  # moments
    rounded = 0
    largest = 0  # stretch that is gathered to be saved
    for region in (shares.muon, shares.adamw):
        if not region.is_whole:  # own gradients and, if products read bf16, own copy
            floats += region.size
            rounded += region.size if ops.low_precision else 0
            largest = max(largest, *(stretch.stop - stretch.start for stretch in region.stretches))
        if not region.is_whole or ops.low_precision:
            floats += region.size  # exact weights
        if ranks.size > 1 and train_config.reduce_precision == "bf16":
            rounded += region.stop - region.start + (0 if region.is_whole else region.size)
    stacks = stacks_here(config, train_config, ops, ranks)
    return 4 * (floats + largest) + 2 * rounded + (ops.muon_bytes(stacks) if stacks else 0)


def stacks_here(
    config: ModelConfig, train_config: TrainConfig, ops: Operations, ranks: Ranks = ALONE
) -> list[StackShape]:
    """The shapes of the stacks of matrices that Muon moves on this rank; [] for AdamW, or if it has none."""
    own = ranks.shares(config, ops.vocab_multiple, train_config.optimizer, train_config.lora).muon.size
    layers = own // sum(stride for _, stride in matrix_spans(config, ops.vocab_multiple))
    return [(layers, rows, columns) for _, rows, columns in stack_shapes(config)] if layers else []


class Optimizer:
    """Moves a model's weights by AdamW (Loshchilov & Hutter 2019), or by Muon (Jordan et al. 2024) and AdamW.

    `train_config.optimizer` says which. Gradients are first clipped to a global norm of `train_config.grad_clip` (0 is
    off). Decay applies to 2-D tensors. Muon's steps have the size of AdamW's (Liu et al. 2025), so that both use one
    learning rate and one weight decay. A step with a loss or a gradient norm that is not finite changes only
    `counters`.

    The optimizer has the float32 weights that learn and keeps the model's own up to date. They are the same arrays if
    products read float32.

    With several `ranks`, it sums up the ranks' gradients first, and steps this rank's share of the elements
    (gpt/distributed/shares.py). Then all ranks gather the model's weights.
    """

    def __init__(self, model: TrainableGPT, train_config: TrainConfig, ranks: Ranks = ALONE) -> None:
        self.model, self.ops, self.train_config, self.ranks = model, model.ops, train_config, ranks
        ops = model.ops
        self.shares = ranks.shares(model.config, ops.vocab_multiple, train_config.optimizer, train_config.lora)
        self._muon, self._adamw = (_Buffers(region, model) for region in (self.shares.muon, self.shares.adamw))
        self._exp_avg, self._exp_avg_sq = (ops.zeros(self.shares.adamw.size, "float32") for _ in range(2))
        self._momentum = ops.zeros(self.shares.muon.size, "float32")
        self.norm = ops.zeros(1, "float64")
        self.counters = ops.zeros(len(COUNTERS), "int64")
        self._plan = ops.zeros(PLAN, "float64")
        self.coefficients = NEWTON_SCHULZ
        self._rule = UpdateRule(BETAS[train_config.optimizer], EPS, train_config.weight_decay, train_config.grad_clip)
        self._buffers, self._stacks = self._adam_buffers(), self._muon_stacks()
        self._reduction: Reduction | None = None
        if ranks.size > 1:
            self._reduction = self._made_reduction()
            self._norms, self._own_norms = ops.zeros(2 * ranks.size, "float64"), ops.zeros(2, "float64")

    def _adam_buffers(self) -> AdamBuffers:
        """What AdamW goes over: everything that Muon does not step."""
        own, decayed = self._adamw, self.shares.adamw.own_before(self.model.trained.decayed)
        return AdamBuffers(own.weights, own.gradients, self._exp_avg, self._exp_avg_sq, own.copy, decayed)

    def _muon_stacks(self) -> list[Stack]:
        """The matrices that Muon steps on this rank, those of one shape together; none for AdamW."""
        own, stacks_of = self._muon, self.model.weights.stacks_of
        weights, gradients, momenta = map(stacks_of, (own.weights, own.gradients, self._momentum))
        copies = [None] * len(weights) if own.copy is None else stacks_of(own.copy)
        stacks = itertools.starmap(Stack, zip(weights, gradients, momenta, copies, strict=True))
        return [stack for stack in stacks if len(stack.weights)]

    def _made_reduction(self) -> Reduction:
        """The sum of the ranks' gradients, of which each rank keeps its own regions."""
        own = [(each.region, each.gradients) for each in (self._muon, self._adamw)]
        return Reduction(
            self.ops, self.model.gradients.flat, self.model.metrics, self.shares, own, self.ranks.collectives,
            in_bf16=self.train_config.reduce_precision == "bf16",
        )  # fmt: skip

    # ---- a step ---------------------------------------------------------------------------------------------------

    @property
    def block_done(self) -> Callable[[int], None] | None:
        """For `TrainableGPT.loss_and_gradients`, in the last batch of a step."""
        return self._reduction.block_is_final if self._reduction else None

    def step(self, lr: Array) -> None:
        """Move the weights by the model's gradients. `lr`, float32 [1], is the learning rate."""
        if self._reduction:
            self._reduction.finish()
        self._global_norm()
        self.ops.plan_update(self.norm, self.model.metrics, self.counters, lr, out=self._plan, rule=self._rule)
        if self._stacks:
            self.ops.muon(self._stacks, self._plan, momentum=MOMENTUM, coefficients=self.coefficients)
        self.ops.adamw(self._buffers, self._plan, self._rule)
        self._gather(self._muon)
        self._gather(self._adamw)

    def _global_norm(self) -> None:
        """The norm of the gradients; if ranks have shares of them, from the norms of the shares."""
        if self._muon.region.is_whole and self._adamw.region.is_whole:
            self.ops.global_norm(self.model.gradients.flat, out=self.norm)
            return
        for number, buffers in enumerate((self._muon, self._adamw)):
            if buffers.gradients.size and (self.ranks.is_first or not buffers.region.is_whole):
                self.ops.global_norm(buffers.gradients, out=self._own_norms[number : number + 1])
        bounds = tuple(range(0, 2 * self.ranks.size + 1, 2))
        self.ranks.collectives.gather([Exchange(self._norms, bounds, self._own_norms)])
        self.ranks.collectives.wait()
        self.ops.norm_of_norms(self._norms, out=self.norm)

    def _gather(self, buffers: "_Buffers") -> None:
        """Give every rank the model's weights that the ranks have moved, each its share."""
        if buffers.region.is_whole:
            return
        self.ranks.collectives.gather(buffers.region.exchanges(self.model.trained.flat, buffers.moved))
        self.ranks.collectives.wait()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def initialize(self, weights: Iterable[tuple[str, np.ndarray]]) -> None:
        """Begin, or go on, with these float32 weights, by name, in the model and here."""
        for name, tensor in weights:
            self.ops.copy(tensor, out=self.model.trained.named[name])
            start = self.model.trained.offsets[name]
            self._put(*self._flats(start)["weights"], start, tensor)

    def load(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, int]) -> None:
        """Go on from a checkpoint's tensors (named as `optimizer_shapes` names them) and counters."""
        for key, (kind, name) in self._moments().items():
            start = self.model.trained.offsets[name]
            self._put(*self._flats(start)[kind], start, tensors[key])
        self.ops.copy(np.array([counters[name] for name in COUNTERS], np.int64), out=self.counters)

    def weights_on_host(self) -> dict[str, np.ndarray]:
        """The float32 weights that learn, by name. All ranks must ask at once; only the first one's answer is used."""
        return self._on_host({name: ("weights", name) for name in self.model.trained.shapes})

    def tensors_on_host(self) -> dict[str, np.ndarray]:
        """The tensors of `optimizer_shapes`, as `weights_on_host`."""
        return self._on_host(self._moments())

    def state(self) -> dict[str, int]:
        """The counters by name, read from the device."""
        return dict(zip(COUNTERS, self.ops.to_host(self.counters).tolist(), strict=True))

    def _moments(self) -> dict[str, tuple[str, str]]:
        """The tensors of `optimizer_shapes`: the kind of array and the parameter of each, by its name.

        For example "exp_avg.x" is ("exp_avg", "x").
        """
        names = optimizer_shapes(self.model.config, self.train_config.optimizer, self.train_config.lora)
        split = {name: name.partition(".") for name in names}
        return {name: (kind, parameter) for name, (kind, _, parameter) in split.items()}

    def _on_host(self, wanted: Mapping[str, tuple[str, str]]) -> dict[str, np.ndarray]:
        """Tensors on the host, of these kinds of arrays and parameters; `_moments` has an example."""
        shapes, found = self.model.trained.shapes, {}
        fulls: dict[tuple[str, int], np.ndarray] = {}
        for key, (kind, name) in wanted.items():
            start, shape = self.model.trained.offsets[name], shapes[name]
            region, own = self._flats(start)[kind]
            part = slice(start - region.start, start - region.start + math.prod(shape))
            if region.is_whole:
                found[key] = self.ops.to_host(own[part].reshape(shape))
                continue
            if (kind, region.start) not in fulls:
                fulls[kind, region.start] = self._gathered_on_host(region, own)
            if self.ranks.is_first:
                found[key] = fulls[kind, region.start][part].reshape(shape)
        return found

    def _gathered_on_host(self, region: Region, own: Array) -> np.ndarray:
        """The elements of a region that all ranks keep together, float32 [stop - start]; for the first rank alone."""
        host = np.empty(region.stop - region.start if self.ranks.is_first else 0, np.float32)
        room = self.ops.empty(max(stretch.stop - stretch.start for stretch in region.stretches), "float32")
        for stretch, part in zip(region.stretches, region.own_parts(), strict=True):
            whole = room[: stretch.stop - stretch.start]
            self.ranks.collectives.gather([stretch.exchange(whole, own[part.own])])
            self.ranks.collectives.wait()
            if self.ranks.is_first:
                host[stretch.start - region.start : stretch.stop - region.start] = self.ops.to_host(whole)
        return host

    def _flats(self, element: int) -> dict[str, tuple[Region, Array]]:
        """The buffers that element `element` of the flat buffer is in, by their kind, with their region."""
        muon, adamw = self._muon, self._adamw
        if element < muon.region.stop:
            return {"weights": (muon.region, muon.weights), "momentum": (muon.region, self._momentum)}
        kinds = {"weights": adamw.weights, "exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}
        return {kind: (adamw.region, array) for kind, array in kinds.items()}

    def _put(self, region: Region, own: Array, start: int, tensor: np.ndarray) -> None:
        """Copy this rank's elements of a tensor, which starts at `start` of the flat buffer, into its own buffer."""
        values = tensor.reshape(-1)
        for part in region.within(start, start + values.size):
            low, high = part.elements.start - start, part.elements.stop - start
            self.ops.copy(values[low:high], out=own[part.own])


class _Buffers:
    """Flat arrays over the own elements of a region (`Shares`); gradients and weights are float32.

    They are views of the model's arrays if the region is whole, and weights only if the model's are float32.
    """

    def __init__(self, region: Region, model: TrainableGPT) -> None:
        self.region, ops = region, model.ops
        part, is_exact = slice(region.start, region.stop), not ops.low_precision
        is_view = region.is_whole
        self.gradients = model.gradients.flat[part] if is_view else ops.zeros(region.size, "float32")
        self.weights = model.trained.flat[part] if is_view and is_exact else ops.zeros(region.size, "float32")
        # The weights in the type that products read; None if that is float32.
        self.copy = None if is_exact else model.trained.flat[part] if is_view else ops.zeros(region.size)
        self.moved = self.weights if self.copy is None else self.copy  # the own part of the model's weights
