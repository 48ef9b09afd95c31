"""A step that is recorded and replayed computes the same bits as one that is run, for every input."""

import gc
import weakref
from functools import cache

import numpy as np
import pytest

from gpt.batches import Batches
from gpt.config import ModelConfig, SamplingConfig, TrainConfig
from gpt.decoder import Decoder, Request, Stream
from gpt.generate import draw
from gpt.initialization import initial_weights
from gpt.model import GPT
from gpt.ops.cpu.host import HostOutput
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.replay import SLOTS, PinnedInputs, PinnedOutput, Replayed
from gpt.trainer import TrainStep
from tests.support.devices import executor, gpu
from tests.support.host_device import HostDevice

MODEL = ModelConfig(
    vocab_size=37, max_seq_len=11, embed_dim=32, num_heads=2, ff_hidden_dim=48, num_layers=1, dropout=0.1
)
STEPS = 4  # the first is run, the second recorded, the others are replayed


@cache
def replayed(device, precision, accumulate=1, optimizer="adamw"):
    """What `train` returns on a device that records."""
    results = train(GpuOps(device, precision), accumulate, optimizer=optimizer)
    assert device.records
    return results


def train(ops, accumulate, writing=False, optimizer="adamw"):
    """The loss of every step, and all weights after the last. With `writing` the model also writes a text each step."""
    config = TrainConfig(
        batch_size=2, accumulate=accumulate, total_steps=STEPS, learning_rate=1e-2, warmup_steps=2, optimizer=optimizer
    )
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, 500, dtype=np.uint16)
    batches = Batches(tokens, 2, MODEL.max_seq_len, sampling="random", seed=1, val_fraction=0)
    training = TrainStep(MODEL, config, batches, ops)
    training.optimizer.initialize(initial_weights(training.model.config, 3))
    decoder, texts = Decoder(training.model, places=1), []
    request = Request([1, 2, 3], 10, SamplingConfig(), -1, Stream(0), MODEL.max_seq_len)
    losses = []
    for number in range(1, STEPS + 1):
        training.run(number)
        losses.append(training.metrics().loss)
        if writing:
            texts.append(list(decoder.ids(request)))
    if writing:
        alone = GPT(MODEL, ops)
        alone.load(training.optimizer.weights_on_host().items())
        assert texts[-1] == list(draw(alone, [1, 2, 3], 10, SamplingConfig(), -1, 0, MODEL.max_seq_len))
        assert texts[-1] != texts[0]
    return losses, ops.to_host(training.model.weights.flat).copy()


@pytest.fixture(params=[pytest.param(gpu, id="gpu", marks=pytest.mark.gpu), "mma"])
def device(request, monkeypatch):
    device = executor(request.param) if isinstance(request.param, str) else request.param()
    monkeypatch.setattr(device, "records", True)
    return device


@pytest.mark.parametrize(
    ("precision", "accumulate", "optimizer"),
    [("fp32", 1, "adamw"), ("bf16", 3, "adamw"), ("fp32", 2, "muon"), ("bf16", 1, "muon")],
)
def test_replayed_steps_give_the_bits_of_steps_that_are_run(device, precision, accumulate, optimizer, monkeypatch):
    """Batches, learning rates and dropout masks differ in every step, so none of them may become part of the record."""
    losses, weights = replayed(device, precision, accumulate, optimizer)
    monkeypatch.setattr(device, "records", False)
    run_losses, run = train(GpuOps(device, precision), accumulate, optimizer=optimizer)
    assert losses == run_losses
    assert np.array_equal(weights, run)
    assert len(set(run_losses)) == STEPS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_texts_that_a_model_writes_between_replayed_steps_change_no_bits(device, precision):
    """Writing shares the activations of training, and its own steps are replayed as well.

    `train` asserts that the last text is the one that a model by itself would write.
    """
    losses, weights = replayed(device, precision)
    same_losses, same = train(GpuOps(device, precision), 1, writing=True)
    assert device.records
    assert same_losses == losses
    assert np.array_equal(same, weights)


