"""Memory and CPUs of a container: cgroups of both versions in simulated roots, and real ones if permitted."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt import checkpoint, cli, plan
from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.ranks import Ranks
from gpt.errors import UserError
from gpt.export import export
from gpt.generate import load_model
from gpt.model import memory_bytes
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.optim import COUNTERS, optimizer_bytes, optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.plan import space
from gpt.run import Run
from gpt.system import limits
from gpt.system.console import size
from gpt.tokenizer import Tokenizer
from tests.support import ROOT

MIB = 2**20
V2 = "30 1 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "36 31 0:33 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a root folder with these files, on a machine with 64 CPUs and 1 TiB of free memory."""
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("", (), {"available": 2**40}))
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def make(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return str(tmp_path)

    return make


def v2(group="/", mount="/", **folders):
    files = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2.format(root=mount)}
    for folder, content in folders.items():
        path = f"sys/fs/cgroup{folder.replace('__', '/')}"
        files |= {f"{path}/{name}": text for name, text in content.items()}
    return files


def memory_v2(limit, used, stat="", high="max"):
    return {"memory.max": limit, "memory.high": high, "memory.current": used, "memory.stat": stat}


def test_without_cgroups_the_machine_is_the_limit(machine):
    assert limits.free_memory(machine()) == 2**40
    assert limits.cpus(machine()) == 64


def test_a_group_of_version_2_limits_memory_and_cpus(machine):
    group = {**memory_v2(150 * MIB, 40 * MIB), "cpu.max": "200000 100000"}
    root = machine(**v2("/box", __box=group))
    assert limits.free_memory(root) == 110 * MIB
    assert limits.cpus(root) == 2


def test_page_cache_is_not_used_but_shared_memory_is(machine):
    stat = f"anon 1\nfile {60 * MIB}\nshmem {20 * MIB}\nactive_file {10 * MIB}\ninactive_file {30 * MIB}\n"
    assert limits.free_memory(machine(**v2("/box", __box=memory_v2(150 * MIB, 100 * MIB, stat)))) == 90 * MIB


def test_the_smallest_limit_on_the_way_up_rules(machine):
    folders = {
        "__a": {**memory_v2(100 * MIB, 90 * MIB), "cpu.max": "150000 100000"},
        "__a__b": {**memory_v2(500 * MIB, 20 * MIB), "cpu.max": "max 100000"},
        "__a__b__c": {**memory_v2("max", 5 * MIB), "cpu.max": "800000 100000"},
    }
    root = machine(**v2("/a/b/c", **folders))
    assert limits.free_memory(root) == 10 * MIB
    assert limits.cpus(root) == 2  # a quota of 1.5


def test_the_limit_at_which_the_kernel_slows_a_group_down_counts_too(machine):
    root = machine(**v2("/box", __box=memory_v2(150 * MIB, 40 * MIB, high=100 * MIB)))
    assert limits.free_memory(root) == 60 * MIB


def test_a_container_whose_group_is_its_root_is_seen(machine):
    assert limits.free_memory(machine(**v2("/", **{"": memory_v2(99 * MIB, 0)}))) == 99 * MIB


@pytest.mark.parametrize(("group", "mount"), [("/docker/1f", "/docker/1f"), ("/docker/1f", "/"), ("/../x", "/")])
def test_a_path_from_outside_the_container_means_its_root(machine, group, mount):
    assert limits.free_memory(machine(**v2(group, mount, **{"": memory_v2(99 * MIB, 0)}))) == 99 * MIB


def test_version_1_limits_memory_and_cpus(machine):
    root = machine(**{
        "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box/in\n0::/\n",
        "proc/self/mountinfo": V1.format(root="/"),
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": 150 * MIB,
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": 100 * MIB,
        "sys/fs/cgroup/memory/box/memory.stat": f"cache 7\ntotal_inactive_file {30 * MIB}\ntotal_active_file {MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 400 * MIB,
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": 50_000,
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": 100_000,
        "sys/fs/cgroup/cpu,cpuacct/box/in/cpu.cfs_quota_us": -1,
        "sys/fs/cgroup/cpu,cpuacct/box/in/cpu.cfs_period_us": 100_000,
    })  # fmt: skip
    assert limits.free_memory(root) == 81 * MIB
    assert limits.cpus(root) == 1  # half a CPU, rounded up


@pytest.mark.parametrize("text", ["", "nonsense", "0::", ":::\n\n1", "\0"])
def test_files_that_say_nothing_are_no_limit(machine, text):
    root = machine(**{"proc/self/cgroup": text, "proc/self/mountinfo": text or V2.format(root="/")})
    assert limits.free_memory(root) == 2**40
    assert limits.cpus(root) == 64


