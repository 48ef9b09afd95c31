"""Ranks on GPUs, through NCCL or RCCL: exchanges, and the real command. Needs two GPUs, and repeats all on four."""

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

from tests.distributed.conftest import exists, until
from tests.support import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[2, 4])
def size(request):
    """The number of ranks, each on a GPU of its own."""
    cupy = pytest.importorskip("cupy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    if count < request.param:
        pytest.skip(f"needs {request.param} GPUs, and there are {count}")
    return request.param


# ---- exchanges -------------------------------------------------------------------------------------------------------

ELEMENTS = 1024


def all_bounds(size):
    """The ways of dealing out elements that are tried: none, equal parts, unequal parts, all to the last rank."""
    equal = tuple(range(0, ELEMENTS + 1, ELEMENTS // size))
    return (), equal, (0, *(128 * r for r in range(1, size)), ELEMENTS), (*[0] * size, ELEMENTS)


def host(rank, dtype):
    """Small whole numbers, so that sums are exact in every type."""
    numbers = np.random.default_rng(rank).integers(-8, 8, ELEMENTS).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16) if dtype == "uint16" else numbers.astype(dtype)


def exchange(rank, size, group, pipe):
    """What rank `rank` of `size` has after each kind of exchange, once asked for directly and once in a graph."""
    from gpt.distributed.collectives import Exchange
    from gpt.distributed.nccl import NcclCollectives
    from gpt.ops.gpu.device import CupyDevice

    device = CupyDevice(rank)
    collectives, xp = NcclCollectives(rank, size, group), device.xp
    results = {}
    for dtype in ("float32", "float64", "uint16"):
        for bounds in all_bounds(size):
            own_size = bounds[rank + 1] - bounds[rank] if bounds else 0
            whole, own, gathered = xp.zeros(ELEMENTS, dtype), xp.zeros(own_size, dtype), xp.zeros(ELEMENTS, dtype)
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


def test_sums_and_parts_are_exchanged_directly_and_in_a_graph(size):
    from gpt.distributed.nccl import unique_id

    group, context = unique_id(), multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=exchange, args=(rank, size, group, theirs)))
        processes[-1].start()
        pipes.append(ours)
    found = []
    for pipe in pipes:
        assert pipe.poll(90), "a rank did not answer"
        found.append(pipe.recv())
    for process in processes:
        process.join(10)
    for dtype, bounds in found[0]:
        numbers = [host(rank, "float32") for rank in range(size)]
        total = sum(numbers)
        expected = (total.view(np.uint32) >> 16).astype(np.uint16) if dtype == "uint16" else total.astype(dtype)
        for rank in range(size):
            mine = found[rank][dtype, bounds]
            if not bounds:
                assert np.array_equal(mine[0], expected)
            else:
                assert np.array_equal(mine[1], expected[bounds[rank] : bounds[rank + 1]]), (dtype, bounds, rank)
                assert np.array_equal(mine[2], expected)


# ---- the command -----------------------------------------------------------------------------------------------------

MODEL = (
    "--data-path", ROOT / "data/data.txt", "--tokenizer", "byte", "--vocab-size", 300, "--seq", 64, "--dim", 128,
    "--heads", 4, "--ff", 256, "--layers", 3, "--global-batch", 16, "--lr", 1e-3,
)  # fmt: skip


def hipgpt(folder, *arguments):
    command = [sys.executable, "-m", "gpt.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(process):
    """The output of a command that ends by itself, without an error."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def train(folder, name, *arguments):
    """The losses of 20 steps, and the command's output."""
    output = ended(
        hipgpt(
            folder, "train", "--run-name", name, *MODEL, "--steps", 20, "--log-every", 5, "--eval-every", 10, *arguments
        )
    )
    lines = (folder / "checkpoints" / name / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [line.get("loss", line.get("val_loss")) for line in values], output


def weights(folder, name):
    return (folder / "checkpoints" / name / f"{name}_step20.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_several_gpus_train_as_one(tmp_path, optimizer, size):
    """bf16 has 8 bits: two orders of summing give losses that differ by less than one rounding of a loss of about 5."""
    options = ("--optimizer", optimizer, "--gpus")
    one, _ = train(tmp_path, "one", *options, 1)
    several, output = train(tmp_path, "several", *options, size)
    assert f"Ranks:  {size}; in a step each takes 1 x {16 // size} sequences" in output
    np.testing.assert_allclose(several, one, atol=2**-8 * 5)
    again, _ = train(tmp_path, "again", *options, size)
    assert again == several
    assert weights(tmp_path, "again") == weights(tmp_path, "several")
    sharded, _ = train(tmp_path, "sharded", *options, size, "--shard-optimizer")
    np.testing.assert_allclose(sharded, several, atol=2**-8 * 5)
    rounded, _ = train(tmp_path, "rounded", *options, size, "--reduce-precision", "bf16")
    np.testing.assert_allclose(rounded, several, atol=2**-7 * 5)


def test_a_run_of_several_gpus_goes_on_with_one_and_back(tmp_path, size):
    fresh = (*MODEL, "--warmup-steps", 0, "--schedule", "constant", "--log-every", 5)
    for steps, gpus, options in ((5, size, fresh), (10, 1, ("--resume",)), (15, size, ("--resume",))):
        ended(
            hipgpt(
                tmp_path, "train", "--run-name", "parts", "--gpus", gpus, "--steps", steps, "--ckpt-every", 5, *options
            )
        )
    lines = (tmp_path / "checkpoints/parts/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines if "lr" in line] == [5 * 1024, 10 * 1024, 15 * 1024]


def started(folder, size):
    """A run that has taken steps and saved some, and the process number of its last rank."""
    process = hipgpt(
        folder, "train", "--run-name", "r", *MODEL, "--gpus", size, "--steps", 10**6, "--ckpt-every", 50,
        "--log-every", 50,
    )  # fmt: skip
    seen = ""
    while "[Step 100]" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return process, max(map(int, children.split()))


def goes_on(folder, size):
    """The run takes ten more steps after the last one that it saved."""
    saved = json.loads((folder / "checkpoints/r/latest_config.json").read_text())["checkpoint"]["step"]
    assert saved >= 50
    output = ended(
        hipgpt(folder, "train", "--run-name", "r", "--resume", "--steps", saved + 10, "--log-every", 1, "--gpus", size)
    )
    assert f"[Step {saved + 1}]" in output
    assert f"[Step {saved + 10}]" in output


@pytest.mark.parametrize(
    ("victim", "number", "said"),
    [
        ("first", signal.SIGKILL, "ended without a word"),
        ("last", signal.SIGKILL, "ended without a word"),
        ("last", signal.SIGSTOP, "it hangs"),
    ],
)
def test_a_rank_that_is_lost_ends_all_with_one_line_and_the_run_goes_on(tmp_path, victim, number, said, size):
    process, child = started(tmp_path, size)
    begin = time.monotonic()
    os.kill(process.pid if victim == "first" else child, number)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert process.returncode != 0
    assert len(re.findall(rf"^Error: rank \d on .*{said}", output, re.MULTILINE)) == 1
    until(lambda: not exists(child))
    goes_on(tmp_path, size)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("receiver", ["first", "last"])
def test_a_signal_to_one_rank_saves_the_step_that_all_have_finished(tmp_path, number, receiver, size):
    process, child = started(tmp_path, size)
    os.kill(process.pid if receiver == "first" else child, number)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 128 + number, output
    assert re.search(r"^Stopped at step \d+, saved", output, re.MULTILINE)
    goes_on(tmp_path, size)