def test_the_arrays_of_a_training_are_free_as_soon_as_nobody_has_its_step(device):
    """`hipgpt bench` makes one training after the other. Python looks for circles of objects only now and then."""
    config = TrainConfig(batch_size=2, accumulate=2, total_steps=STEPS)
    tokens = np.zeros(500, np.uint16)
    batches = Batches(tokens, 2, MODEL.max_seq_len, sampling="random", seed=1, val_fraction=0)
    gc.collect()
    gc.disable()
    try:
        step = TrainStep(MODEL, config, batches, GpuOps(device, "fp32"))
        step.run(1)
        step.run(2)
        model = weakref.ref(step.model)
        del step
        assert model() is None
    finally:
        gc.enable()


def test_on_a_cpu_steps_are_run():
    function = lambda: None  # noqa: E731
    assert CpuOps(threads=1).replayed(function) is function


@pytest.mark.filterwarnings("error")
def test_a_device_that_cannot_record_says_so_once_and_trains_on(device, monkeypatch):
    expected = replayed(device, "fp32")

    def refuse(work):
        raise RuntimeError("graphs are not supported\nhere")

    monkeypatch.setattr(device, "record", refuse)
    with pytest.warns(UserWarning, match=r"^steps are not recorded as a graph \(graphs are not supported\), which"):
        losses, weights = train(GpuOps(device, "fp32"), 1)
    assert losses == expected[0]
    assert np.array_equal(weights, expected[1])
    Replayed(device, lambda: None)()  # does not warn a second time


def test_recorded_work_is_not_done_until_it_is_replayed():
    device, array = HostDevice(), np.ones(3)
    add = Replayed(device, lambda: device.ask(lambda: np.add(array, 1, out=array)))
    for call in range(1, 5):
        add()
        assert array[0] == 1 + call


def test_scratch_memory_of_a_recorded_step_is_kept_when_a_later_one_needs_more():
    scratch, most, vocab = [], 100, 3

    class Noting(HostDevice):
        description, warp, has_tf32 = "a device that keeps nothing", 32, False

        def kernel(self, file, name, defines, shared_bytes=0):
            return lambda grid, block, arguments: scratch.append(weakref.ref(arguments[5].base))  # the keys

    ops = GpuOps(Noting(), "fp32")
    for rows in range(1, most + 1):
        logits, seen, rules = (
            np.zeros((rows, vocab), np.float32),
            np.zeros((rows, vocab), np.uint8),
            np.zeros((rows, 4)),
        )
        ops.sample(logits, seen, np.zeros(rows), np.zeros(rows, np.int32), rules, vocab)
    assert len(scratch) == most
    assert all(array() is not None for array in scratch)
    arrays = {id(array()): array() for array in scratch}.values()
    assert sum(array.size for array in arrays) < 4 * most * vocab, "each at least twice the one before"


def test_inputs_are_written_again_only_when_their_upload_is_done():
    waited = []

    class Slow(HostDevice):
        uploads = 0

        def upload(self, host, out):
            super().upload(host, out)
            self.uploads += 1
            return lambda number=self.uploads: waited.append(number)

    inputs = PinnedInputs(Slow(), {"ids": ((2, 3), "int32"), "lr": ((1,), "float32")})
    for step in range(SLOTS + 2):
        with inputs.written() as host:
            host["ids"][...] = step
            host["lr"][...] = step / 2
        assert (inputs.device["ids"] == step).all()
        assert inputs.device["lr"].tolist() == [step / 2]
    assert waited == [1, 2]
    assert inputs.device["ids"].shape == (2, 3)
    assert inputs.device["ids"].ctypes.data % 4 == 0


def test_generation_is_ahead_by_fewer_steps_than_an_output_has_slots():
    assert GpuOps.steps_ahead < SLOTS


@pytest.mark.parametrize("make", [lambda array: PinnedOutput(HostDevice(), array), HostOutput])
def test_a_fetched_output_has_the_values_from_when_it_was_asked_for(make):
    array = np.zeros((2, 1), np.int32)
    output, asked = make(array), []
    for step in range(2 * SLOTS):
        array[...] = step
        asked.append(output.fetched())
        if len(asked) == SLOTS:
            assert asked.pop(0)().tolist() == [[step + 1 - SLOTS]] * 2
