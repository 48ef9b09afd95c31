"""Ranks on GPUs, through NCCL or RCCL: exchanges, and the real command. Needs two GPUs."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def two_gpus():
    cupy = pytest.importorskip("cupy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    if count < 2:
        pytest.skip(f"needs 2 GPUs, and there are {count}")


# ---- exchanges -------------------------------------------------------------------------------------------------------

EQUAL, UNEQUAL = (0, 512, 1024), (0, 128, 1024)
ONE_RANK = (0, 1024, 1024)  # the second one has nothing


def host(rank, dtype, size=1024):
    """Small whole numbers, so that sums are exact in every type."""
    numbers = np.random.default_rng(rank).integers(-8, 8, size).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16) if dtype == "uint16" else numbers.astype(dtype)


def exchange(rank, group, pipe):
    """What rank `rank` of two has after each kind of exchange, once asked for directly and once in a graph."""
    from gpt.distributed.collectives import Exchange
    from gpt.distributed.nccl import NcclCollectives
    from gpt.ops.gpu.device import CupyDevice

    device = CupyDevice(rank)
    collectives, xp = NcclCollectives(rank, 2, group), device.xp
    results = {}
    for dtype in ("float32", "float64", "uint16"):
        for bounds in ((), EQUAL, UNEQUAL, ONE_RANK):
            own_size = bounds[rank + 1] - bounds[rank] if bounds else 0
            whole, own, gathered = xp.zeros(1024, dtype), xp.zeros(own_size, dtype), xp.zeros(1024, dtype)
            source = xp.asarray(host(rank, dtype))

            def work(whole=whole, own=own, gathered=gathered, source=source, bounds=bounds):
                whole[...] = source
                collectives.reduce([Exchange(whole, bounds, own)] if bounds else [Exchange(whole)])
                collectives.wait()
                if bounds:
                    collectives.gather([Exchange(gathered, bounds, own)])
                    collectives.wait()

            work()
            replay = device.record(work)
            for array in (whole, own, gathered):
                array.fill(0)
            replay()
            replay()
            results[dtype, bounds] = [xp.asnumpy(array) for array in (whole, own, gathered)]
    pipe.send(results)
    pipe.close()
    os._exit(0)  # as training ends: CuPy would wait for the graphs


def test_sums_and_parts_are_exchanged_directly_and_in_a_graph():
    from gpt.distributed.nccl import unique_id

    group, context = unique_id(), multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=exchange, args=(rank, group, theirs)))
        processes[-1].start()
        pipes.append(ours)
    found = []
    for pipe in pipes:
        assert pipe.poll(90), "a rank did not answer"
        found.append(pipe.recv())
    for process in processes:
        process.join(10)
    for dtype, bounds in found[0]:
        numbers = [host(rank, "float32") for rank in range(2)]
        total = sum(numbers)
        expected = (total.view(np.uint32) >> 16).astype(np.uint16) if dtype == "uint16" else total.astype(dtype)
        for rank in range(2):
            mine = found[rank][dtype, bounds]
            if not bounds:
                assert np.array_equal(mine[0], expected)
            else:
                assert np.array_equal(mine[1], expected[bounds[rank] : bounds[rank + 1]]), (dtype, bounds, rank)
                assert np.array_equal(mine[2], expected)


# ---- the command -----------------------------------------------------------------------------------------------------

MODEL = [
    "--tokenizer",
    "byte",
    "--vocab-size",
    "300",
    "--seq",
    "64",
    "--dim",
    "128",
    "--heads",
    "4",
    "--ff",
    "256",
    "--layers",
    "3",
]
MODEL += ["--global-batch", "16", "--log-every", "5", "--eval-every", "10", "--lr", "1e-3"]


def hipgpt(folder, *arguments):
    command = [sys.executable, "-m", "gpt.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def train(folder, name, *arguments, steps=20):
    process = hipgpt(
        folder, "train", "--run-name", name, "--data-path", ROOT / "data/data.txt", *MODEL, "--steps", steps, *arguments
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    lines = (folder / "checkpoints" / name / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [line.get("loss", line.get("val_loss")) for line in values], output


def weights(folder, name, step=20):
    return (folder / "checkpoints" / name / f"{name}_step{step}.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_gpus_train_as_one(tmp_path, optimizer):
    """bf16 has 8 bits: two orders of summing give losses that differ by less than one rounding of a loss of about 5."""
    one, _ = train(tmp_path, "one", "--gpus", 1, "--optimizer", optimizer)
    two, output = train(tmp_path, "two", "--gpus", 2, "--optimizer", optimizer)
    assert "Ranks:  2; in a step each takes 1 x 8 sequences" in output
    np.testing.assert_allclose(two, one, atol=2**-8 * 5)
    again, _ = train(tmp_path, "again", "--gpus", 2, "--optimizer", optimizer)
    assert again == two
    assert weights(tmp_path, "again") == weights(tmp_path, "two")
    sharded, _ = train(tmp_path, "sharded", "--gpus", 2, "--optimizer", optimizer, "--shard-optimizer")
    np.testing.assert_allclose(sharded, two, atol=2**-8 * 5)
    rounded, _ = train(tmp_path, "rounded", "--gpus", 2, "--optimizer", optimizer, "--reduce-precision", "bf16")
    np.testing.assert_allclose(rounded, two, atol=2**-7 * 5)


def test_a_run_of_two_gpus_goes_on_with_one_and_back(tmp_path):
    for steps, gpus in ((5, 2), (10, 1), (15, 2)):
        more = ["--resume"] if steps > 5 else []
        arguments = [*more, "--gpus", gpus, "--run-name", "parts", "--steps", steps, "--ckpt-every", 5]
        first = (
            []
            if more
            else ["--data-path", ROOT / "data/data.txt", *MODEL, "--warmup-steps", 0, "--schedule", "constant"]
        )
        process = hipgpt(tmp_path, "train", *arguments, *first)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    lines = (tmp_path / "checkpoints/parts/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines if "lr" in line] == [5 * 1024, 10 * 1024, 15 * 1024]


def started(folder, *arguments):
    """A run that has taken steps, and the process number of its second rank."""
    process = hipgpt(
        folder, "train", "--run-name", "r", "--data-path", ROOT / "data/data.txt", *MODEL, "--gpus", 2,
        "--steps", 10**6, "--ckpt-every", 50, "--log-every", 50, *arguments,
    )  # fmt: skip
    seen = ""
    while "[Step 100]" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return process, int(children.split()[0])


@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_rank_ends_all_with_one_line_and_the_run_goes_on(tmp_path, victim):
    process, child = started(tmp_path)
    begin = time.monotonic()
    os.kill(process.pid if victim == "first" else child, signal.SIGKILL)
    output, _ = process.communicate(timeout=40)
    assert time.monotonic() - begin < 30
    assert process.returncode != 0
    assert len(re.findall("^Error: rank [01] on .*ended without a word", output, re.MULTILINE)) == 1
    assert not os.path.exists(f"/proc/{child}")
    process = hipgpt(tmp_path, "train", "--run-name", "r", "--resume", "--steps", 400, "--gpus", 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 or "has reached step" in output, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("receiver", ["first", "second"])
def test_a_signal_to_one_rank_saves_the_step_that_all_have_finished(tmp_path, number, receiver):
    process, child = started(tmp_path)
    os.kill(process.pid if receiver == "first" else child, number)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 128 + number, output
    assert re.search(r"^Stopped at step \d+, saved", output, re.MULTILINE)
