"""Every operation against its literal formula, and every backward pass against central differences, in float64.

A central difference approximates the derivative along a unit direction with two errors. The truncation error is h²/6
times the third derivative, which is below 1000 for these functions of a few hundred numbers of size 1. The rounding
error is eps/h times the sum of the absolute values that were added. With h = 1e-5 both together are below
2e-8 + 2.2e-11 · Σ|terms|.

With "tiny blocks" the same small arrays are cut into many blocks and tiles.
"""

import math

import numpy as np
import pytest

from gpt.batches import token_order
from gpt.ops.cpu import activations as cpu_activations
from gpt.ops.cpu import attention as cpu_attention
from gpt.ops.cpu import linear as cpu_linear
from gpt.ops.cpu import operations as cpu
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.cpu.orthogonal import orthogonalized
from gpt.ops.interface import Activation, AdamBuffers, Affine, Branch, Dropout, Normed, Stack, UpdateRule
from gpt.optim import NEWTON_SCHULZ
from tests.support.differences import both_ways

H = 1e-5
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # two float64 formulas with fewer than 1000 roundings of numbers of size 1
SIZES = [(1, 1, 1), (7, 5, 11), (64, 16, 32), (131, 13, 3)]  # rows, in, out
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (3, 1, 17, 2), (2, 2, 37, 3)]  # batch, heads, seq, head_dim


def tiny_blocks(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 40)
    monkeypatch.setattr(cpu, "LEAST_BLOCK", 10)
    for name, size in {"CHUNK": 40, "PRODUCT_ROWS": 5, "PRODUCT_BLOCK": 30, "SMALL_PRODUCT": 0}.items():
        monkeypatch.setattr(cpu_linear, name, size)
    monkeypatch.setattr(cpu_attention, "TILE", 600)
    monkeypatch.setattr(cpu_attention, "LEAST_TILE", 1)
    monkeypatch.setattr(cpu_activations, "CHUNK", 40)


@pytest.fixture(params=["blocks", "tiny blocks"])
def ops(request, monkeypatch):
    if request.param == "tiny blocks":
        tiny_blocks(monkeypatch)
    return CpuOps(threads=2, dtype="float64")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[0.0, 0.3], ids=["no dropout", "dropout"])
def dropout(request):
    return Dropout(request.param, np.array([7, 3], np.uint32), site=2) if request.param else None


def unset(*shape):
    return np.full(shape, np.nan)


def mask_of(ops, dropout, shape):
    """The factors that dropout multiplies an array of this shape with."""
    factors = np.ones((math.prod(shape[:-1]), shape[-1]))
    if dropout:
        ops.dropout(factors, factors, dropout)
    return factors.reshape(shape)


def check_gradients(forward, dout, inputs, gradients, rng):
    """Compare each of the `gradients` with a central difference along a random unit direction.

    Σ gradient · direction has to be the derivative of Σ dout · forward() as the input of that name moves.
    """
    for name, gradient in gradients.items():
        direction, along, against = both_ways(inputs[name], rng, H, lambda: dout * forward())
        difference = (along.sum() - against.sum()) / (2 * H)
        tolerance = 2e-8 + 2.2e-11 * np.abs(along).sum()
        assert np.sum(gradient * direction) == pytest.approx(difference, rel=0, abs=tolerance), name


# ---- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "seq", "d"), [(1, 1, 1), (3, 5, 7), (5, 31, 2)])
def test_embedding_adds_token_and_position_and_its_backward_sums_over_repeated_tokens(ops, rng, dropout, batch, seq, d):
    ids = rng.integers(0, 6, (batch, seq)).astype(np.int32)
    wte, wpe = rng.standard_normal((6, d)), rng.standard_normal((seq + 2, d))
    out, mask = unset(batch * seq, d), mask_of(ops, dropout, (batch * seq, d))
    ops.embedding(ids, wte, wpe, out, start=np.full(batch, 2, np.int32), dropout=dropout)
    np.testing.assert_allclose(out, (wte[ids] + wpe[2:]).reshape(-1, d) * mask, **EXACT)

    dout = rng.standard_normal(out.shape)
    dwte, dwpe = np.ones_like(wte), np.ones_like(wpe)
    expected = [dwte.copy(), dwpe.copy()]
    for row, token in enumerate(ids.reshape(-1)):
        expected[0][token] += (dout * mask)[row]
        expected[1][row % seq] += (dout * mask)[row]
    ops.embedding_backward(dout, ids, token_order(ids), dwte, dwpe, dropout=dropout)
    np.testing.assert_allclose(dwte, expected[0], **EXACT)
    np.testing.assert_allclose(dwpe, expected[1], **EXACT)


