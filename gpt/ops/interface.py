"""The contract between the model and the devices: the operations, and the bundles of arrays that they take.

The model, the optimizer and the trainer see a device as `Operations`. Its docstrings define every operation, both for
`gpt/ops/cpu/` (NumPy: the reference; and numba) and for `gpt/ops/gpu/`.

Conventions:

- Activations are C-contiguous [rows, D], a row for each token. Weights are [in, out].
- A matrix of weights may be a transposed view (the tied head is `wte.T`), and so may its gradient.
- The caller provides every array that an operation writes. An operation overwrites it unless its formula says `+=`:
  gradients of matrices, the residual stream's `dx`, and the operations named `add_…` or `…_add` add to it.
- The gradient of a vector (a bias, a layer norm's weight) is a sum over rows. Operations leave partial sums of it,
  [partial_sums(rows), n]; `add_partials` adds them up.
- An output may alias an input only if the docstring says so.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt.config import ModelConfig

Array = Any  # NumPy's on the CPU, CuPy's on a GPU
Shape = int | tuple[int, ...]
Fields = Mapping[str, tuple[tuple[int, ...], str]]  # name → shape and dtype
Work = Callable[[], object]  # asks a device for something
StackShape = tuple[int, int, int]  # of a Stack: matrices, rows, columns
Coefficients = Sequence[tuple[float, float, float]]  # a, b and c of the polynomials a x + b x³ + c x⁵ of Muon

ALIGNMENT = 128  # elements: vector loads and matrix products want arrays that begin at such multiples in a buffer
MUON_RMS = 0.2  # root mean square of a step of Muon, in units of the learning rate: see `Arithmetic.muon`


# ---- bundles of arrays -----------------------------------------------------------------------------------------------


class Affine(NamedTuple):
    """The two parameters of a linear layer or a layer norm, or their gradients.

    A gradient of a bias is [partial_sums(rows), n]. The head has no bias. The gradient of a weight that does not learn
    is None.
    """

    weight: Array  # or None
    bias: Array  # or None


class Normed(NamedTuple):
    """A point of the residual stream, its layer norm, and the statistics that the norm's backward pass reads."""

    x: Array  # [rows, D]
    out: Array  # [rows, D]; in a backward pass its gradient at first
    mean: Array  # [rows]
    rstd: Array  # [rows], 1 / standard deviation

    def rows(self, rows: int) -> "Normed":
        """The first `rows` rows of all four."""
        return self.slice(slice(rows))

    def slice(self, rows: slice) -> "Normed":
        """These rows of all four."""
        return Normed(self.x[rows], self.out[rows], self.mean[rows], self.rstd[rows])


class Activation(NamedTuple):
    """The activation behind a linear layer, with the array that its backward pass reads and the one that it writes."""

    name: str  # "gelu" or "relu"
    pre_activation: Array  # [rows, F], the linear layer's result
    dbias: Array = None  # [partial_sums(rows), F], the gradient of that layer's bias; needed for backward alone


@dataclass(frozen=True)
class Dropout:
    """One place where elements are zeroed with probability `rate` and the rest scaled by 1 / (1 - rate).

    The mask is a pure function of key, site, and the element's row and column. So the backward pass draws it again
    instead of storing it, and a resumed run replays it. `key` is a uint32 [2] array (seed, counter) in the device's
    memory; `site` numbers the places within one model. `first` is the mask's row for an array's first row. It is above
    0 only on devices that cut a batch into micro-batches.
    """

    rate: float
    key: Array
    site: int
    first: int = 0

    @property
    def threshold(self) -> int:
        """An element is zeroed if its 16 random bits are a number below this: round(rate · 2¹⁶), if that fits."""
        return min(round(self.rate * 2**16), 2**16 - 1)


class Branch(NamedTuple):
    """The gradients of a branch that was added to the residual stream, and the dropout that it went through."""

    gradient: Array  # [rows, D]; without dropout this is the stream's own gradient
    dbias: Array  # [partial_sums(rows), D], the gradient of the bias that the branch ends with
    dropout: Dropout | None = None


class AdamBuffers(NamedTuple):
    """The flat arrays that AdamW goes over, all [n]."""

    weights: Array  # float32, and so are the next three
    gradients: Array
    exp_avg: Array
    exp_avg_sq: Array
    copy: Array | None  # the weights in the type that products read; None if that is float32
    decayed: int  # weight decay applies to weights[:decayed]