def test_a_group_that_uses_more_than_its_limit_has_nothing_free(machine):
    assert limits.free_memory(machine(**v2("/box", __box=memory_v2(10 * MIB, 40 * MIB)))) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_a_limited_address_space_is_seen():
    code = """
import resource, psutil
from gpt.system.limits import free_memory
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 50_000_000, resource.RLIM_INFINITY))
print(free_memory())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 40_000_000 < int(out) <= 50_000_000


def test_disk_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert abs(limits.free_disk(tmp_path / "not" / "yet") - psutil.disk_usage(str(tmp_path)).free) < 2**30


MODEL = ModelConfig(vocab_size=100, max_seq_len=8, embed_dim=16, num_heads=2, ff_hidden_dim=32, num_layers=1)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a small model."""
    run = Run("r", tmp_path)
    run.path.mkdir()
    weights, optimizer = (
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for shapes in (parameter_shapes(MODEL), optimizer_shapes(MODEL, "adamw"))
    )
    return checkpoint.save(run, 1, MODEL, TrainConfig(), weights, optimizer, dict.fromkeys(COUNTERS, 0))


def test_generate_and_export_look_at_the_memory_first(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "load", lambda path: type("", (), {"vocab_size": 100}))
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("", (), {"available": 5000}))
    with pytest.raises(UserError, match=r"this model needs \d+ KiB of memory, but 0 bytes is free: close") as error:
        load_model(saved, CpuOps(1))
    assert "--batch" not in str(error.value)
    with pytest.raises(UserError, match=r"exporting needs 6 KiB of memory, but 5 KiB is free"):
        export(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_for_resuming_is_counted_from_the_first_start_on():
    ops, train = CpuOps(1), TrainConfig()
    arrays = memory_bytes(MODEL, train.batch_size, ops, "everything") + optimizer_bytes(MODEL, train, ops)
    assert plan.memory(MODEL, train, ops)[0] - arrays == 12 * 32 * 8 + 4 * 100 * 16  # the batch, and the embedding


def test_gpt2_124m_trains_in_11_gib_of_a_gpu(monkeypatch):
    """Of an H100, in bf16, with AdamW and 32 x 1,024 tokens; no array is allocated."""
    model, train = plan.settle({"optimizer": "adamw"}, "gpt2-124M", start=None, resume=False)
    device = NotingDevice("sm_90", 32, True)
    device.multiprocessors = 132
    monkeypatch.setattr(device, "free_bytes", lambda: 2**40)
    monkeypatch.setattr(space, "free_memory", lambda: 2**40)  # of the host
    needed, _ = plan.memory(replace(model, vocab_size=50_257), train, GpuOps(device, "bf16"))
    assert 10.5 * 2**30 < needed < 11 * 2**30


class Whole(CpuOps):
    """A CPU that takes the whole batch at once, as a GPU does."""

    def __init__(self, free):
        super().__init__(1)
        self.free = free

    def sequences(self, batch, seq):
        return batch

    def free_bytes(self):
        return self.free


def settings(said):
    """The training that an advice such as "--recompute --batch 4 --accumulate 2" describes."""
    words = said.split()
    numbers = {flag: int(words[words.index(flag) + 1]) for flag in ("--batch", "--accumulate") if flag in words}
    batch, accumulate = numbers.get("--batch", 32), numbers.get("--accumulate", 1)
    return TrainConfig(batch_size=batch, accumulate=accumulate, recompute="--recompute" in words)


def test_without_memory_the_largest_batches_that_fit_are_named():
    deep, train = replace(MODEL, num_layers=6), TrainConfig()
    needed, _ = plan.memory(deep, train, Whole(10**9))
    seen = set()
    for free in range(needed - 1, 0, -needed // 40):
        with pytest.raises(UserError, match=f"^training needs {re.escape(size(needed))} of memory, but ") as error:
            plan.memory(deep, train, Whole(free))
        advice = str(error.value).split(" is free: ")[1]
        if " would fit" not in advice:
            assert advice == "lower --seq (it is 8) or the model's size"
            smallest = replace(train, batch_size=1, accumulate=32, recompute=True)
            with pytest.raises(UserError):
                plan.memory(deep, smallest, Whole(free))
            continue
        for said in advice.replace(" would fit and take the same steps", "").split("; so would "):
            fitting = settings(said)
            seen.add((fitting.recompute, fitting.batch_size == 32))
            assert fitting.batch_size * fitting.accumulate == 32
            assert plan.memory(deep, fitting, Whole(free))[0] <= free
            if fitting.batch_size < 32:
                larger = replace(fitting, batch_size=2 * fitting.batch_size, accumulate=fitting.accumulate // 2)
                with pytest.raises(UserError):
                    plan.memory(deep, larger, Whole(free))
    assert seen == {(False, False), (True, True), (True, False)}


class OneByOne(Whole):
    """A CPU that takes one sequence at a time, so that even a huge batch needs memory for its ids alone."""

    def sequences(self, batch, seq):
        return 1


@pytest.mark.parametrize("ops", [Whole(10**7), OneByOne(10**11)])
def test_a_batch_of_billions_gets_its_advice_at_once(ops):
    train, begin = TrainConfig(batch_size=2**31 - 1), time.process_time()  # a prime number
    with pytest.raises(UserError, match=": --batch 1 --accumulate 2147483647 would fit and take the same steps"):
        plan.memory(MODEL, train, ops)
    assert time.process_time() - begin < 5


def test_without_memory_the_batches_of_one_rank_are_named():
    """Two ranks share 8 batches, so each has 4."""
    ranks, train = type("Two", (Ranks,), {"size": 2})(), TrainConfig(accumulate=8)
    needed, _ = plan.memory(MODEL, train, Whole(10**9), ranks)
    with pytest.raises(UserError, match=r": --batch 16 --accumulate 8 would fit and take the same steps"):
        plan.memory(MODEL, train, Whole(needed - 1), ranks)


@pytest.mark.parametrize("command", ["train", "tokenize", "generate", "export", "bench"])
def test_the_advice_of_a_command_without_memory_names_its_own_options_alone(command, capsys, monkeypatch):
    def callback(**_):
        raise MemoryError

    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(cli.main.commands[command], "callback", callback)
    required = [word for p in cli.main.commands[command].params if p.required for word in (p.opts[0], "x")]
    with pytest.raises(SystemExit):
        cli.main([command, *required])
    error = capsys.readouterr().err
    assert error.startswith("Error: out of memory: ")
    known = {option for p in cli.main.commands[command].params for option in p.opts}
    assert set(re.findall(r"--[a-z-]+", error)) <= known


class Lines(list):
    line = list.append


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (10**6, []),
        (200_000, ["Note: 5 x 47 KiB of checkpoints and the best weights (16 KiB) will be kept, but 195 KiB is free"]),
    ],
)
def test_a_disk_too_small_for_the_kept_checkpoints_is_reported_at_the_start(saved, monkeypatch, free, said):
    monkeypatch.setattr(space, "free_disk", lambda path: free)
    lines = Lines()
    space.check_disk(plan.Plan(saved.run, MODEL, TrainConfig(), None, None, None), lines)
    assert [line.split(" on the disk")[0] for line in lines] == said


def test_a_disk_too_small_for_one_checkpoint_is_refused(saved, monkeypatch):
    monkeypatch.setattr(space, "free_disk", lambda path: 30_000)
    with pytest.raises(UserError, match="a checkpoint takes 47 KiB, but 29 KiB is free on the disk of .*--runs-dir"):
        space.check_disk(plan.Plan(saved.run, MODEL, TrainConfig(), None, None, None), Lines())


@pytest.fixture
def cgroup():
    """A real group of version 1 with 150 MiB and half a CPU; gives a function that moves a process into the group."""
    folders = [Path("/sys/fs/cgroup") / kind / f"hipgpt-test-{os.getpid()}" for kind in ("memory", "cpu")]
    try:
        for folder in folders:
            folder.mkdir()
        (folders[0] / "memory.limit_in_bytes").write_text(str(150 * MIB))
        (folders[1] / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        pytest.skip(f"cgroups of version 1 cannot be made here: {error}")
    yield lambda: [(folder / "cgroup.procs").write_text(str(os.getpid())) for folder in folders]
    for folder in folders:
        folder.rmdir()


def test_a_real_group_is_seen_and_a_model_too_large_for_it_is_refused_rather_than_killed(hipgpt, cgroup):
    sizes = ("--dim", 512, "--heads", 8, "--ff", 2048, "--layers", 8, "--seq", 8, "--batch", 1)
    text = ROOT / "README.md"
    command = ("train", "--data-path", text, "--vocab-size", 100, *sizes, "--device", "cpu", "--run-name", "r")
    refused = hipgpt(*command, status=2, preexec_fn=cgroup)
    assert "CPU, 1 thread" in refused.stdout
    assert "of memory, but" in refused.stderr
    assert "MiB is free" in refused.stderr
