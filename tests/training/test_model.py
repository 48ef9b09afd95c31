"""The whole model in float64: central differences, PyTorch's autograd, and decoding with a cache."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gpt.batches import Batches, token_order
from gpt.config import ModelConfig, TrainConfig
from gpt.model import GPT, KVCache, TrainableGPT, memory_bytes
from gpt.ops.cpu import operations as cpu
from gpt.ops.cpu.operations import CpuOps
from gpt.optim import PLAN, Optimizer, optimizer_bytes
from gpt.parameters import MATRICES, parameter_count, stack_shapes
from gpt.trainer import TrainStep
from tests.support.differences import both_ways

SHAPE = ("vocab_size", "max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers")
CONFIGS = [
    ModelConfig(**dict(zip(SHAPE, shape, strict=True)), activation=activation, tie_embeddings=tied)
    for shape, activation, tied in [
        ((11, 7, 6, 3, 10, 2), "gelu", True),
        ((2, 1, 2, 1, 1, 1), "relu", True),
        ((37, 70, 8, 1, 5, 1), "gelu", False),
        ((700, 19, 10, 5, 3, 3), "relu", False),
    ]
]
BATCH = 3


@pytest.fixture(params=CONFIGS, ids=lambda config: f"vocab {config.vocab_size}, seq {config.max_seq_len}")
def config(request):
    return request.param


def build(config, training=True, dtype="float64"):
    """A model whose weights, biases included, are of size 0.3: every path carries a significant gradient."""
    kind = TrainableGPT if training else GPT
    model = kind(config, CpuOps(threads=2, dtype=dtype), batch=BATCH)
    rng = np.random.default_rng(0)
    for name, view in model.weights.named.items():
        view[...] = 0.3 * rng.standard_normal(view.shape) + ("ln_" in name and name.endswith("weight"))
    return model


def tokens(config, seq=None):
    shape = (BATCH, (seq or config.max_seq_len) + 1)
    drawn = np.random.default_rng(1).integers(0, config.vocab_size, shape).astype(np.int32)
    return np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, 1:])


def mean_loss_and_gradients(model, ids, labels):
    model.metrics[...] = 0
    model.gradients.flat[...] = 0
    counted = np.count_nonzero(labels >= 0)
    model.loss_and_gradients(ids, labels, token_order(ids, model.sequences), np.array([1 / counted]))
    return model.metrics[0] / counted


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_the_slopes_of_the_loss(config, dropout):
    """Along a unit direction with h = 1e-5: truncation h²/6 · third derivative (below 1e4: each of up to three blocks
    and a loss of curvature 1, times weights that sum up to 10), rounding 2.2e-16/h · loss: below 2e-7 together."""
    model = build(replace(config, dropout=dropout))
    model.dropout_key[...] = 5, 9
    ids, labels = tokens(config)
    mean_loss_and_gradients(model, ids, labels)
    gradients = {name: view.copy() for name, view in model.gradients.named.items()}
    rng, h = np.random.default_rng(2), 1e-5
    for name, view in model.weights.named.items():
        direction, along, against = both_ways(view, rng, h, lambda: mean_loss_and_gradients(model, ids, labels))
        slope = (along - against) / (2 * h)
        assert np.sum(gradients[name] * direction) == pytest.approx(slope, rel=0, abs=2e-7), name


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_takes_the_mean_over_all_of_its_labels_that_count(accumulate):
    """The same sums in another order: some hundred roundings of 6e-8 in float32."""
    model = ModelConfig(vocab_size=64, max_seq_len=6, embed_dim=8, num_heads=2, ff_hidden_dim=16, num_layers=1)
    ids = np.random.default_rng(0).integers(0, 64, 200).astype(np.uint16)
    counted = (np.arange(200) % 7 < np.arange(200) // 10 % 5).astype(np.uint8)  # other numbers in each batch
    results = []
    for passes in (1, accumulate):
        batches = Batches(ids, 4 // passes, 6, sampling="sequential", seed=0, val_fraction=0, counted=counted)
        step = TrainStep(model, TrainConfig(batch_size=4 // passes, accumulate=passes), batches, CpuOps(threads=1))
        step.model.initialize(3)
        step.run(2)
        results.append((step.metrics().loss, step.model.gradients.flat.copy()))
    batch = np.zeros((4, 6), np.int32), np.zeros((4, 6), np.int32)
    Batches(ids, 4, 6, sampling="sequential", seed=0, val_fraction=0, counted=counted).train(1, out=batch)
    alone = TrainableGPT(model, CpuOps(threads=1), batch=4)
    alone.initialize(3)
    results.append((mean_loss_and_gradients(alone, *batch), alone.gradients.flat))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][0] == pytest.approx(results[2][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1], results[2][1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    assert results[0][0] == pytest.approx(math.log(64), rel=0.05), "a mean over fewer labels than there are"


def test_a_text_that_a_run_turns_to_is_counted_from_its_own_beginning():
    """The first two batches of this text have 3 and 12 labels that count."""
    model = ModelConfig(vocab_size=64, max_seq_len=6, embed_dim=8, num_heads=2, num_layers=1)
    counted = np.ones(200, np.uint8)
    counted[:10] = 0
    losses = []
    for before in (0, 5):
        batches = Batches(
            np.arange(200, dtype=np.uint16) % 64, 2, 6, sampling="sequential", seed=0, val_fraction=0, counted=counted
        )
        step = TrainStep(model, TrainConfig(batch_size=2, text_start=before), batches, CpuOps(threads=1))
        step.model.initialize(3)
        step.run(before + 1)
        assert step.counted == 3
        losses.append(step.metrics().loss)
    assert losses[0] == losses[1] == pytest.approx(math.log(64), rel=0.05)


def test_each_batch_of_a_run_has_a_dropout_key_of_its_own():
    model = ModelConfig(vocab_size=64, max_seq_len=6, embed_dim=8, num_heads=2, num_layers=1, dropout=0.5)
    batches = Batches(np.zeros(200, np.uint16), 2, 6, sampling="sequential", seed=0, val_fraction=0)
    step, keys = TrainStep(model, TrainConfig(batch_size=2, accumulate=3, seed=7), batches, CpuOps(threads=1)), []
    compute = step.model.loss_and_gradients

    def noted(*arguments, **kwargs):
        keys.append(step.model.dropout_key.tolist())
        compute(*arguments, **kwargs)

    step.model.loss_and_gradients = noted
    for number in (1, 2, 3):
        step.run(number)
    assert keys == [[7, index] for index in range(9)]


def test_labels_that_do_not_count_add_nothing(config):
    """A sum with zeros in it: the roundings of 2.2e-16 of some hundred terms, in another order."""
    model, (ids, labels) = build(config), tokens(config)
    first, second = labels.copy(), labels.copy()
    first[:, ::2], second[:, 1::2] = -1, -1
    results = []
    for some in (first, second, labels):
        model.metrics[...], model.gradients.flat[...] = 0, 0
        model.loss_and_gradients(ids, some, token_order(ids), np.ones(1))
        results.append((model.metrics.copy(), model.gradients.flat.copy()))
    for one, other, both in zip(*results, strict=True):
        np.testing.assert_allclose(one + other, both, rtol=1e-11, atol=1e-12)


def test_gradients_add_up_over_calls(config):
    model, (ids, labels) = build(config), tokens(config)
    mean_loss_and_gradients(model, ids, labels)
    once = model.gradients.flat.copy()
    model.loss_and_gradients(ids, labels, token_order(ids), np.array([1 / ids.size]))
    np.testing.assert_allclose(model.gradients.flat, 2 * once, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 10**6], ids=["a sequence at a time", "all sequences at once"])
def test_gradients_that_begin_anew_forget_what_was_there(config, rows, monkeypatch):
    monkeypatch.setattr(cpu, "PASS_ROWS", rows)
    model, (ids, labels) = build(config), tokens(config)
    mean_loss_and_gradients(model, ids, labels)
    once = model.gradients.flat.copy()
    for view in model.gradients.named.values():
        view[...] = np.nan
    model.loss_and_gradients(ids, labels, token_order(ids, model.sequences), np.array([1 / ids.size]), fresh=True)
    assert np.array_equal(model.gradients.flat, once)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_micro_batches_give_the_same_results_as_the_whole_batch(config, dropout, monkeypatch):
    config = replace(config, dropout=dropout)
    ids, labels = tokens(config)
    whole = build(config)
    expected = mean_loss_and_gradients(whole, ids, labels)
    monkeypatch.setattr(cpu, "PASS_ROWS", config.max_seq_len)  # two threads: two of the three sequences
    model = build(config)
    assert (whole.sequences, model.sequences) == (3, 2)
    assert mean_loss_and_gradients(model, ids, labels) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(model.gradients.flat, whole.gradients.flat, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(model.logits(ids), whole.logits(ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 10**6], ids=["a sequence at a time", "all sequences at once"])
def test_a_block_is_done_once_from_the_last_to_the_first_with_its_matrices_complete(config, rows, monkeypatch):
    monkeypatch.setattr(cpu, "PASS_ROWS", rows)
    model, (ids, labels), done = build(config), tokens(config), {}

    def block_done(layer):
        assert layer not in done
        done[layer] = [getattr(model.gradients.blocks[layer], each).weight.copy() for each in MATRICES]

    order = token_order(ids, model.sequences)
    model.loss_and_gradients(ids, labels, order, np.array([1 / ids.size]), block_done)
    assert list(done) == list(reversed(range(config.num_layers)))
    for layer, complete in done.items():
        for each, gradient in zip(MATRICES, complete, strict=True):
            assert np.array_equal(gradient, getattr(model.gradients.blocks[layer], each).weight)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_head_in_chunks_of_rows_gives_the_same_results_as_a_whole_one(config, rows, monkeypatch):
    """The same sums of some hundred terms in float64, in another order."""
    ids, labels = tokens(config)
    whole = build(config)
    expected = mean_loss_and_gradients(whole, ids, labels)
    monkeypatch.setattr(CpuOps, "head_rows", rows)
    model = build(config)
    model.gradients.flat[...] = np.nan
    scale, order = np.array([1 / ids.size]), token_order(ids, model.sequences)
    model.loss_and_gradients(ids, labels, order, scale, fresh=True)
    assert model.metrics[0] / ids.size == pytest.approx(expected, rel=1e-12)
    for name, gradient in model.gradients.named.items():
        np.testing.assert_allclose(gradient, whole.gradients.named[name], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(model.logits(ids), whole.logits(ids), rtol=1e-12, atol=1e-12)


def test_float32_agrees_with_float64(config):
    """Roundings of 6e-8 add up over sums of up to 700 terms and three blocks: 1e-4 if none is amplified."""
    ids, labels = tokens(config)
    (wide, narrow) = (build(config, dtype=dtype) for dtype in ("float64", "float32"))
    assert mean_loss_and_gradients(narrow, ids, labels) == pytest.approx(
        mean_loss_and_gradients(wide, ids, labels), rel=1e-5
    )
    assert narrow.gradients.flat.dtype == np.float32
    for name, view in wide.gradients.named.items():
        assert np.abs(view - narrow.gradients.named[name]).max() < 1e-4 * max(0.1, np.abs(view).max()), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e30, np.inf, np.nan])
def test_a_model_that_has_diverged_says_so_by_its_loss_or_gradient_and_not_by_warnings(config, size):
    model, (ids, labels), norm = build(config, dtype="float32"), tokens(config), np.zeros(1)
    for view in model.weights.named.values():
        view[0] *= size
    mean_loss_and_gradients(model, ids, labels)
    model.ops.global_norm(model.gradients.flat, norm)
    assert not np.isfinite(model.metrics[0]) or not np.isfinite(norm[0])


def test_the_loss_is_that_of_the_logits(config):
    model, (ids, labels) = build(config, training=False), tokens(config)
    logits = model.logits(ids)
    model.loss(ids, labels)
    chosen = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    assert model.metrics[0] == pytest.approx(np.sum(np.log(np.exp(logits).sum(-1)) - chosen), rel=1e-12)
    assert model.metrics[1] == np.sum(logits.argmax(-1) == labels)


def test_a_later_token_never_changes_an_earlier_logit(config):
    model, (ids, _) = build(config, training=False), tokens(config)
    before = model.logits(ids)
    ids[:, -1] = (ids[:, -1] + 1) % config.vocab_size
    after = model.logits(ids)
    np.testing.assert_allclose(before[:, :-1], after[:, :-1], rtol=1e-12, atol=1e-14)
    assert not np.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("prompt", [1, 5])
def test_decoding_gives_the_same_logits_as_a_full_pass(config, prompt):
    model, (ids, _) = build(config, training=False), tokens(config)
    prompt = min(prompt, config.max_seq_len - 1)
    expected = model.logits(ids)[0]
    start, place = np.zeros(2, np.int32), np.ones(1, np.int32)
    cache = KVCache.allocate(config, model.ops, start, place)
    if prompt:
        model.read(ids[:1, :prompt], cache)
    for start[1] in range(prompt, config.max_seq_len):
        logits = model.decode(ids[[1, 0], start[1]], cache)[1, : config.vocab_size]
        np.testing.assert_allclose(logits, expected[start[1]], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("optimizer", "lora"), [("adamw", None), ("muon", None), ("adamw", 3)])
def test_memory_is_known_before_it_is_allocated(config, optimizer, lora, recompute):
    """The count covers all arrays of a model in training and its optimizer's moments, and allocates none of them."""
    asked = []

    class Counting(CpuOps):
        def empty(self, shape, dtype=""):
            array = super().empty(shape, dtype)
            asked.append(array.nbytes)
            return array

        def zeros(self, shape, dtype=""):
            array = super().zeros(shape, dtype)
            asked.append(array.nbytes)
            return array

    model = TrainableGPT(config, Counting(threads=1), BATCH, recompute, lora)
    training = TrainConfig(optimizer=optimizer, lora=lora)
    moving = Optimizer(model, training)
    small = model.metrics, model.dropout_key, moving.norm, moving.counters, np.empty(PLAN)
    allocated = sum(asked) - sum(array.nbytes for array in small)
    scratch = model.ops.muon_bytes(stack_shapes(config)) if optimizer == "muon" else 0
    kept = "streams" if recompute else "everything"
    planned = memory_bytes(config, BATCH, model.ops, kept, lora) + optimizer_bytes(config, training, model.ops)
    assert planned == allocated + scratch
    assert parameter_count(config) == sum(view.size for view in model.weights.named.values())


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_loss(torch, config, w, ids, labels):
    """GPT-2's mean loss, written independently from the paper's description, on a dict of torch tensors."""
    functional = torch.nn.functional
    gelu = {"gelu": lambda x: functional.gelu(x, approximate="tanh"), "relu": torch.relu}[config.activation]
    batch, seq = ids.shape

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:seq]
    for layer in range(config.num_layers):
        h = f"transformer.h.{layer}"
        q, k, v = (
            part.view(batch, seq, config.num_heads, -1).transpose(1, 2)
            for part in linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(
            torch.ones(seq, seq).triu(1).bool(), -math.inf
        )
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, seq, -1)
        x = x + linear(attended, f"{h}.attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    head = w["transformer.wte.weight" if config.tie_embeddings else "lm_head.weight"]
    logits = norm(x, "transformer.ln_f") @ head.T
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)


@pytest.mark.peers
@pytest.mark.parametrize(("seq", "ignored"), [(None, False), (1, False), (None, True)])
def test_loss_and_every_gradient_equal_pytorchs(config, seq, ignored):
    """Two float64 computations of the same sums, thousands of roundings of 1e-16 each: 1e-12, with room 1e-10."""
    torch = pytest.importorskip("torch")
    model, (ids, labels) = build(config), tokens(config, seq)
    if ignored:
        labels[1:, ::2] = -1
    weights = {name: torch.tensor(view, requires_grad=True) for name, view in model.weights.named.items()}
    theirs = torch_loss(torch, config, weights, torch.tensor(ids).long(), torch.tensor(labels).long())
    theirs.backward()
    assert mean_loss_and_gradients(model, ids, labels) == pytest.approx(theirs.item(), rel=1e-10)
    for name, view in model.gradients.named.items():
        peer = weights[name].grad.numpy()
        assert np.abs(view - peer).max() <= 1e-10 * max(1e-3, np.abs(peer).max()), name
