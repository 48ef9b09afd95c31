"""The elements that each rank steps, and training with them: as one rank trains, whatever the number of ranks."""

import numpy as np
import pytest

from gpt.batches import Batches
from gpt.config import ModelConfig, TrainConfig
from gpt.distributed import shares as shares_module
from gpt.distributed.ranks import ALONE
from gpt.distributed.shares import Shares
from gpt.initialization import initial_weights
from gpt.ops.cpu.operations import CpuOps
from gpt.parameters import layout, matrix_spans
from gpt.trainer import TrainStep
from tests.support.grids import pairs
from tests.support.ranks import on_ranks

MODEL = ModelConfig(vocab_size=53, max_seq_len=8, embed_dim=12, num_heads=2, ff_hidden_dim=20, num_layers=5)
UNTIED = ModelConfig(
    vocab_size=53, max_seq_len=8, embed_dim=12, num_heads=2, ff_hidden_dim=20, num_layers=1, tie_embeddings=False
)
CONFIGS = {"tied": MODEL, "untied": UNTIED}
TOKENS = np.random.default_rng(0).integers(0, 53, 2000).astype(np.uint16)
BATCHES, BATCH, STEPS = 12, 1, 3  # batches in a step, so that 1, 2, 3, 4 and 6 ranks share them equally


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """Buckets of one layer, or of as many as there are ranks."""
    monkeypatch.setattr(shares_module, "BUCKET", 1)


# ---- who steps which elements ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MODEL, UNTIED])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_element_is_stepped_by_one_rank_or_by_all(config, optimizer, sharded, size):
    stepped = np.zeros((size, layout(config, 1).total), int)
    for rank in range(size):
        shares = Shares(config, 1, optimizer, rank, size, sharded=sharded)
        for region in (shares.muon, shares.adamw):
            own = 0
            for part in region.own_parts():
                assert part.start == own
                own = part.own.stop
                stepped[rank, part.elements] += 1
            assert region.size == own
    by_all = (stepped == 1).all(axis=0)
    assert (by_all | (stepped.sum(axis=0) == 1)).all()
    if size > 1:
        muon_has = np.arange(by_all.size) < layout(config, 1).matrices if optimizer == "muon" else False
        assert np.array_equal(by_all, np.zeros_like(by_all) if sharded else ~(muon_has | np.zeros_like(by_all)))


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_a_matrix_that_muon_steps_belongs_to_one_rank_as_a_whole(size):
    strides = [(start + layer * stride, stride) for start, stride in matrix_spans(MODEL, 1) for layer in range(5)]
    for rank in range(size):
        for part in Shares(MODEL, 1, "muon", rank, size).muon.own_parts():
            assert all(
                max(start, part.elements.start) >= min(start + stride, part.elements.stop)  # they do not overlap
                or (part.elements.start <= start and start + stride <= part.elements.stop)
                for start, stride in strides
            )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_shares_of_the_ranks_are_about_equal(optimizer):
    """2, 3, 4 and 8 ranks divide 24 layers. Elements are shared out by blocks of 128, with a rest of one at most."""
    config = ModelConfig(vocab_size=53, max_seq_len=8, embed_dim=12, num_heads=2, ff_hidden_dim=20, num_layers=24)
    for size in (2, 3, 4, 8):
        sizes = []
        for rank in range(size):
            shares = Shares(config, 1, optimizer, rank, size, sharded=True)
            sizes.append(shares.muon.size + shares.adamw.size)
        stretches = len(shares.muon.stretches) + len(shares.adamw.stretches)
        assert max(sizes) - min(sizes) <= 128 * stretches
        assert sum(sizes) == layout(config, 1).total


def test_the_last_layers_are_reduced_first():
    """Their backward pass comes first. Each bucket begins once its lowest layer is done."""
    assert list(Shares(MODEL, 1, "adamw", 0, 2).blocks) == [4, 3, 2, 1, 0]
    assert list(Shares(MODEL, 1, "muon", 0, 2).blocks) == [3, 1, 0]


# ---- training --------------------------------------------------------------------------------------------------------