class Stack(NamedTuple):
    """Matrices of one shape with everything that Muon has for them; every array is [matrices, rows, columns]."""

    weights: Array  # float32
    gradients: Array  # float32
    momentum: Array  # float32
    copy: Array | None  # the weights in the type that products read; None if that is float32


class UpdateRule(NamedTuple):
    """The constants of AdamW, and of the gradient's clipping."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float  # largest global norm of the gradient; 0 is off


class SamplingRule(NamedTuple):
    """How a sequence's next token is chosen; `Operations.sample` defines the constants."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """A row of `sample`'s rules: 1 / temperature (0 if that is 0), top_k, top_p and the repetition penalty."""
        sharpness = 1 / _moderate(self.temperature) if self.temperature else 0.0
        return sharpness, self.top_k, self.top_p, _moderate(self.repetition_penalty)


def _moderate(factor: float) -> float:
    """The nearest number that float32 holds together with its inverse: every device then draws the same token."""
    return min(max(factor, 1e-37), 1e37)


# ---- input, output, time ---------------------------------------------------------------------------------------------


class Inputs(Protocol):
    """Arrays that the host writes for every step, by name; on a device they stay at fixed addresses in `device`."""

    device: dict[str, Array]

    def written(self) -> AbstractContextManager[dict[str, np.ndarray]]:
        """Enter with all arrays in the host's memory, to be written whole; the device has them in all later work."""


class Output(Protocol):
    """An array on the device that the host reads after every step."""

    def fetched(self) -> Callable[[], np.ndarray]:
        """Ask for the array as all earlier work leaves it. Returns a function that waits for it and returns it."""


class Timeline(Protocol):
    """The clock that operations are timed with."""

    def mark(self) -> Any:
        """A point right behind the work asked for so far."""

    def has_passed(self, mark: Any) -> bool:
        """Whether the device is beyond `mark`, and may have waited for the work that was asked for after it."""

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds from mark to mark in the device's time; waits until the device has reached `end`."""


# ---- operations ------------------------------------------------------------------------------------------------------