def test_an_id_outside_of_the_vocabulary_is_an_error(ops):
    with pytest.raises(IndexError):
        ops.embedding(np.array([[5]], np.int32), np.ones((5, 2)), np.ones((1, 2)), unset(1, 2))


# ---- layer norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "d"), [(1, 2), (7, 5), (64, 16), (13, 101)])
def test_add_layernorm_and_its_backward(ops, rng, dropout, rows, d):
    a = {"x": rng.standard_normal((rows, d)), "branch": rng.standard_normal((rows, d))}
    a.update(weight=rng.standard_normal(d), bias=rng.standard_normal(d))
    x_out, out, mean, rstd = unset(rows, d), unset(rows, d), unset(rows), unset(rows)
    mask = mask_of(ops, dropout, (rows, d))

    def formula():
        total = a["x"] + a["branch"] * mask
        centered = total - total.mean(1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5) * a["weight"] + a["bias"]

    norm = Affine(a["weight"], a["bias"])
    ops.add_layernorm(a["x"], a["branch"], norm, Normed(x_out, out, mean, rstd), dropout)
    np.testing.assert_allclose(x_out, a["x"] + a["branch"] * mask, **EXACT)
    np.testing.assert_allclose(out, formula(), **EXACT)
    plain = unset(rows, d)
    ops.layernorm(Normed(x_out, plain, unset(rows), unset(rows)), norm)
    assert np.array_equal(plain, out)

    dout = rng.standard_normal(out.shape)
    normed = Normed(x_out, dout.copy(), mean, rstd)
    dx, grads = np.ones((rows, d)), Affine(unset(2, d), unset(2, d))
    ops.layernorm_backward(normed, norm, dx, grads)
    assert np.array_equal(normed.out, out), "the gradient's place has the norm's output again"
    check_gradients(formula, dout, a, {"x": dx - 1, "weight": grads.weight.sum(0), "bias": grads.bias.sum(0)}, rng)

    dsum, grads = np.zeros((rows, d)), Affine(unset(2, d), unset(2, d))
    branch = Branch(unset(rows, d) if dropout else dsum, unset(2, d), dropout)
    normed.out[:] = dout
    ops.add_layernorm_backward(normed, norm, dsum, grads, branch)
    assert np.array_equal(normed.out, out)
    gradients = {"x": dsum, "branch": branch.gradient, "weight": grads.weight.sum(0), "bias": grads.bias.sum(0)}
    check_gradients(formula, dout, a, gradients, rng)
    np.testing.assert_allclose(branch.dbias.sum(0), branch.gradient.sum(0), **EXACT)

    ops.add_layernorm(a["x"], a["branch"], norm, Normed(a["x"], out, mean, rstd), dropout)
    assert np.array_equal(a["x"], x_out), "the sum may overwrite x"


def test_layernorm_in_float32_of_rows_far_from_zero(rng):
    """In float32 x and its mean are each off by 2**-24 · 1e4 = 6e-4, and each moves `out` by that much."""
    x = (1e4 + rng.standard_normal((50, 256))).astype(np.float32)
    out, mean, rstd = np.empty_like(x), np.empty(50, np.float32), np.empty(50, np.float32)
    norm = Affine(np.ones(256, np.float32), np.zeros(256, np.float32))
    CpuOps(threads=1).layernorm(Normed(x, out, mean, rstd), norm)
    exact = x.astype(np.float64)
    exact -= exact.mean(1, keepdims=True)
    exact /= exact.std(1, keepdims=True)
    assert np.abs(out - exact).max() < 3 * 6e-4 * np.abs(exact).max()


