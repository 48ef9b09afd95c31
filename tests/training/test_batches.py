"""Batches: the tokens of each step, compared with the formula written out position by position."""

import doctest
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt.tokens
from gpt.batches import EVAL_STEPS, Batches, Shuffle, token_order
from gpt.config import SAMPLINGS
from gpt.errors import UserError
from gpt.tokens import Tokens


def batches(n: int, batch: int = 2, seq: int = 4, sampling="sequential", seed=0, val_fraction=0.0) -> Batches:
    """Batches of the tokens 0, 1, 2, …, n − 1: each token equals its position."""
    return Batches(
        np.arange(n, dtype=np.uint16), batch, seq, sampling=sampling, seed=seed, val_fraction=val_fraction
    )  # fmt: skip


def starts(data: Batches, count: int) -> np.ndarray:
    """The starts of the windows of the first `count` sequences, [count]."""
    return np.concatenate([data.train(index)[0][:, 0] for index in range(-(-count // data.batch))])[:count]


def generator(seed=0):
    return np.random.default_rng(seed)


def exceeds(observed: np.ndarray, expected: float) -> bool:
    """Whether the counts' chi squared, for equally likely cells, is over 5 standard deviations above its mean."""
    freedom = len(observed) - 1
    return float(((observed - expected) ** 2 / expected).sum()) > freedom + 5 * (2 * freedom) ** 0.5


@given(st.data())
def test_a_shuffled_pass_reads_each_window_once(data):
    batch, seq = data.draw(st.integers(1, 5), "B"), data.draw(st.integers(1, 7), "S")
    n = data.draw(st.integers(seq + 1, 200), "n_t")
    number = data.draw(st.integers(0, 10**30), "pass")
    circle, windows = n - 1, (n - 1) // seq
    shuffled = batches(n, batch, seq, "shuffled", seed=data.draw(st.integers(0, 2**70), "seed"))
    first = number * windows  # this pass has the sequence numbers first … first + windows − 1
    rows = [row for index in range(first // batch, (first + windows - 1) // batch + 1)
            for row in zip(*shuffled.train(index), strict=True)][first % batch :][:windows]  # fmt: skip
    for ids, labels in rows:
        assert (ids == (ids[0] + np.arange(seq)) % circle).all()
        assert (labels == ids + 1).all()
    read = np.concatenate([labels for _, labels in rows])
    assert len(set(read.tolist())) == windows * seq
    assert len({int(ids[0] - rows[0][0][0]) % circle % seq for ids, _ in rows} - {0}) <= 1  # all cut from one offset


def test_windows_start_as_the_example_of_the_module_says():
    data = batches(43, 4, 4, "shuffled")
    assert starts(data, 10).tolist() == [5, 9, 25, 17, 13, 21, 33, 1, 29, 37]
    assert data.train(2)[0].tolist() == [[29, 30, 31, 32], [37, 38, 39, 40], [34, 35, 36, 37], [18, 19, 20, 21]]
    at_40 = next(row for index in range(5) for row in data.train(index)[0].tolist() if row[0] == 40)
    assert at_40 == [40, 41, 0, 1]
    assert starts(batches(43, 4, 4, "sequential"), 12).tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 2]
    assert starts(batches(43, 4, 4, "random"), 8).tolist() == [1, 0, 23, 9, 38, 31, 11, 29]


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_a_text_of_few_windows_is_shuffled_over_many_passes_within_a_batch(windows):
    data = batches(4 * windows + 2, batch=12, seq=4, sampling="shuffled")
    labels = data.train(10**20)[1].reshape(-1, windows * 4)
    for of_a_pass in labels:
        assert len(set(of_a_pass.tolist())) == windows * 4
    assert len({tuple(of_a_pass) for of_a_pass in labels.tolist()}) > 1


def test_passes_have_other_orders_and_other_borders():
    data = batches(1004, batch=100, seq=10, sampling="shuffled")
    passes = [data.train(index)[0][:, 0] for index in range(20)]
    assert len({int(window % 10) for window in passes[0]}) <= 2  # one, and another after the seam
    offsets = {int(np.bincount(of_a_pass % 10).argmax()) for of_a_pass in passes}
    assert len(offsets) > 3
    assert len({tuple(np.argsort(of_a_pass)) for of_a_pass in passes}) == 20


def test_a_pass_starts_anywhere():
    data = batches(14, batch=5, seq=4, sampling="shuffled")  # 13 positions, 3 windows a pass
    drawn = starts(data, 3 * 13 * 200).reshape(-1, 3)
    for place in drawn.T:  # 2,600 passes: 200 starts at each position, whatever the place in the pass
        assert not exceeds(np.bincount(place, minlength=13), 200)


def test_ranks_read_different_windows_of_a_pass():
    ranks, data = 4, batches(1 + 4 * 96, batch=3, seq=4, sampling="shuffled")
    read = [data.train(step * ranks + rank)[1] for rank in range(ranks) for step in range(96 // 3 // ranks)]
    assert sorted(np.concatenate(read).ravel().tolist()) == list(range(1, 1 + 4 * 96))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_a_trillion_tokens_are_read_as_few_are(tmp_path, sampling):
    path, n, seq = tmp_path / "tokens.bin", 10**12, 1000
    with open(path, "wb") as file:
        file.truncate(2 * n)
    tokens = np.memmap(path, "<u2", mode="r")
    data = Batches(tokens, 1000, seq, sampling=sampling, seed=2**80, val_fraction=0.0)
    found = data._announced(2**33)
    assert found.shape == (1000,)
    assert ((found >= 0) & (found < n - 1)).all()
    if sampling == "shuffled":
        assert len(set(found.tolist())) == 1000
        assert found.max() > 0.98 * n > 0.02 * n > found.min()  # each misses with (1 - 0.02)^1000 = 2e-9
    ids, labels = data.train(2**33)
    assert not ids.any()
    assert not labels.any()


def test_an_order_has_every_number_once():
    for count in range(1, 301):
        order = Shuffle(count, generator(count))[np.arange(count)]
        assert sorted(order.tolist()) == list(range(count))


@given(st.integers(1, 10**12), st.integers(0, 2**32))
def test_an_order_of_any_size_repeats_no_number(count, seed):
    places = np.unique(generator(seed).integers(count, size=1000))
    numbers = Shuffle(count, generator(seed))[places]
    assert len(set(numbers.tolist())) == len(places)
    assert ((numbers >= 0) & (numbers < count)).all()


def test_neighboring_places_have_unrelated_numbers():
    """Over many orders, each number and its distance to the next one are uniform."""
    orders, count, random = 10_000, 100, generator()
    drawn = np.array([Shuffle(count, random)[np.array([41, 42])] for _ in range(orders)])
    assert not exceeds(np.bincount(drawn[:, 0], minlength=count), orders / count)
    distances = np.bincount((drawn[:, 1] - drawn[:, 0]) % count, minlength=count)
    assert distances[0] == 0
    assert not exceeds(distances[1:], orders / (count - 1))


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


@given(st.integers(0, 2**70), st.integers(0, 10**30))
def test_random_batches_are_drawn_as_in_old_runs(seed, index):
    """The draws may not change, because old runs must resume to the same bits."""
    key = np.array([seed % 2**64, index % 2**64], np.uint64)
    drawn = np.random.Generator(np.random.Philox(key=key)).integers(100 - 4, size=7)
    ids, _ = batches(100, batch=7, seq=4, sampling="random", seed=seed).train(index)
    assert ids.tolist() == [[start, start + 1, start + 2, start + 3] for start in drawn.tolist()]


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
    # 9,000 draws of 9 starts: each start is seen 1,000 times, plus or minus 5 standard deviations (29.8 each)
    assert np.abs(np.bincount(starts(data, 9000), minlength=9) - 1000).max() < 149


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_batch_depends_on_its_index_alone(sampling):
    first, second = (batches(1000, sampling=sampling, seed=3) for _ in range(2))
    wanted = first.train(7)[0].copy()
    for index in (2, 9, 7, 10**40):
        got = second.train(index)[0]
        assert (got == wanted).all() == (index == 7)


@pytest.mark.parametrize("sampling", ["shuffled", "random"])
def test_another_seed_draws_other_windows(sampling):
    drawn = [batches(1000, sampling=sampling, seed=seed).train(0)[0].tolist() for seed in (0, 1, 2**64 - 1)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_batch_is_written_into_the_buffers_that_are_given():
    out = np.zeros((2, 4), np.int32), np.zeros((4, 2), np.int32).T
    ids, labels = batches(30).train(1, out)
    assert ids is out[0]
    assert labels is out[1]
    assert ids.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert (labels == ids + 1).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_labels_that_do_not_count_are_minus_one_and_the_others_are_counted(sampling):
    counted = (np.arange(43) % 5 < 2).astype(np.uint8)
    settings = {"sampling": sampling, "seed": 0, "val_fraction": 0.2}
    tokens = np.arange(43, dtype=np.uint16)
    plain, masked = Batches(tokens, 3, 4, **settings), Batches(tokens, 3, 4, counted=counted, **settings)
    for index in range(12):  # the windows of some go on at the beginning
        (ids, labels), (same_ids, some_labels) = plain.train(index), masked.train(index)
        assert (same_ids == ids).all()
        assert (some_labels == np.where(counted[labels], labels, -1)).all()
        assert masked.count(index) == counted[labels].sum()
        assert plain.count(index) == 12
    for (_, labels), (_, some_labels) in zip(plain.validation(), masked.validation(), strict=True):
        assert (some_labels == np.where(counted[labels], labels, -1)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_batches_are_int32_for_files_of_any_dtype(dtype):
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
    data = batches(100, batch=2, seq=4, val_fraction=0.28)  # 28 tokens: five windows of 5, and three tokens left over
    got = list(data.validation())
    assert [ids.shape for ids, _ in got] == [(2, 4), (2, 4), (1, 4)]
    assert np.concatenate([ids for ids, _ in got]).tolist() == [list(range(72 + 5 * i, 76 + 5 * i)) for i in range(5)]
    assert all((labels == ids + 1).all() for ids, labels in got)


@pytest.mark.parametrize(("windows", "evenly"), [(39, 39), (40, 40), (41, 40), (80, 40), (1000, 40)])
def test_a_long_tail_is_sampled_evenly_and_always_at_the_same_windows(windows, evenly):
    data = batches(20 * windows, batch=2, seq=4, val_fraction=0.25)
    found = [int(row[0]) for ids, _ in data.validation() for row in ids]
    assert found == [int(row[0]) for ids, _ in data.validation() for row in ids]
    assert len(found) == evenly <= EVAL_STEPS * 2
    assert found[0] == data.train_tokens
    gaps = np.diff(found) // 5
    assert ((gaps == windows // evenly) | (gaps == -(-windows // evenly))).all()
    assert found[-1] + 5 > 20 * windows - 5 * (-(-windows // evenly))  # ends less than one gap before the tail's end


@pytest.mark.parametrize(("n", "evaluated"), [(99, False), (100, True)])
def test_a_tail_below_one_window_means_no_evaluation_and_a_note(n, evaluated):
    data = batches(n, seq=4, val_fraction=0.05)
    assert bool(list(data.validation())) == (data.note is None) == evaluated
    if not evaluated:
        assert "4 tokens are held out" in data.note
        assert "--seq 4 needs 5" in data.note


def test_without_a_held_out_fraction_there_is_neither_evaluation_nor_note():
    data = batches(50, val_fraction=0)
    assert data.note is None
    assert not list(data.validation())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_training_part_of_one_window_is_enough_and_one_token_less_is_too_short(sampling):
    ids, _ = batches(6, seq=4, sampling=sampling, val_fraction=0.17).train(5)
    assert sorted(ids[0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="4 tokens to train on, but --seq 4 needs 5: lower --seq or --val-fraction"):
        batches(5, seq=4, sampling=sampling, val_fraction=0.2)


class Recording(mmap.mmap):
    """A mapping that records the announced bytes; it refuses announcements if `refuses` is set."""

    refuses = False

    def madvise(self, option, start, length):
        assert option == mmap.MADV_WILLNEED
        if self.refuses:
            raise OSError("out of memory")
        super().madvise(option, start, length)
        self.announced = getattr(self, "announced", []) + [(start, start + length)]


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Tokens in a mapped file: mapped(count) are 0, 1, 2, …"""
    monkeypatch.setattr(mmap, "mmap", Recording)

    def make(count: int) -> np.memmap:
        np.arange(count, dtype="<u4").tofile(tmp_path / "tokens.bin")
        return np.memmap(tmp_path / "tokens.bin", "<u4", mode="r")

    return make


def announced(tokens: np.memmap, batch) -> bool:
    """Whether all tokens of a batch, except those after a seam, lie in announced bytes."""
    ranges = np.array(tokens._mmap.announced)
    for row, ahead in zip(*batch, strict=True):
        first, last = 4 * int(row[0]), 4 * int(ahead[-1])  # a token is its own position
        if last > first and not ((ranges[:, 0] <= first) & (ranges[:, 1] >= last + 4)).any():
            return False
    return True


needs_hints = pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="no hints on this platform")


@needs_hints
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_next_batch_is_announced_while_one_is_read(mapped, sampling):
    tokens = mapped(5_000_000)
    data, other = (
        Batches(each, 8, 64, sampling=sampling, seed=1, val_fraction=0.1) for each in (tokens, np.array(tokens))
    )
    for index in (7, 8, 9):
        tokens._mmap.announced = []
        assert np.array_equal(data.train(index), other.train(index))
        assert announced(tokens, other.train(index + 1))
        assert not announced(tokens, other.train(index + 2))


@needs_hints
def test_a_rank_announces_its_own_next_batch(mapped):
    tokens = mapped(5_000_000)
    data, other = (
        Batches(each, 8, 64, sampling="shuffled", seed=1, val_fraction=0.1) for each in (tokens, np.array(tokens))
    )
    data.train(3)
    data.train(7)
    tokens._mmap.announced = []
    data.train(11)
    assert announced(tokens, other.train(15))
    assert len(tokens._mmap.announced) == 8


@needs_hints
def test_windows_of_a_slice_of_a_map_are_announced_where_they_lie(mapped):
    tokens = mapped(5_000_000)[1_000_000:]
    data = Batches(tokens, 8, 64, sampling="random", seed=1, val_fraction=0.1)
    data.train(0)
    assert announced(tokens, data.train(1))


@needs_hints
def test_each_batch_of_a_validation_is_announced(mapped):
    tokens = mapped(5_000_000)
    found = list(Batches(tokens, 8, 64, sampling="random", seed=1, val_fraction=0.1).validation())
    assert len(found) == EVAL_STEPS
    assert all(announced(tokens, batch) for batch in found)


@needs_hints
def test_windows_in_several_files_are_announced_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(mmap, "mmap", Recording)
    files = [tmp_path / name for name in "ab"]
    for file in files:
        np.zeros(5_000_000, "<u4").tofile(file)
    first, second = (np.memmap(file, "<u4", mode="r") for file in files)
    Tokens([first, second]).announce(np.array([4_999_000, 5_000_000 + 70_000]), 2_000)
    assert first._mmap.announced == [(4 * 4_999_000 & -mmap.PAGESIZE, 4 * 5_000_000)]
    assert second._mmap.announced == [(4 * 70_000 & -mmap.PAGESIZE, 4 * 72_000)]


@needs_hints
def test_a_refused_announcement_changes_nothing(mapped, monkeypatch):
    data = Batches(mapped(5_000_000), 8, 64, sampling="shuffled", seed=1, val_fraction=0.1)
    wanted = [np.copy(data.train(index)) for index in (0, 1, 2)]
    monkeypatch.setattr(Recording, "refuses", True)
    assert np.array_equal(wanted, [data.train(index) for index in (0, 1, 2)])


@needs_hints
def test_windows_of_a_small_file_are_not_announced(mapped):
    tokens = mapped(4 << 20)
    Batches(tokens, 8, 64, sampling="shuffled", seed=1, val_fraction=0.1).train(0)
    assert not hasattr(tokens._mmap, "announced")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_in_several_arrays_give_the_batches_of_one(sampling):
    tokens, counted = np.arange(100, dtype=np.uint16), np.arange(100, dtype=np.uint8) % 3 > 0
    cut = Tokens([tokens[:37], tokens[37:40].astype(np.uint32), tokens[40:]])
    settings = {"sampling": sampling, "seed": 5, "val_fraction": 0.3, "counted": counted}
    one, several = Batches(tokens, 3, 5, **settings), Batches(cut, 3, 5, **settings)
    for index in range(12):
        assert np.array_equal(one.train(index), several.train(index))
        assert one.count(index) == several.count(index)
    for wanted, found in zip(one.validation(), several.validation(), strict=True):
        assert np.array_equal(wanted, found)
    for part in (slice(0, 37), slice(30, 60), slice(37, 40), slice(99, None), slice(100, None), slice(50, 20)):
        assert cut[part].tolist() == tokens[part].tolist()


def test_equal_tokens_stand_together_in_the_order_of_their_places():
    ids = np.array([[7, 2, 7], [2, 5, 2]], np.int32)
    assert token_order(ids).tolist() == [1, 3, 5, 4, 0, 2]
    assert token_order(ids, sequences=1).tolist() == [1, 0, 2, 0, 2, 1]
    assert token_order(ids + 2**16).tolist() == [1, 3, 5, 4, 0, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_training_on_a_file_larger_than_memory_reads_only_the_pages_that_it_needs(tmp_path):
    import resource

    path, size = tmp_path / "tokens.bin", 1 << 36  # 64 GiB, all one hole
    with open(path, "wb") as file:
        file.truncate(size)
    tokens = np.memmap(path, "<u2", mode="r")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sampling in SAMPLINGS:
        data = Batches(tokens, 4, 128, sampling=sampling, seed=0, val_fraction=0.05)
        for index in (0, 10**9, 10**18):
            data.train(index)
        assert len(list(data.validation())) == EVAL_STEPS
    # at most 200 windows are touched, each in at most two of the kernel's 64 KiB read-arounds: 25 MiB (ru_maxrss: KiB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_the_example_of_tokens_gives_the_results_that_stand_there():
    failed, tried = doctest.testmod(gpt.tokens)
    assert not failed
    assert tried
