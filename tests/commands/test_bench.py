"""`hipgpt bench`: the command on the CPU, and the timing of operations on a GPU in simulated time."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt import bench, timing
from gpt.batches import Batches
from gpt.bench import Product, TimedOps, flops_per_token, time_ahead
from gpt.cli import main
from gpt.config import ModelConfig, TrainConfig
from gpt.initialization import initial_weights
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.timeline import CupyTimeline
from gpt.parameters import parameter_count
from gpt.trainer import TrainStep
from tests.support.devices import executor, gpu

SHAPE = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 2, "--seq", 16, "--batch", 4, "--vocab-size", 100)
MODEL = ModelConfig(vocab_size=100, max_seq_len=16, embed_dim=16, num_heads=2, ff_hidden_dim=32, num_layers=2)
CALLS = {  # calls of each operation in a step of two layers
    "embedding": 1, "layernorm": 1, "linear": 2 * 4 + 1, "attention": 2, "add_layernorm": 4, "softmax_cross_entropy": 1,
    "linear_backward": 2 * 4 + 1, "weight_gradient": 2 * 4 + 1, "attention_backward": 2, "add_layernorm_backward": 4,
    "layernorm_backward": 1, "embedding_backward": 1, "global_norm": 1, "adamw": 1,
}  # fmt: skip


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The output of `hipgpt bench` on the CPU, with groups of 20 ms and a small product: measured("--steps", 2)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "GROUP_SECONDS", 0.02)
    monkeypatch.setattr(bench, "CPU_PRODUCT", 256)

    def run(*flags):
        result = CliRunner().invoke(main, ["bench", "--device", "cpu", *map(str, flags)])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_its_numbers_follow_from_one_another(measured):
    result = json.loads(measured("--json", "--steps", 2, "--accumulate", 3, *SHAPE))
    assert result["parameters"] == parameter_count(MODEL)
    assert result["tokens_per_step"] == 3 * 4 * 16
    assert result["steps_per_group"] == 2
    assert result["ms_per_step"] == sorted(result["groups_ms_per_step"])[1]
    tokens_per_second = 3 * 4 * 16 / result["ms_per_step"] * 1e3
    assert result["tokens_per_second"] == pytest.approx(tokens_per_second)
    assert result["model_tflops"] == pytest.approx(flops_per_token(MODEL) * tokens_per_second / 1e12)
    assert result["fraction_of_peak"] == pytest.approx(result["model_tflops"] / result["peak_tflops"])
    assert result["first_step_s"] > 0
    assert result["generated_tokens_per_second"] > 0
    assert result["sequences_together"] == 16
    assert result["generated_tokens_per_second_together"] > 0
    assert result["held_bytes"] > result["planned_bytes"] > 4 * 4 * result["parameters"]


def test_every_operation_of_a_step_is_in_the_breakdown_and_nothing_is_counted_twice(measured):
    result = json.loads(measured("--json", "--steps", 1, *SHAPE))
    operations = {operation["name"]: operation for operation in result["operations"]}
    assert {name: operations[name]["calls"] for name in CALLS} == CALLS
    times = [operation["ms"] for operation in result["operations"]]
    assert times == sorted(times, reverse=True)
    whole = result["operations_and_between_ms"]
    assert sum(times) + result["between_operations_ms"] == pytest.approx(whole)
    assert result["between_operations_ms"] >= 0
    assert operations["linear"]["share"] == pytest.approx(operations["linear"]["ms"] / whole)
    assert result["late_calls"] == 0


def test_a_person_reads_the_same_and_no_file_is_written(measured):
    lines = measured("--preset", "tiny", "--steps", 1, "--layers", 1).splitlines()
    assert lines[0].startswith("Device:     CPU, ")
    assert "(1 layer, dim 128, 4 heads, seq 64, vocabulary 2,000)" in lines[1]
    begins = ("First step: ", "Step: ", "Tokens: ", "Arithmetic: ", "Memory: ", "Generating: ")
    assert all(line.startswith(begin) for line, begin in zip(lines[2:8], begins, strict=True))
    assert any(line.startswith("linear_backward ") for line in lines)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--steps", 0), "--steps is 0"),
        (("--dim", 15, "--heads", 2), "not a multiple"),
        (("--vocab-size", 0), "--vocab-size is 0"),
        (("--preset", "huge"), "huge"),
        (("--batch", 1_000_000_000), "memory"),
        (("--layers", 1000, "--dim", 16384), "memory"),
        (("--layers", 3_000_000), "--layers is 3000000, but must be at most 10000"),
        (("--device", "tpu"), "--device is tpu"),
        (("--precision", "bf16"), "--precision bf16 needs a GPU"),
        (("--lr", 1), "--lr"),
    ],
)
def test_rubbish_is_refused_in_one_line(hipgpt, flags, complaint):
    assert complaint in hipgpt("bench", "--device", "cpu", *flags, status=2).stderr


def test_the_formula_is_palms():
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T. H Q (heads times their width) is the model's width."""
    gpt3 = ModelConfig(vocab_size=50257, max_seq_len=2048, embed_dim=1024, num_heads=16, num_layers=24)
    assert flops_per_token(gpt3) == 6 * parameter_count(gpt3) + 12 * 24 * 16 * 64 * 2048


