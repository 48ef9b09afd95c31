"""The thread pool; neither the number of threads nor their timing changes a result."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from gpt.batches import token_order
from gpt.config import ModelConfig, TrainConfig
from gpt.model import TrainableGPT
from gpt.ops.cpu import linear as cpu_linear
from gpt.ops.cpu import operations as cpu
from gpt.ops.cpu.operations import CpuOps
from gpt.optim import Optimizer
from gpt.system import threads as threads_module
from gpt.system.threads import Scratch, Threads, ahead, available_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_task_runs_once(threads, count):
    ran = []
    Threads(threads).run(ran.append, count)
    assert sorted(ran) == list(range(count))


def test_blocks_cover_all_rows():
    blocks = []
    Threads(1).run_blocks(blocks.append, rows=10, block=4)
    assert blocks == [slice(0, 4), slice(4, 8), slice(8, 10)]


def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    Threads(3).run(lambda number: meeting.wait(), 3)  # raises BrokenBarrierError if a task never arrives


def test_a_single_task_stays_in_the_calling_thread():
    where = []
    Threads(3).run(lambda number: where.append(threading.current_thread()), 1)
    assert where == [threading.current_thread()]


@pytest.mark.parametrize("where", ["the caller", "a worker"])
def test_an_error_in_a_task_reaches_the_caller_and_the_pool_stays_usable(where):
    threads, caller = Threads(2), threading.current_thread()
    meeting = threading.Barrier(2, timeout=10)

    def task(number):
        meeting.wait()
        if (threading.current_thread() is caller) == (where == "the caller"):
            raise ZeroDivisionError(number)

    with pytest.raises(ZeroDivisionError):
        threads.run(task, 2)
    ran = []
    threads.run(ran.append, 5)
    assert sorted(ran) == list(range(5))


def test_after_a_failure_no_further_task_is_begun():
    ran = []

    def task(number):
        ran.append(number)
        if number == 0:
            raise ZeroDivisionError
        time.sleep(0.02)

    with pytest.raises(ZeroDivisionError):
        Threads(2).run(task, 500)
    assert len(ran) < 500


def test_a_pool_holds_no_array_after_its_tasks_are_done():
    threads, array = Threads(3), np.zeros(10)
    gone = weakref.ref(array)
    threads.run(lambda number, array=array: array.sum(), 3)
    del array
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:  # a worker reports its result before it drops its task
        time.sleep(0.01)
    assert gone() is None


def test_threads_end_with_their_pool():
    before = set(threading.enumerate())
    pool = Threads(3)
    workers = set(threading.enumerate()) - before
    assert len(workers) == 2
    del pool
    gc.collect()
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()


def grant(threads, monkeypatch):
    """Let no more than so many threads start, as a container does with a low limit of processes."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_fewer_threads_do_the_work_if_the_system_refuses_more(monkeypatch):
    grant(2, monkeypatch)
    threads, ran = Threads(8), []
    assert (threads.count, threads.wanted) == (3, 8)
    threads.run(ran.append, 20)
    assert sorted(ran) == list(range(20))


@pytest.mark.parametrize("granted", [0, 1, 100])
def test_results_come_in_order_even_if_the_system_refuses_threads(granted, monkeypatch):
    grant(granted, monkeypatch)
    assert list(ahead(lambda number: number**2, range(20), threads=4)) == [number**2 for number in range(20)]


def test_no_more_than_a_result_for_each_thread_waits_to_be_taken():
    begun = []
    results = ahead(lambda number: begun.append(number) or number, range(100), threads=3)
    for taken in range(1, 51):
        next(results)
        assert len(begun) <= taken + 4
    results.close()
    assert len(begun) < 60, "who takes only some of the results does not wait for the others"


def test_an_error_ahead_comes_when_its_result_is_taken():
    results = ahead(lambda number: 1 // (2 - number), range(9), threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_single_item_stays_in_the_calling_thread_when_working_ahead():
    assert list(ahead(lambda _: threading.current_thread(), [0], threads=4)) == [threading.current_thread()]


def test_scratch_is_reused_and_grows_and_is_each_threads_own():
    scratch, dtype, seen = Scratch(), np.dtype(np.float32), []
    small = scratch("a", (2, 3), dtype)
    assert np.shares_memory(small, scratch("a", (6,), dtype))
    assert not np.shares_memory(small, scratch("b", (6,), dtype))
    assert scratch("a", (50, 2), dtype).shape == (50, 2)
    other = threading.Thread(target=lambda: seen.append(scratch("a", (100,), dtype)))
    other.start()
    other.join()
    assert not np.shares_memory(seen[0], scratch("a", (100,), dtype))


def test_omp_num_threads_is_respected(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_threads() == 3
    assert CpuOps().description == "CPU, 3 threads"
    assert CpuOps(threads=1).description == "CPU, 1 thread"


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("many", "default"), ("", "default"), ("0", "default"), ("000", "default"), ("-1", "default"), ("1.5", "default"),
     (" 3 ", 3), ("3,2", 3), ("0002", 2), ("1" * 5, "most"), ("9" * 5000, "most")],
)  # fmt: skip
def test_omp_num_threads_may_be_anything(monkeypatch, variable, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    numbers = {"default": threads_module.CPUS, "most": threads_module.MOST_PER_CPU * threads_module.CPUS}
    assert available_threads() == numbers.get(expected, expected)


def test_blas_itself_runs_on_one_thread():
    CpuOps(threads=2)
    assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"} <= {1}


def train(threads, steps=3):
    """Weights after a few float32 steps with dropout, of a model whose arrays are cut into many blocks."""
    config = ModelConfig(
        vocab_size=301, max_seq_len=70, embed_dim=24, num_heads=3, ff_hidden_dim=40, num_layers=2, dropout=0.1
    )
    model = TrainableGPT(config, CpuOps(threads), batch=5)
    model.initialize(seed=1)
    optimizer, rng = Optimizer(model, TrainConfig()), np.random.default_rng(0)
    for step in range(steps):
        model.dropout_key[1] = step
        model.gradients.flat.fill(0)
        ids = rng.integers(0, 301, (5, 70)).astype(np.int32)
        model.loss_and_gradients(ids, np.roll(ids, -1), token_order(ids), np.full(1, 1 / ids.size, np.float32))
        optimizer.step(np.array([1e-3], np.float32))
    return model.gradients.flat.copy(), model.weights.flat.copy()


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 1000)
    monkeypatch.setattr(cpu, "LEAST_BLOCK", 100)
    for name, size in {"CHUNK": 1000, "PRODUCT_ROWS": 32, "PRODUCT_BLOCK": 500, "SMALL_PRODUCT": 0}.items():
        monkeypatch.setattr(cpu_linear, name, size)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_repeated_run_gives_the_same_bits(threads):
    assert train(threads)[1].tobytes() == train(threads)[1].tobytes()


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing_but_rounding(threads):
    """In one gradient, sums of 350 terms in another order differ by at most 350 · 2**-24 = 2e-5 of their size."""
    one, many = train(1, steps=1)[0], train(threads, steps=1)[0]
    assert np.abs(one - many).max() < 2e-5 * np.abs(one).max()