# ---- linear ----------------------------------------------------------------------------------------------------------


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "d", "f"), SIZES)
def test_linear_and_its_backward(ops, rng, rows, d, f, transposed):
    weight = rng.standard_normal((f, d)).T if transposed else rng.standard_normal((d, f))
    a = {"x": rng.standard_normal((rows, d)), "weight": weight, "bias": rng.standard_normal(f)}
    out = unset(rows, f)
    ops.linear(a["x"], Affine(weight, a["bias"]), out)
    np.testing.assert_allclose(out, a["x"] @ weight + a["bias"], **EXACT)
    ops.linear(a["x"], Affine(weight, None), out)
    np.testing.assert_allclose(out, a["x"] @ weight, **EXACT)

    dout, dx, partials = rng.standard_normal(out.shape), unset(rows, d), unset(2, f)
    dweight = np.ones((f, d)).T if transposed else np.ones((d, f))
    ops.linear_backward(dout, weight, dx, partials)
    ops.weight_gradient(a["x"], dout, dweight)
    dbias = np.ones(f)
    ops.add_partials(partials, dbias)
    np.testing.assert_allclose(dx, dout @ weight.T, **EXACT)
    np.testing.assert_allclose(dweight, 1 + a["x"].T @ dout, **EXACT)
    ops.weight_gradient(a["x"], dout, dweight, fresh=True)
    np.testing.assert_allclose(dweight, a["x"].T @ dout, **EXACT)
    np.testing.assert_allclose(dbias, 1 + dout.sum(0), **EXACT)


@pytest.mark.parametrize(("activation", "formula"), [("gelu", gelu), ("relu", lambda x: np.maximum(x, 0))])
@pytest.mark.parametrize(("rows", "d", "f"), SIZES)
def test_activations_and_their_backward(ops, rng, rows, d, f, activation, formula):
    x, w1, b1 = rng.standard_normal((rows, d)), rng.standard_normal((d, f)), rng.standard_normal(f)
    pre_activation, out = unset(rows, f), unset(rows, f)
    ops.linear(x, Affine(w1, b1), out, Activation(activation, pre_activation))
    np.testing.assert_allclose(pre_activation, x @ w1 + b1, **EXACT)
    np.testing.assert_allclose(out, formula(pre_activation), **EXACT)

    w2, dout = rng.standard_normal((f, d)), rng.standard_normal((rows, d))
    gradient, dbias = unset(rows, f), unset(2, f)
    through = Activation(activation, pre_activation, dbias)
    ops.linear_backward(dout, w2, gradient, activation=through)
    np.testing.assert_allclose(dbias.sum(0), gradient.sum(0), **EXACT)
    assert activation == "gelu" or np.abs(pre_activation).min() > H, "a difference crosses the corner of relu"
    inputs, gradients = {"pre_activation": pre_activation}, {"pre_activation": gradient}
    check_gradients(lambda: formula(pre_activation) @ w2, dout, inputs, gradients, rng)


@pytest.mark.parametrize(("activation", "formula"), [(None, lambda x: x), ("gelu", gelu)])
@pytest.mark.parametrize(("rows", "d", "f"), SIZES)
def test_a_linear_layer_with_the_norm_before_it(ops, rng, rows, d, f, activation, formula):
    x, w1, b1, norm = (rng.standard_normal(shape) for shape in ((rows, d), (d, f), f, (2, d)))
    normed, out = unset(rows, d), unset(rows, f)
    ops.layernorm(Normed(x, normed, unset(rows), unset(rows)), Affine(*norm))
    for bias in (b1, None):
        ops.norm_linear(x, Affine(*norm), Affine(w1, bias), out, activation)
        np.testing.assert_allclose(out, formula(normed @ w1 + (0 if bias is None else bias)), **EXACT)


@pytest.mark.parametrize(("rows", "d", "f"), SIZES)
def test_a_linear_layer_that_adds(ops, rng, rows, d, f):
    x, w, b, stream = (rng.standard_normal(shape) for shape in ((rows, d), (d, f), f, (rows, f)))
    out = stream.copy()
    ops.linear_add(x, Affine(w, b), out)
    np.testing.assert_allclose(out, stream + x @ w + b, **EXACT)


# ---- attention -------------------------------------------------------------------------------------------------------


