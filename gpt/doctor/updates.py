"""Checks of copies, loss, sampling and optimizers, in the manner of gpt/doctor/layers.py."""

import math

import numpy as np

from gpt.arithmetic import round_up
from gpt.doctor.bounds import EXP, LEAST, u
from gpt.doctor.trial import REFERENCE, Arrays, Trial
from gpt.ops.interface import AdamBuffers, Array, SamplingRule, Stack, StackShape, UpdateRule
from gpt.optim import NEWTON_SCHULZ

# ---- copies ----------------------------------------------------------------------------------------------------------


def copy(trial: Trial, n: int) -> None:
    """From the host to the device, from there to another array there, and back."""
    x = trial.exact(n) * 10.0 ** trial.rng.integers(-20, 20, n)
    first, second = trial.poisoned(n), trial.poisoned(n)
    trial.ops.copy(x.astype(np.float32), out=first)
    trial.ops.copy(first, out=second)
    bound = 2.0**-8 if trial.ops.low_precision else u
    trial.near("the copy", first, x, bound * np.abs(x))
    trial.near("the copy of the copy", second, trial.ops.to_host(first).astype(np.float64), 0)


def clear(trial: Trial, n: int) -> None:
    out = trial.poisoned(n, dtype="float32")
    trial.ops.clear(out)
    trial.near("the array", out, np.zeros(n), 0)


def convert(trial: Trial, n: int) -> None:
    """The nearest bf16 number is half of 2^-7 away at most, relative to it. The way back changes nothing."""
    x = (trial.rng.standard_normal(n) * 10.0 ** trial.rng.integers(-20, 20, n)).astype(np.float32)
    rounded, back = trial.poisoned(n), trial.poisoned(n, dtype="float32")
    trial.ops.convert(trial.of(x, "float32"), rounded)
    trial.ops.convert(rounded, back)
    trial.near("the rounded array", rounded, x.astype(np.float64), 2.0**-8 * np.abs(x))
    trial.near("the array that went there and back", back, trial.ops.to_host(rounded).astype(np.float64), 0)


# ---- loss ------------------------------------------------------------------------------------------------------------


def softmax_cross_entropy(trial: Trial, rows: int, vocab: int, magnitude: float, scale: float | None) -> None:
    ops, padded = trial.ops, round_up(vocab, 128)
    logits = trial.rounded(trial.rng.standard_normal((rows, padded)) * magnitude)
    logits[:, vocab:] = 1e30  # the values of the padding must not count
    labels = trial.rng.integers(0, vocab, rows).astype(np.int32)
    labels[0] = np.argmax(logits[0, :vocab])
    labels[1:2] = -1  # does not count
    mine, (its_losses, its_hits) = trial.of(logits), (trial.poisoned(rows, dtype="float32") for _ in range(2))
    factor = None if scale is None else np.array([scale])
    its_factor = None if factor is None else trial.of(factor, "float32")
    ops.softmax_cross_entropy(mine, trial.of(labels), its_losses, its_hits, vocab, its_factor)
    losses, hits, p = np.empty(rows), np.empty(rows), logits.copy()
    REFERENCE.softmax_cross_entropy(p, labels, losses, hits, vocab, factor)
    exponent = 4 * u * np.abs(logits[:, :vocab]).max(1)  # the rounding of (x - max) log2 e
    rounding = (vocab + 4) * u + 2 * EXP + 2 * exponent
    trial.near("losses", its_losses, losses, rounding + 4 * u * np.abs(losses))
    trial.near("hits", its_hits, hits, 0)
    if scale is None:
        unchanged = np.array_equal(ops.to_host(mine)[:, :vocab], logits[:, :vocab])
        trial.require(unchanged, "the logits have changed")
    else:
        size = np.abs(p) + 2 * scale * (np.arange(padded) == labels[:, None])
        trial.near("the gradient", mine, p, (rounding[:, None] + trial.U) * size + LEAST)