# ---- operations, timed ----------------------------------------------------------------------------------------------


class SimulatedGpu:
    """Operations and timeline of a GPU in simulated time: the host takes 10 s to queue an operation of 2 s."""

    def __init__(self) -> None:
        self.host = self.free = 0.0  # the host's time, and the time at which the GPU will be done
        self.timeline = self

    def quick(self) -> None:
        self.host += 10
        self.work(2)

    def work(self, seconds: float) -> None:
        self.free = max(self.free, self.host) + seconds

    def mark(self) -> float:
        return max(self.free, self.host)

    def has_passed(self, mark: float) -> bool:
        return mark <= self.host

    def seconds_between(self, begin: float, end: float) -> float:
        self.host = max(self.host, end)
        return end - begin


@pytest.fixture
def simulated(monkeypatch):
    device = SimulatedGpu()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: device.host)
    return device


WAITING = 3 * 10 + 2.0  # the seconds that three calls take on an idle GPU


def three(ops):
    return lambda: [ops.quick() for _ in range(3)]


def test_behind_other_work_an_operation_takes_its_own_time_and_not_the_hosts(simulated):
    ops = TimedOps(simulated)
    assert ops.time(three(ops)).operations == [("quick", 3, WAITING)]
    result = time_ahead(ops, three(ops), simulated.work)
    assert result.operations == [("quick", 3, 3 * 2.0)]
    assert (result.between, result.late) == (0, 0)


def test_work_that_ended_too_early_is_made_longer(simulated):
    ops = TimedOps(simulated)
    asked = []

    def too_short(seconds):
        asked.append(seconds)
        simulated.work(seconds / 3)

    assert time_ahead(ops, three(ops), too_short).late == 0
    assert asked == sorted(asked)
    assert asked[-1] > asked[0]


def test_a_device_that_could_not_be_kept_busy_is_said_to_have_waited(simulated):
    ops = TimedOps(simulated)
    result = time_ahead(ops, three(ops), lambda seconds: None)
    assert result.late == 3
    assert result.operations == [("quick", 3, WAITING)]


def weights_after_two_steps(ops):
    tokens = np.random.default_rng(0).integers(0, 100, 1000)
    batches = Batches(tokens, 2, 16, sampling="random", seed=0, val_fraction=0)
    step = TrainStep(MODEL, TrainConfig(batch_size=2), batches, ops)
    step.optimizer.initialize(initial_weights(step.model.config, 0))
    passes = [ops.time(lambda number=number: step.run(number)) if isinstance(ops, TimedOps)
              else step.run(number) for number in (1, 2)]  # fmt: skip
    return ops.to_host(step.model.weights.flat).copy(), passes[-1]


@pytest.mark.parametrize("make", [CpuOps, lambda: GpuOps(executor("mma"), "bf16")], ids=["cpu", "executor"])
def test_timing_changes_nothing_and_sees_the_same_operations_everywhere(make):
    plain, _ = weights_after_two_steps(make())
    timed, seen = weights_after_two_steps(TimedOps(make()))
    assert np.array_equal(plain, timed)
    assert {name: calls for name, calls, _ in seen.operations if name in CALLS} == CALLS


def test_the_product_fits_beside_the_model(monkeypatch):
    monkeypatch.setattr(bench, "CPU_PRODUCT", 256)
    monkeypatch.setattr(bench, "LEAST_PRODUCT", 64)
    monkeypatch.setattr(timing, "GROUP_SECONDS", 0)
    ops = CpuOps(threads=1)
    for room, size in ((2 * 256**2 * 4, 256), (2 * 256**2 * 4 - 1, 128), (0, 64)):
        monkeypatch.setattr(ops, "free_bytes", lambda room=room: 1000 + room)
        assert Product(ops, 1000).size == size


# ---- the GPU's clock ------------------------------------------------------------------------------------------------


def test_an_event_is_recorded_in_the_stream_that_work_goes_to_and_read_in_seconds():
    recorded = []
    cuda = types.SimpleNamespace(
        Event=lambda: types.SimpleNamespace(
            record=recorded.append, synchronize=lambda: recorded.append("waited"), done=False
        ),
        get_current_stream=lambda: "the stream",
        get_elapsed_time=lambda begin, end: 1500.0,
    )
    timeline = CupyTimeline(types.SimpleNamespace(cuda=cuda))
    begin, end = timeline.mark(), timeline.mark()
    assert not timeline.has_passed(begin)
    assert timeline.seconds_between(begin, end) == 1.5
    assert recorded == ["the stream", "the stream", "waited"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_gpu_is_kept_busy_until_a_step_is_queued(precision):
    ops = GpuOps(gpu(), precision)
    report = bench.measure(
        ModelConfig(vocab_size=1000), TrainConfig(), ops, steps=5, began=0, advance=lambda part: None
    )
    assert report.operations.late == 0
    assert 0 <= report.operations.between < 0.5 * report.operations.seconds
    assert report.held_bytes >= report.planned_bytes
    assert 0 < report.model_flops < report.peak_flops