def split_heads(x, parts, batch, heads):
    return x.reshape(batch, len(x) // batch, parts, heads, -1).transpose(2, 0, 3, 1, 4)


def naive_attention(qkv, batch, heads, mask):
    q, k, v = split_heads(qkv, 3, batch, heads)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = np.where(np.tri(q.shape[2], dtype=bool), scores, -np.inf)
    e = np.exp(scores)
    out = (e / e.sum(-1, keepdims=True) * mask) @ v
    return out.transpose(0, 2, 1, 3).reshape(len(qkv), -1), np.log(e.sum(-1))


@pytest.mark.parametrize(("batch", "heads", "seq", "head_dim"), SHAPES)
def test_attention_and_its_backward(ops, rng, dropout, batch, heads, seq, head_dim):
    rows, d = batch * seq, heads * head_dim
    qkv, out, lse = rng.standard_normal((rows, 3 * d)), unset(rows, d), unset(batch, heads, seq)
    mask = mask_of(ops, dropout, (batch, heads, seq, seq))
    ops.attention(qkv, out, lse, dropout=dropout)
    expected, expected_lse = naive_attention(qkv, batch, heads, mask)
    np.testing.assert_allclose(out, expected, **EXACT)
    np.testing.assert_allclose(lse, expected_lse, **EXACT)

    dout, dqkv = rng.standard_normal(out.shape), unset(rows, 3 * d)
    ops.attention_backward(dout, qkv, out, lse, dqkv, dropout=dropout)
    check_gradients(lambda: naive_attention(qkv, batch, heads, mask)[0], dout, {"qkv": qkv}, {"qkv": dqkv}, rng)


@pytest.mark.parametrize(("prompt", "seq"), [(1, 4), (37, 38), (63, 70)])
def test_cached_attention_continues_where_the_prompt_left_off(ops, rng, prompt, seq):
    heads, head_dim = 3, 4
    d = heads * head_dim
    qkv = rng.standard_normal((seq, 3 * d))
    keys, values = rng.standard_normal((2, 1, heads, 80, head_dim)) * 1e6  # as another sequence may have left them
    expected, _ = naive_attention(qkv, 1, heads, 1)
    ops.fill_cache(qkv[:prompt], keys, values, np.zeros(1, np.int32))
    for position in range(prompt, seq):
        out = unset(1, d)
        ops.attention_cached(qkv[position, None], keys, values, np.array([position], np.int32), out)
        np.testing.assert_allclose(out[0], expected[position], **EXACT)


def test_a_softmax_keeps_its_digits_far_below_the_largest_score_of_its_head(rng):
    """Row 20 has a score of 392. In float32 it is off by up to 4 roundings, 1e-4 in all.

    The scores of other rows lie so far below it that exp of the difference is 0.
    """
    qkv, out, lse = rng.standard_normal((40, 12)).astype(np.float32), np.empty((40, 4), "f"), np.empty((1, 1, 40), "f")
    qkv[20, :8] = 14
    CpuOps(threads=1).attention(qkv, out, lse)
    expected, expected_lse = naive_attention(qkv.astype(np.float64), 1, 1, 1)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-4)
    np.testing.assert_allclose(out, expected, atol=2e-4 * np.abs(qkv[:, 8:]).max())


def test_attention_of_huge_scores_is_finite(rng):
    qkv, out, lse = rng.standard_normal((40, 12)) * 1e3, unset(40, 4), unset(1, 1, 40)
    CpuOps(threads=1, dtype="float64").attention(qkv, out, lse)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


# ---- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (1, 7), (5, 3), (33, 101)])
def test_cross_entropy_and_its_gradient(ops, rng, rows, vocab):
    logits, labels = rng.standard_normal((rows, vocab)), rng.integers(0, vocab, rows).astype(np.int32)
    original, losses, hits, sums = logits.copy(), unset(rows), unset(rows), np.ones(2)

    def formula():
        return np.log(np.exp(original).sum(1)) - original[np.arange(rows), labels]

    ops.softmax_cross_entropy(logits, labels, losses, hits, logits.shape[1])
    np.testing.assert_allclose(losses, formula(), **EXACT)
    assert np.array_equal(hits, original.argmax(1) == labels)
    assert np.array_equal(logits, original), "without a scale the logits must not change"
    ops.add_sums(losses, hits, sums)
    np.testing.assert_allclose(sums, [1 + losses.sum(), 1 + hits.sum()], **EXACT)

    ops.softmax_cross_entropy(logits, labels, losses, hits, logits.shape[1], np.array([0.25]))
    np.testing.assert_allclose(losses, formula(), **EXACT)
    check_gradients(formula, 0.25, {"logits": original}, {"logits": logits}, rng)