def add_sums(trial: Trial, rows: int) -> None:
    losses = trial.rng.standard_normal(rows).astype(np.float32)
    hits = trial.rng.integers(0, 2, rows).astype(np.float32)
    out = trial.of(np.array([10.0, 20.0]), "float64")
    trial.ops.add_sums(trial.of(losses, "float32"), trial.of(hits, "float32"), out)
    expected = np.array([10 + losses.sum(dtype=np.float64), 20 + hits.sum(dtype=np.float64)])
    trial.near("out", out, expected, rows * 2.0**-52 * (np.abs(losses).sum(dtype=np.float64) + 20))


def sample(trial: Trial, vocab: int, temperature: float, top_k: int, top_p: float) -> None:
    """Sums of weights are off by at most 1e-4 of their total.

    If a draw is nearer than that to the boundary between two ids, either id is right.
    """
    rng = trial.rng
    logits = trial.rounded(rng.standard_normal(vocab) * 2)
    logits[rng.integers(0, vocab, vocab // 4)] = logits[0]  # ties
    seen = np.isin(np.arange(vocab), rng.integers(0, vocab, 9)).astype(np.uint8)
    rule = SamplingRule(temperature, top_k, top_p, repetition_penalty=1.3)
    shifts = (-1e-4, 1e-4)

    def drawn(uniform: float, rule: SamplingRule) -> int:
        return sampled(Arrays(REFERENCE), logits, seen, [uniform], [rule])[0][0]

    uniforms = [*rng.random(8), 0.0, 1 - 2**-24]
    rules = [rule] * 8 + [rule._replace(temperature=1.5), rule._replace(repetition_penalty=1.0)]
    ids, marks = sampled(trial.arrays, logits, seen, uniforms, rules)
    for id, its_marks, uniform, its_rule in zip(ids, marks, uniforms, rules, strict=True):
        either = {drawn(uniform, its_rule)}
        if id not in either:
            either |= {drawn(np.clip(uniform + shift, 0, 1 - 2**-40), its_rule) for shift in shifts}
            if top_p < 1:
                either |= {drawn(uniform, its_rule._replace(top_p=top_p + shift)) for shift in shifts}
        trial.require(id in either, f"the id is {id}, not {' or '.join(map(str, sorted(either)))}")
        same = np.array_equal(its_marks, seen | (np.arange(vocab) == id))
        trial.require(same, f"other ids than {id} are marked as seen")


def sampled(
    arrays: Arrays, logits: np.ndarray, seen: np.ndarray, uniforms: list[float], rules: list[SamplingRule]
) -> tuple[list[int], np.ndarray]:
    """The ids that are drawn from these logits on the device of `arrays`, for each number with its rule, and the marks
    that they leave.
    """
    ops = arrays.ops
    rows, padding = len(uniforms), -logits.size % ops.vocab_multiple
    its_logits = np.pad(np.tile(logits, (rows, 1)), ((0, 0), (0, padding)), constant_values=1e9)
    marks = arrays.of(np.pad(np.tile(seen, (rows, 1)), ((0, 0), (0, padding))))
    out, numbers = arrays.of(np.full(rows, -7, np.int32)), np.array([rule.numbers for rule in rules])
    inputs = arrays.of(np.array(uniforms), "float64"), out, arrays.of(numbers, "float64")
    ops.sample(arrays.of(its_logits), marks, *inputs, logits.size)
    return ops.to_host(out).tolist(), ops.to_host(marks)[:, : logits.size]


# ---- optimizer -------------------------------------------------------------------------------------------------------


def global_norm(trial: Trial, n: int, magnitude: float = 1.0) -> None:
    x = (trial.rng.standard_normal(n) * magnitude).astype(np.float32)
    out = trial.poisoned(1, dtype="float64")
    trial.ops.global_norm(trial.of(x, "float32"), out)
    expected = np.linalg.norm(x.astype(np.float64))
    trial.near("the norm", out, np.array([expected]), n * 2.0**-52 * expected)


def norm_of_norms(trial: Trial, n: int) -> None:
    norms = np.abs(trial.rng.standard_normal(n)) * 1e30
    out = trial.poisoned(1, dtype="float64")
    trial.ops.norm_of_norms(trial.of(norms, "float64"), out)
    expected = np.linalg.norm(norms)
    trial.near("the norm", out, np.array([expected]), (n + 1) * 2.0**-52 * expected)


RULE = UpdateRule(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, clip=0.0)
COUNTERS = (6, 2, 1)  # Adam's step, steps skipped, those skipped in a row


def planned(arrays: Arrays, norm: float, loss: list[float], counters: np.ndarray, lr: float, clip: float) -> Array:
    """The plan of a step, float64 [6] on the device of `arrays`. Updates `counters`, an array on the host."""
    plan, mine = arrays.poisoned(6, dtype="float64"), arrays.of(counters)
    inputs = arrays.of(np.array([norm]), "float64"), arrays.of(np.array(loss), "float64"), mine
    arrays.ops.plan_update(*inputs, arrays.of(np.array([lr]), "float32"), plan, RULE._replace(clip=clip))
    counters[...] = arrays.ops.to_host(mine)
    return plan


def plan_update(trial: Trial, clip: float, loss: float = 1.0) -> None:
    """A loss that is not finite makes it a step that is skipped."""
    mine, theirs = np.array(COUNTERS), np.array(COUNTERS)
    plan = planned(trial.arrays, 3.0, [loss, 1.0], mine, 1e-3, clip)
    expected = planned(Arrays(REFERENCE), 3.0, [loss, 1.0], theirs, 1e-3, clip)
    known = 6 if math.isfinite(loss) else 1
    trial.near("the plan", plan[:known], expected[:known], 1e-12 * np.abs(expected[:known]))
    trial.require(mine.tolist() == theirs.tolist(), f"the counters are {mine.tolist()}, not {theirs.tolist()}")


def adamw(trial: Trial, n: int, decayed: int, clip: float, first: bool = False) -> None:
    """The bounds of the moments are those of their roundings. m += b (g - m), b = 1 - beta, has five in the second
    term: two in the clipped gradient g and one each in b, the difference and the product. One more is in the sum. Of v
    the second term has eight, because g is squared. numba's form, beta m + b g, has two in the first term too.

    At the `first` step the moments are 0, so that an error of b would show in full: 16 u if it came from a float32
    beta2.
    """
    ops = trial.ops
    w, g, m, v = (trial.exact(n) for _ in range(4))
    v = (v**2).astype(np.float32).astype(np.float64)
    if first:
        m, v = np.zeros((2, n))
    its_w, its_g, its_m, its_v = (trial.of(x, "float32") for x in (w, g, m, v))
    copy = trial.poisoned(n) if ops.low_precision else None
    plan = planned(Arrays(REFERENCE), 3.0, [1.0, 1.0], np.array(COUNTERS), 1e-3, clip)
    ops.adamw(AdamBuffers(its_w, its_g, its_m, its_v, copy, decayed), trial.of(plan, "float64"), RULE)
    size, clipped, old_m, old_v = np.abs(w), np.abs(g * plan[1]), np.abs(m), v.copy()
    REFERENCE.adamw(AdamBuffers(w, g, m, v, None, decayed), plan, RULE)
    b1, b2 = (1 - beta for beta in RULE.betas)
    trial.near("weights", its_w, w, 4 * u * size + 40 * u * 0.1)  # a step is below lr · 10 / (1 - 0.9^7) < 0.1
    trial.near("exp_avg", its_m, m, u * (5 * b1 * (clipped + old_m) + 2 * old_m + np.abs(m)))
    trial.near("exp_avg_sq", its_v, v, u * (8 * b2 * (clipped**2 + old_v) + 2 * old_v + v))
    _stored_copy(trial, its_w, copy)


def _stored_copy(trial: Trial, weights: Array, copy: Array) -> None:
    """Compare the bf16 copy of the weights, if there is one, with the weights as they were stored."""
    if trial.ops.low_precision:
        stored = trial.ops.to_host(weights).astype(np.float64)
        trial.near("the copy of the weights", copy, stored, trial.U * np.abs(stored))


def stack(trial: Trial, shape: StackShape) -> tuple[list[np.ndarray], Stack]:
    """Weights, gradients and momentum [matrices, rows, columns] on the host, and their Stack on the device.

    The Stack also has room for the copy. Its matrices are evenly spaced, with gaps between them.
    """
    count, rows, columns = shape
    stride = round_up(rows * columns, 128)
    host = [trial.exact(*shape) for _ in range(3)]

    def laid_out(value: np.ndarray, dtype: str) -> Array:
        whole = np.zeros((count, stride))
        whole[:, : rows * columns] = value.reshape(count, -1)
        return trial.of(whole, dtype)[:, : rows * columns].reshape(shape)

    copy = laid_out(np.full(shape, np.nan), "") if trial.ops.low_precision else None
    weights, gradients, momentum = (laid_out(x, "float32") for x in host)
    return host, Stack(weights, gradients, momentum, copy)


def roundings(x: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """x with a random relative error of up to `size` in every element: one way in which arithmetic may round."""
    return x * (1 + size * rng.uniform(-1, 1, x.shape))


def rounded_orthogonalized(u: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Newton-Schulz orthogonalization with a random rounding of every product's result.

    A result is rounded because it is stored in the type of products.
    """
    x = roundings(u / np.linalg.norm(u, axis=(1, 2), keepdims=True), 2 * size, rng)
    tall = x.shape[1] > x.shape[2]
    for a, b, c in NEWTON_SCHULZ:
        turned = x.swapaxes(1, 2)
        gram = roundings(turned @ x if tall else x @ turned, size, rng)
        factor = roundings(b * gram + c * gram @ gram, size, rng)
        x = roundings(a * x + (x @ factor if tall else factor @ x), size, rng)
    return x


def muon(trial: Trial, matrices: int, rows: int, columns: int, scale: float = 1.0) -> None:
    """The bound comes from stochastic arithmetic (Vignes 2004): the reference is run with roundings drawn at random.

    No element may be further off than three times the largest error of 16 such draws. In fp32 a product of n terms adds
    up to n roundings. On a CPU the errors are larger, because it multiplies squares of singular values.
    """
    ops, rng, shape = trial.ops, trial.rng, (matrices, rows, columns)
    (w, g, m), mine = stack(trial, shape)
    plan = trial.of(np.array([0, scale, 0.1, 0.99, 1, 1]), "float64")
    ops.muon([mine], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    m_ = 0.95 * m + 0.05 * scale * g
    u_ = 0.05 * scale * g + 0.95 * m_
    trial.near("momentum", mine.momentum, m_, 8 * u * (np.abs(m) + np.abs(scale * g)))
    factor = 0.1 * 0.2 * math.sqrt(max(shape[1:]))
    exact = REFERENCE.zeros(shape)
    REFERENCE.muon(
        [Stack(exact, g, m, None)], np.array([0, scale, 1 / (0.2 * math.sqrt(max(shape[1:]))), 1, 1, 1]), momentum=0.95,
        coefficients=NEWTON_SCHULZ,
    )  # fmt: skip
    size = max(trial.product_U / 2, u * max(shape[1:])) * (40 if ops.is_cpu else 1)
    off = np.abs([rounded_orthogonalized(u_, size, rng) + exact for _ in range(16)]).max()
    bound = 3 * factor * off + 4 * u * (np.abs(w) + factor)
    trial.near("weights", mine.weights, 0.99 * w + factor * exact, bound)
    _stored_copy(trial, mine.weights, mine.copy)