def train(ranks, optimizer="adamw", model=MODEL, batch=BATCH, batches=BATCHES, grad_clip=0.5, dropout=0.0):
    """Losses, norms, weights and moments after STEPS steps."""
    config = TrainConfig(
        batch_size=batch,
        accumulate=batches,
        total_steps=STEPS,
        optimizer=optimizer,
        learning_rate=1e-3,
        grad_clip=grad_clip,
    )
    model = ModelConfig(**{**model.to_json(), "dropout": dropout})
    data = Batches(TOKENS, batch, model.max_seq_len, sampling="shuffled", seed=1, val_fraction=0)
    step = TrainStep(model, config, data, CpuOps(threads=1), ranks)
    step.optimizer.initialize(initial_weights(model, 3))
    seen = []
    for number in range(1, STEPS + 1):
        step.run(number)
        seen.append((step.metrics().loss, float(step.optimizer.norm[0])))
    return seen, step.optimizer.weights_on_host(), step.optimizer.tensors_on_host(), step


def close(ours, theirs, sizes):
    """Sums over ranks are rounded in another order: 2^-24 of the sum of the absolute gradients, which Adam's first
    steps turn into as much of a step, and three steps of 1e-3 move a weight by 3e-3.
    """
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=2e-3, atol=sizes, err_msg=name)


@pytest.mark.parametrize(
    ("size", "name", "optimizer", "sharded"), pairs([2, 3, 4], list(CONFIGS), ["adamw", "muon"], [False, True])
)
def test_ranks_train_as_one_does(size, name, optimizer, sharded):
    config = CONFIGS[name]
    seen, weights, moments, _ = train(ALONE, optimizer, config)
    results = on_ranks(size, lambda ranks: train(ranks, optimizer, config), sharded)
    for ours, *_ in results:
        assert ours == results[0][0]  # to the bit, on all ranks
        np.testing.assert_allclose(ours, seen, rtol=1e-5)
    _, our_weights, our_moments, _ = results[0]
    close(our_weights, weights, 2e-5)
    close(our_moments, moments, 1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_all_ranks_have_the_same_model_after_a_step(optimizer):
    for sharded in (False, True):
        first, *others = on_ranks(3, lambda ranks: train(ranks, optimizer)[3].model.weights.flat, sharded)
        assert all(np.array_equal(first, other) for other in others)


def test_a_sharded_optimizer_gives_the_same_bits_as_a_whole_one_if_nothing_is_clipped():
    """The threads of this test add up in the same order in both cases. Clipping depends on the norm, whose squares are
    added up in another order.
    """
    whole, sharded = (
        on_ranks(4, lambda ranks: train(ranks, grad_clip=0)[1:3], sharded)[0] for sharded in (False, True)
    )
    for ours, theirs in zip(sharded, whole, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_dropout_draws_the_masks_that_one_rank_would_draw(sharded):
    seen, *_ = train(ALONE, dropout=0.3)
    ours, *_ = on_ranks(3, lambda ranks: train(ranks, dropout=0.3), sharded)[0]
    np.testing.assert_allclose(ours, seen, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 3), (3, 1), (4, 2)])
def test_a_state_saved_by_some_ranks_is_loaded_by_others_to_the_bit(optimizer, saved_by, loaded_by):
    def state(size, work):
        return on_ranks(size, work, sharded=True)[0] if size > 1 else work(ALONE)

    _, weights, moments, _ = state(saved_by, lambda ranks: train(ranks, optimizer))

    def reloaded(ranks):
        step = train(ranks, optimizer)[3]
        step.optimizer.initialize(weights.items())
        step.optimizer.load(moments, {"adam_step": 3, "skipped": 0, "skipped_in_a_row": 0})
        return step.optimizer.weights_on_host(), step.optimizer.tensors_on_host()

    for ours, theirs in zip(state(loaded_by, reloaded), (weights, moments), strict=True):
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all():
    def skipped(ranks):
        step = train(ranks)[3]
        step.model.gradients.flat[:] = np.nan if ranks.rank == 1 else 0
        step.optimizer.step(np.ones(1, np.float32))
        return step.optimizer.state()["skipped"]

    for sharded in (False, True):
        assert on_ranks(3, skipped, sharded) == [1, 1, 1]