def test_a_row_whose_label_is_minus_one_does_not_count(ops, rng):
    logits, labels = rng.standard_normal((3, 7)), np.array([2, -1, 5], np.int32)
    losses, hits = unset(3), unset(3)
    alone, of_alone = logits[[0, 2]], (unset(2), unset(2))
    ops.softmax_cross_entropy(alone, labels[[0, 2]], *of_alone, 7, np.array([0.25]))
    ops.softmax_cross_entropy(logits, labels, losses, hits, 7, np.array([0.25]))
    assert (losses[1], hits[1]) == (0, 0)
    assert not logits[1].any()
    for all_rows, counted in ((losses, of_alone[0]), (hits, of_alone[1]), (logits, alone)):
        np.testing.assert_allclose(all_rows[[0, 2]], counted, **EXACT)


def test_cross_entropy_of_huge_logits():
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], np.float32)
    losses, hits = np.empty(2, np.float32), np.empty(2, np.float32)
    CpuOps(threads=1).softmax_cross_entropy(logits, np.array([1, 2], np.int32), losses, hits, 3, np.ones(1, np.float32))
    np.testing.assert_allclose(losses, [2e4, math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(logits, [[1, -1, 0], [0, 0.5, -0.5]], atol=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(ops, poison):
    logits, losses = np.array([[0.0, poison, 1.0]]), unset(1) * 0
    with np.errstate(invalid="ignore"):
        ops.softmax_cross_entropy(logits, np.array([0], np.int32), losses, unset(1), logits.shape[1])
    assert not np.isfinite(losses[0])


# ---- optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1e-30, 1e38])
def test_global_norm_of_any_finite_float32(rng, size):
    x = (rng.uniform(-1, 1, 100_003) * size).astype(np.float32)
    norm = np.zeros(1)
    CpuOps(threads=2).global_norm(x, norm)
    exact = size * math.sqrt(math.fsum((x.astype(np.float64) / size) ** 2))
    assert norm[0] == pytest.approx(exact, rel=1e-12)
    for poison in (np.nan, np.inf, -np.inf):
        x[70_000] = poison
        CpuOps(threads=2).global_norm(x, norm)
        assert not np.isfinite(norm[0])


def adamw_by_the_book(w, g, m, v, step, lr, betas, eps, weight_decay, decayed, clip, norm):
    g = g * (min(1, clip / (norm + 1e-6)) if clip else 1)
    w[:decayed] -= lr * weight_decay * w[:decayed]
    m[...] = betas[0] * m + (1 - betas[0]) * g
    v[...] = betas[1] * v + (1 - betas[1]) * g**2
    w -= lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)


@pytest.mark.parametrize(("n", "decayed"), [(1, 1), (97, 0), (150, 77), (150, 150)])
@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_adamw_takes_the_steps_of_its_definition(ops, rng, n, decayed, clip):
    w, m, v = rng.standard_normal(n), np.zeros(n), np.zeros(n)
    expected = [w.copy(), m.copy(), v.copy()]
    counters, lr, norm = np.array([0, 4, 3], np.int64), np.zeros(1), np.zeros(1)
    rule, plan = UpdateRule(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=clip), np.full(6, np.nan)
    for step in (1, 2, 3):
        g = rng.standard_normal(n)
        lr[0] = 0.1 / step
        ops.global_norm(g, norm)
        kept = g.copy()
        ops.plan_update(norm, np.ones(2), counters, lr, plan, rule)
        ops.adamw(AdamBuffers(w, g, m, v, copy=None, decayed=decayed), plan, rule)
        w_, m_, v_ = expected
        adamw_by_the_book(w_, g, m_, v_, step, lr[0], decayed=decayed, norm=norm[0], **rule._asdict())
        assert np.array_equal(g, kept), "gradients stay as they are"
    for ours, theirs in zip((w, m, v), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **EXACT)
    assert counters.tolist() == [3, 4, 0]


@pytest.mark.parametrize(("norm", "loss"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, -np.inf)])
def test_a_step_that_is_not_finite_is_skipped_by_every_optimizer(ops, rng, norm, loss):
    arrays, stack = ([rng.standard_normal(shape) for _ in range(4)] for shape in (9, (2, 3, 4)))
    kept, counters = [array.copy() for array in arrays + stack], np.array([5, 2, 1], np.int64)
    plan, rule = np.empty(6), UpdateRule(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
    ops.plan_update(np.array([norm]), np.array([1.0, loss]), counters, np.ones(1), plan, rule)
    ops.adamw(AdamBuffers(*arrays, copy=None, decayed=9), plan, rule)
    ops.muon([Stack(*stack[:3], copy=None)], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    assert all(np.array_equal(a, b) for a, b in zip(arrays + stack, kept, strict=True))
    assert counters.tolist() == [5, 3, 2]


def composed(x, coefficients):
    """The value to which the Newton-Schulz steps take the singular value x."""
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (4, 9), (9, 4), (1, 7), (7, 1)])
@pytest.mark.parametrize("coefficients", [NEWTON_SCHULZ, ((3.4445, -4.7750, 2.0315),) * 5, ((1.5, -0.5, 0.0),)])
def test_orthogonalizing_applies_the_polynomials_to_every_singular_value(rng, shape, coefficients):
    """Against an SVD in float64.

    The condition number of the polynomials is at most 4,000, at a singular value of 0. Times a few hundred roundings of
    2^-53 that is 1e-10.
    """
    u = rng.standard_normal(shape)
    left, values, right = np.linalg.svd(u, full_matrices=False)
    expected = left * composed(values / np.linalg.norm(u), coefficients) @ right
    np.testing.assert_allclose(orthogonalized(u, coefficients), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(orthogonalized(u, coefficients, 3.0), 3 * expected, rtol=0, atol=3e-10)


def test_orthogonalized_singular_values_lie_in_the_band_of_the_polynomials(rng):
    """Polar Express takes [0.001, 1] to within 0.1236 of 1.

    Four of the polynomials get their arguments divided by 1.01. A small value then ends as one smaller by 1.01^4 did
    before. Down there the result grows no faster than the value, so it is at least (1 - 0.1236) / 1.01^4 = 0.842.
    """
    band = composed(np.geomspace(1e-3, 1, 100_001), NEWTON_SCHULZ)
    assert (1 - 0.1236) / 1.01**4 < band.min() < band.max() < 1 + 0.1236
    left, right = (np.linalg.qr(rng.standard_normal((48, 48)))[0] for _ in range(2))
    values = np.geomspace(1, 1e-2, 48)  # divided by their norm, 3, they are above 0.001
    found = np.linalg.svd(orthogonalized(left * values @ right, NEWTON_SCHULZ), compute_uv=False)
    assert band.min() - 1e-9 < found.min() < found.max() < band.max() + 1e-9


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalized(np.zeros((3, 5), np.float32), NEWTON_SCHULZ).any()


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 9), (2, 9, 4)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_muon_takes_the_steps_of_its_definition(ops, rng, shape, scale):
    w, m = rng.standard_normal(shape), np.zeros(shape)
    expected_w, expected_m, rate, decay = w.copy(), m.copy(), 0.1, 0.99
    for _ in range(3):
        g = rng.standard_normal(shape)
        plan = np.array([0, scale, rate, decay, np.nan, np.nan])
        ops.muon([Stack(w, g, m, copy=None)], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
        expected_m = 0.95 * expected_m + 0.05 * scale * g
        u = 0.95 * expected_m + 0.05 * scale * g  # Nesterov
        left, values, right = np.linalg.svd(u, full_matrices=False)
        norms = np.linalg.norm(u, axis=(1, 2), keepdims=True)
        direction = left * composed(values[:, None] / norms, NEWTON_SCHULZ) @ right
        expected_w = decay * expected_w - rate * 0.2 * math.sqrt(max(shape[1:])) * direction
    np.testing.assert_allclose(m, expected_m, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(w, expected_w, rtol=0, atol=1e-9)
