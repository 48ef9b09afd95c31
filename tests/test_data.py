"""Batches: what each step reads, against the formula written out position by position."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.data import EVAL_BATCHES, Batches
from gpt.errors import UserError


def batches(n: int, batch: int = 2, seq: int = 4, sampling="sequential", seed=0, val_fraction=0.0) -> Batches:
    """Batches of the tokens 0, 1, 2, …, n − 1: a token is its own position."""
    return Batches(
        np.arange(n, dtype=np.uint16), batch, seq, sampling=sampling, seed=seed, val_fraction=val_fraction
    )  # fmt: skip


@given(st.data())
def test_sequential_batches_are_the_formula(data):
    batch, seq = data.draw(st.integers(1, 5), "B"), data.draw(st.integers(1, 7), "S")
    n = data.draw(st.integers(seq + 1, 60), "n_t")
    index = data.draw(st.integers(0, 10**30), "index")
    ids, labels = batches(n, batch, seq).train(index)
    for b in range(batch):
        for s in range(seq):
            p = ((index * batch + b) * seq + s) % (n - 1)
            assert (ids[b, s], labels[b, s]) == (p, p + 1)


def test_a_circle_shorter_than_a_batch_is_walked_several_times():
    ids, labels = batches(4, batch=4, seq=3).train(0)
    assert ids.tolist() == [[0, 1, 2]] * 4
    assert labels.tolist() == [[1, 2, 3]] * 4


def test_one_pass_reads_every_token_as_a_label_once():
    data = batches(41, batch=2, seq=4)
    labels = np.concatenate([data.train(index)[1].ravel() for index in range(5)])
    assert labels.tolist() == list(range(1, 41))


@given(st.integers(0, 2**70), st.integers(0, 10**30))
def test_random_windows_lie_inside_the_training_part(seed, index):
    data = batches(13, batch=5, seq=4, sampling="random", seed=seed, val_fraction=0.2)
    ids, labels = data.train(index)
    assert ((ids[:, 0] >= 0) & (ids[:, 0] <= data.train_tokens - 1 - 4)).all()
    assert (ids == ids[:, :1] + np.arange(4)).all()
    assert (labels == ids + 1).all()


def test_random_windows_are_uniform():
    data = batches(13, batch=1000, seq=4, sampling="random")
    starts = np.concatenate([data.train(index)[0][:, 0] for index in range(9)])
    # 9,000 draws of 9 starts: each is seen 1,000 times, give or take 5 standard deviations (29.8 each)
    assert np.abs(np.bincount(starts, minlength=9) - 1000).max() < 149


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_a_batch_depends_on_its_index_alone(sampling):
    first, second = (batches(1000, sampling=sampling, seed=3) for _ in range(2))
    wanted = first.train(7)[0].copy()
    for index in (2, 9, 7, 10**40):
        got = second.train(index)[0]
        assert (got == wanted).all() == (index == 7)


def test_another_seed_draws_other_windows():
    drawn = [batches(1000, sampling="random", seed=seed).train(0)[0].tolist() for seed in (0, 1, 2**64 - 1)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_batch_is_written_into_the_buffers_that_are_given():
    out = np.zeros((2, 4), np.int32), np.zeros((4, 2), np.int32).T
    ids, labels = batches(30).train(1, out)
    assert ids is out[0]
    assert labels is out[1]
    assert ids.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert (labels == ids + 1).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_batches_are_int32_whatever_the_file_holds(dtype):
    top = np.iinfo(dtype).max if dtype == np.uint16 else 2**31 - 1
    data = Batches(np.full(20, top, dtype), 2, 4, sampling="sequential", seed=0, val_fraction=0.5)
    for array in (*data.train(0), *next(data.validation())):
        assert array.dtype == np.int32
        assert (array == top).all()


@pytest.mark.parametrize(("n", "fraction", "held_out"), [(100, 0.05, 5), (119, 0.05, 5), (120, 0.05, 6), (99, 0.0, 0)])
def test_the_tail_is_held_out(n, fraction, held_out):
    data = batches(n, val_fraction=fraction)
    assert (data.train_tokens, data.val_tokens) == (n - held_out, held_out)
    seen = {int(label) for index in range(n) for label in data.train(index)[1].ravel()}
    assert max(seen) == n - held_out - 1


def test_validation_cuts_the_tail_into_windows_in_order():
    data = batches(100, batch=2, seq=4, val_fraction=0.28)  # 28 tokens: five windows of 5, three tokens over
    got = list(data.validation())
    assert [ids.shape for ids, _ in got] == [(2, 4), (2, 4), (1, 4)]
    assert np.concatenate([ids for ids, _ in got]).tolist() == [list(range(72 + 5 * i, 76 + 5 * i)) for i in range(5)]
    assert all((labels == ids + 1).all() for ids, labels in got)


@pytest.mark.parametrize(("windows", "evenly"), [(39, 39), (40, 40), (41, 40), (80, 40), (1000, 40)])
def test_a_long_tail_is_sampled_evenly_and_always_at_the_same_windows(windows, evenly):
    data = batches(20 * windows, batch=2, seq=4, val_fraction=0.25)
    starts = [int(row[0]) for ids, _ in data.validation() for row in ids]
    assert starts == [int(row[0]) for ids, _ in data.validation() for row in ids]
    assert len(starts) == evenly <= EVAL_BATCHES * 2
    assert starts[0] == data.train_tokens
    gaps = np.diff(starts) // 5
    assert ((gaps == windows // evenly) | (gaps == -(-windows // evenly))).all()
    assert starts[-1] + 5 > 20 * windows - 5 * (-(-windows // evenly))  # no window's worth of the tail is left out


@pytest.mark.parametrize(("n", "evaluated"), [(99, False), (100, True)])
def test_a_tail_below_one_window_means_no_evaluation_and_a_note(n, evaluated):
    data = batches(n, seq=4, val_fraction=0.05)
    assert bool(list(data.validation())) == (data.note is None) == evaluated
    if not evaluated:
        assert "4 tokens are held out" in data.note
        assert "--seq 4 needs 5" in data.note


def test_no_evaluation_was_wanted_so_there_is_no_note():
    data = batches(50, val_fraction=0)
    assert data.note is None
    assert not list(data.validation())


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_a_training_part_of_one_window_is_enough_and_one_token_less_is_too_short(sampling):
    ids, _ = batches(6, seq=4, sampling=sampling, val_fraction=0.17).train(5)
    assert ids[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="4 tokens to train on, but --seq 4 needs 5: lower --seq or --val-fraction"):
        batches(5, seq=4, sampling=sampling, val_fraction=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_training_on_a_file_larger_than_memory_reads_only_what_it_needs(tmp_path):
    import resource

    path, size = tmp_path / "tokens.bin", 1 << 36  # 64 GiB, all of it a hole
    with open(path, "wb") as file:
        file.truncate(size)
    tokens = np.memmap(path, "<u2", mode="r")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sampling in ("sequential", "random"):
        data = Batches(tokens, 4, 128, sampling=sampling, seed=0, val_fraction=0.05)
        for index in (0, 10**9, 10**18):
            data.train(index)
        assert len(list(data.validation())) == EVAL_BATCHES
    # at most 200 windows are touched, each in at most two of the kernel's 64 KiB read-arounds: 25 MiB (ru_maxrss: KiB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