class Arithmetic(Protocol):
    """The operations that take a device's time. `hipgpt bench` times every one of them."""

    def copy(self, value: Array, out: Array) -> None:
        """out[...] = value, from the host or the device; converts between floating-point types."""

    def clear(self, array: Array) -> None:
        """array[...] = 0."""

    # ---- embedding ------------------------------------------------------------------------------------------------

    def embedding(
        self, ids: Array, wte: Array, wpe: Array, out: Array, start: Array | None = None, dropout: Dropout | None = None
    ) -> None:
        """out[b·seq + s] = wte[ids[b, s]] + wpe[start[b] + s], then dropout; ids int32 [batch, seq], out [rows, D] or
        a `stream`.

        start is int32 [batch], or None for zeros. For an id outside of wte a CPU raises IndexError; a GPU, which
        cannot, makes the row NaN.
        """

    def embedding_backward(
        self, dout: Array, ids: Array, order: Array, dwte: Array, dwpe: Array, dropout: Dropout | None = None
    ) -> None:
        """Add the gradients of both tables; with dropout, `dout` is overwritten.

        order, int32 [rows], is a stable argsort of ids. It puts the rows of each token side by side, so they are summed
        in their order without a search.
        """

    # ---- layer norm -----------------------------------------------------------------------------------------------

    def layernorm(self, normed: Normed, norm: Affine) -> None:
        """out = (x - mean) · rstd · weight + bias per row, rstd = 1 / sqrt(variance + NORM_EPS) (Ba et al. 2016).

        Reads normed.x and writes the other three. The variance is that of the differences from the mean, in a second
        pass, so it is right even if the mean is far larger than the spread.
        """

    def add_layernorm(self, x: Array, branch: Array, norm: Affine, out: Normed, dropout: Dropout | None = None) -> None:
        """out.x = x + dropout(branch), then the layer norm of out.x, as `layernorm`. out.x may be x.

        x and branch are [rows, D].
        """

    def layernorm_backward(self, normed: Normed, norm: Affine, dx: Array, grads: Affine) -> None:
        """Add to dx, the residual stream's gradient [rows, D], the share that comes through a layer norm of normed.x.

        normed.out has its own gradient, dout, at first, and is then the norm's output once more, with the bits of
        `layernorm`. So all norms of a model can share one array. With n = (x - mean) · rstd and g = dout · weight:
        dx += rstd · (g - mean(g) - n · mean(g · n)). grads, both [partial_sums(rows), D], get partial sums over rows of
        dout · n and of dout.
        """

    def add_layernorm_backward(self, normed: Normed, norm: Affine, dx: Array, grads: Affine, branch: Branch) -> None:
        """The backward pass of `add_layernorm`: `layernorm_backward`, and the gradient of the branch that was added.

        branch.gradient = dx · mask / (1 - rate), or dx itself without dropout; branch.dbias gets partial sums over its
        rows.
        """

    def dropout(self, x: Array, out: Array, dropout: Dropout) -> None:
        """out = x · mask / (1 - rate), [rows, D]; forward and backward alike (Srivastava et al. 2014). out may be x.

        gpt/ops/cpu/masks.py defines the mask.
        """

    # ---- linear ---------------------------------------------------------------------------------------------------

    def linear(
        self, x: Array, layer: Affine, out: Array, activation: Activation | None = None, *, adds: bool = False
    ) -> None:
        """out = x @ weight + bias; x [rows, in], out [rows, out].

        With `activation` ("gelu" is the tanh approximation of Hendrycks & Gimpel 2016) that sum goes into its
        pre_activation, for the backward pass, and out = activation(pre_activation). With `adds` the sum is added to
        what is there: out +=, or pre_activation +=.
        """

    def norm_linear(self, x: Array, norm: Affine, layer: Affine, out: Array, activation: str | None = None) -> None:
        """out = activation(layernorm(x) @ weight + bias): `layernorm` and `linear` if no backward pass follows.

        x [sequences, in] or a `stream`, out [sequences, out]: a row of each sequence; activation is "gelu", "relu" or
        None. A row's bits do not depend on the other rows, nor on its place among them.
        """

    def linear_add(self, x: Array, layer: Affine, out: Array) -> None:
        """out += x @ weight + bias: the last layer of a branch, added into the residual stream.

        x [sequences, in], out [sequences, out] or a `stream`, and each row has bits of its own, as in `norm_linear`.
        """

    def linear_backward(
        self, dout: Array, weight: Array, dx: Array, dbias: Array = None, activation: Activation | None = None, *,
        adds: bool = False,
    ) -> None:  # fmt: skip
        """dx = dout @ weight.T, or with `adds` dx +=: the gradient of a layer's input [rows, in].

        dbias [partial_sums(rows), out] gets partial sums over the rows of dout, unless it is None. With `activation`,
        the input was activation(pre_activation), and dx is the gradient of pre_activation: dx *=
        activation'(pre_activation), and activation.dbias [partial_sums(rows), in] gets partial sums over its rows.
        """

    def weight_gradient(self, x: Array, dout: Array, dweight: Array, *, fresh: bool = False) -> None:
        """dweight += x.T @ dout, or with `fresh` =: the gradient of a layer's weight [in, out]."""

    def add_partials(self, partials: Array, out: Array) -> None:
        """out [n] += Σ partials [partial sums, n]."""

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, qkv: Array, out: Array, lse: Array, dropout: Dropout | None = None) -> None:
        """Causal self-attention of every head: out = dropout(softmax(q kᵀ / sqrt(head_dim))) v.

        qkv is [rows, 3 D]: a row's queries, keys and values, each by head. out is [rows, D]. The shape of lse, [batch,
        heads, seq], says how rows form sequences; lse receives log Σ exp of every row of scores, which the backward
        pass reads. Dropout sees the probabilities as an array [batch, heads, seq, seq].
        """

    def attention_backward(
        self, dout: Array, qkv: Array, out: Array, lse: Array, dqkv: Array, dropout: Dropout | None = None
    ) -> None:
        """dqkv = the gradient of qkv, [rows, 3 D], given that of out; out and lse are as `attention` wrote them."""

    def attention_cached(self, qkv: Array, keys: Array, values: Array, start: Array, out: Array) -> None:
        """Attention of a new position, start[b], of each of `batch` sequences to all positions up to it.

        qkv is [batch, 3 D], out [batch, D], start int32 [batch]. The new keys and values are first written into keys
        and values, [batch, heads, max_seq_len, head_dim], which hold those of all earlier positions, and any finite
        numbers at later ones. Each sequence has bits of its own, as in `norm_linear`.
        """

    def fill_cache(self, qkv: Array, keys: Array, values: Array, place: Array) -> None:
        """Write the keys and values of qkv, [seq, 3 D], into keys[place[0], :, :seq], and into values likewise.

        keys and values are [places, heads, max_seq_len, head_dim], place is int32 [1].
        """

    # ---- loss -----------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, losses: Array, hits: Array, vocab: int, scale: Array | None = None
    ) -> None:
        """losses = log Σ exp(logits) - logits[label] per row; hits = 1 if the label has the largest logit, else 0.

        logits are [rows, V]: the first `vocab` columns count and the rest is padding. labels (int32), losses and hits
        are [rows]. With `scale`, float32 [1], logits become their gradient, scale · (softmax(logits) - onehot(label)),
        and 0 in the padding. A row with the label -1 does not count: its loss, its hit and its gradient are 0.
        """

    def add_sums(self, losses: Array, hits: Array, out: Array) -> None:
        """out += [Σ losses, Σ hits], float64 [2], summed in float64."""

    def sample(self, logits: Array, seen: Array, uniform: Array, out: Array, rules: Array, vocab: int) -> None:
        """out (int32 [rows]) = the id of each row that uniform (float64 [rows], in [0, 1)) draws from its logits; -1 if
        one of these is not finite. It is then marked in seen.

        logits are [rows, V'] and seen is uint8 [rows, V']: the first `vocab` columns count and the rest is padding.
        rules, float64 [rows, 4], has a `SamplingRule.numbers` for each row, which means the following.

        First the logits of marked tokens are divided by the repetition penalty, or multiplied if negative (Keskar et
        al. 2019). Then exp(logits / temperature) are weights; temperature 0 takes the largest logit. A top_k above 0
        keeps the k heaviest tokens, and a top_p below 1 the fewest of these that reach that share of their weight
        (Holtzman et al. 2020). Among equal ones the lowest id comes first. The draw goes through the kept tokens in
        order of id.
        """

    # ---- optimizer ------------------------------------------------------------------------------------------------

    def global_norm(self, x: Array, out: Array) -> None:
        """out = the L2 norm of x [n], float64 [1], summed in float64; not finite if any element is not."""

    def convert(self, x: Array, out: Array) -> None:
        """out = x, rounded to out's type, on the device; float32 or bf16 [n], at multiples of ALIGNMENT elements."""

    def norm_of_norms(self, norms: Array, out: Array) -> None:
        """out [1] = the L2 norm of norms [n], both float64: the global norm, from those of the ranks' shares."""

    def plan_update(self, norm: Array, loss: Array, counters: Array, lr: Array, out: Array, rule: UpdateRule) -> None:
        """Compute the numbers that all weights of a step share; `adamw` and `muon` take out, float64 [6], as `plan`.

        norm [1] is the gradients', loss [2] the step's sums, lr [1] the learning rate. counters, int64 [3], are Adam's
        step t, the steps skipped, and those skipped in a row. If norm or an element of loss is not finite, the step is
        skipped: out[0] = 1, and the last two counters rise. Otherwise t rises, and out is
        [0, gradient_scale, lr, decay, lr / (1 - beta1^t), sqrt(1 - beta2^t)] with gradient_scale =
        min(1, clip / (norm + 1e-6)), or 1 if clip is 0, and decay = 1 - lr · weight_decay.
        """

    def adamw(self, buffers: AdamBuffers, plan: Array, rule: UpdateRule) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019) over flat arrays; `plan` is as `plan_update` left it."""

    def muon(self, stacks: Sequence[Stack], plan: Array, momentum: float, coefficients: Coefficients) -> None:
        """One step of Muon (Jordan et al. 2024) for every matrix of `stacks`; `plan` is as `plan_update` left it.

        With g the clipped gradient: m += (1 - momentum) (g - m), u = g + momentum (m - g) (Nesterov), and
        w = decay · w - lr · MUON_RMS sqrt(max(rows, columns)) · orthogonalized(u). The factor gives the step the size
        of AdamW's (Liu et al. 2025). orthogonalized(u) is u with its singular values s replaced by p(s / ‖u‖), where
        ‖u‖ is the Frobenius norm (1e-7 at least) and p the composition of the polynomials a x + b x³ + c x⁵ of
        `coefficients`, which is about 1.
        """


class Operations(Arithmetic, Protocol):
    """Everything that the model, the optimizer and the trainer ask of a device. Methods named here do no arithmetic."""

    is_cpu: bool
    precision: str  # "fp32", "tf32" or "bf16"
    low_precision: bool  # whether products read a bf16 copy of the weights
    # What attention's products take: float, bf16, tf32, or tf32x3, float32 numbers as the sums of two of tf32
    attention_type: str = "float"
    head_rows: int  # rows of logits at a time
    vocab_multiple: int  # the vocabulary is padded to a multiple of this in memory
    steps_ahead: int  # steps that are worth asking for before the host looks at the result of one
    description: str  # the device's name, for the user
    notes: Sequence[str]  # lines that the user should read
    timeline: Timeline

    def check(self, config: ModelConfig) -> None:
        """Raises UserError for a model that cannot run here."""

    def check_products(
        self, config: ModelConfig, batch: int, training: bool = False, stacks: Sequence[StackShape] = (),
        lora: int | None = None,
    ) -> None:  # fmt: skip
        """Check the library that computes matrix products, on the products of a model, before the model is made.

        These are the products of training with `batch` sequences at a time, of all weights or of adapters of rank
        `lora`, and of Muon with stacks of these shapes; or those of a prompt. If the library is not to be relied on,
        the device goes on without it and has one more note; or UserError is raised, if the user insists on it
        (--blas vendor). Only AMD GPUs take time for this, about a second once.
        """

    @property
    def has_vendor_blas(self) -> bool:
        """Whether the library of a GPU's vendor computes matrix products."""

    def sequences(self, batch: int, seq: int) -> int:
        """The number of sequences that go through the model at a time, out of a batch."""

    def partial_sums(self, rows: int) -> int:
        """The number of partial sums that the gradient of a vector has in a batch of `rows` rows."""

    def empty(self, shape: Shape, dtype: str = "") -> Array:
        """An array of undefined content; without `dtype` of the type that activations and weights have.

        Raises UserError if a GPU's memory does not suffice.
        """

    def zeros(self, shape: Shape, dtype: str = "") -> Array:
        """As `empty`, filled with 0."""

    def stream(self, rows: Array, inner: int) -> Array:
        """The array for the residual stream of `GPT.decode`, of undefined content.

        It is `rows`, [sequences, D]. Or, if the device adds to it faster so, it is float32 [sequences, parts, D], and
        the sum over the parts is the stream. `embedding` may write it, `norm_linear` read it as its x, and `linear_add`
        add to it. `inner` is the number of columns of the MLP's first layer. The memory is the same for all calls.
        """

    def from_host(self, array: np.ndarray) -> Array:
        """A NumPy array as one of the device's; it may share memory."""

    def to_host(self, array: Array) -> np.ndarray:
        """The array as a NumPy one, after all work on it is done; it may share memory. bf16 becomes float32."""

    def context_rows(self, rows: int) -> int:
        """The length of the pass that reads `rows` tokens: as many, or a few more, so that few recordings serve all."""

    def inputs(self, **fields: tuple[tuple[int, ...], str]) -> Inputs:
        """Arrays that the host writes for every step: name = (shape, dtype)."""

    def output(self, array: Array) -> Output:
        """A way to read an array after every step."""

    def replayed(self, function: Work) -> Work:
        """The cheapest way to run, over and over, a function that asks for the same work every time.

        It must read nothing from the host that varies, and allocate nothing after its first run.
        """

    def free_bytes(self) -> int:
        """Bytes of arrays that could be allocated now."""

    def loading_bytes(self, tensor_bytes: int) -> int:
        """Bytes that are needed, for a while, to read a float32 tensor of so many bytes and `copy` it."""

    def held_bytes(self) -> int:
        """Bytes of the device's memory that this process holds."""

    def muon_bytes(self, shapes: Sequence[StackShape]) -> int:
        """Bytes of scratch memory that `muon` takes for stacks of these shapes."""


def blame(ops: Operations) -> str:
    """The end of an error about numbers that are not finite: what else to try if a vendor's library multiplies."""
    return "; or try --blas own, in case the GPU vendor's library is at fault" if ops.has_vendor_blas else ""
