"""Two ranks on simulated AMD GPUs: the real command, the real CuPy for ROCm, and an RCCL of our own.

See tests/support/rocm. A step takes many seconds on the emulator, so runs are a step or two long.
"""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from gpt.cli import main
from tests.support import rocm

pytestmark = [
    pytest.mark.amd,
    pytest.mark.skipif(bool(rocm.unavailable()), reason=str(rocm.unavailable())),
]

STEPS, LEARNING_RATE = 2, 1e-3
OPTIONS = (
    "--run-name run --tokenizer byte --vocab-size 270 --seq 16 --dim 32 --heads 2 --ff 64 --layers 1 --dropout 0.1 "
    f"--optimizer adamw --steps {STEPS} --lr {LEARNING_RATE} --warmup-steps 1 --eval-every 0 --log-every 1"
).split()


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return rocm.Simulation(tmp_path_factory.mktemp("rocm"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and the dog ran to the cat. " * 20, encoding="utf-8")
    return path


def on_two_gpus(simulation, folder, text, *options):
    place = ("--data-path", str(text), "--runs-dir", str(folder))
    return simulation.run("command", "train", *OPTIONS, *place, "--gpus", "2", "--batch", "2", *options,
                          target="gfx1100", gpus=2)  # fmt: skip


def losses(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(folder):
    named = load_file(folder / "run" / "latest_checkpoint.safetensors")
    return np.concatenate([named[name].ravel() for name in sorted(named)])


# The bounds are those of tests/ops/test_rocm.py, which derives them: its model is of this size, too.
@pytest.mark.parametrize(
    ("options", "loss_bound", "mean_bound"),
    [
        (["--precision", "fp32"], 1e-5, 1e-4),
        (["--precision", "bf16", "--shard-optimizer", "--reduce-precision", "bf16"], 1e-4, 5e-2),
    ],
)
def test_two_gpus_train_as_one_cpu_that_takes_their_batches_in_turn(
    simulation, tmp_path, text, options, loss_bound, mean_bound
):
    result = on_two_gpus(simulation, tmp_path / "gpus", text, *options)
    assert result.returncode == 0, result.stderr
    place = [
        "--data-path",
        str(text),
        "--runs-dir",
        str(tmp_path / "cpu"),
        "--device",
        "cpu",
        "--batch",
        "2",
        "--accumulate",
        "2",
    ]
    assert CliRunner().invoke(main, ["train", *OPTIONS, *place]).exit_code == 0
    np.testing.assert_allclose(losses(tmp_path / "gpus"), losses(tmp_path / "cpu"), rtol=loss_bound)
    off = np.abs(weights(tmp_path / "gpus") - weights(tmp_path / "cpu"))
    assert off.mean() <= mean_bound * STEPS * LEARNING_RATE


def refused(simulation, folder, text):
    result = on_two_gpus(simulation, folder, text, "--precision", "fp32")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "Error" in line]
    assert not (folder / "run" / "latest_config.json").exists()
    return line


def test_gpus_that_cannot_be_connected_are_one_line(simulation, tmp_path, text, monkeypatch):
    monkeypatch.setenv("SIMULATED_RCCL", "refuses")
    line = refused(simulation, tmp_path / "gpus", text)
    assert "the GPUs cannot be connected" in line
    assert "NCCL_DEBUG=INFO in the environment tells more" in line


def test_two_gpus_on_a_machine_of_one_are_refused_with_their_number(simulation, tmp_path, text):
    result = simulation.run("command", "train", "--gpus", "2", "--data-path", str(text), "--runs-dir", str(tmp_path),
                            target="gfx1100", gpus=1)  # fmt: skip
    assert result.returncode == 2
    assert "--gpus is 2, but there is only 1 here" in result.stderr
