"""`hipgpt train` with real files and real processes, stopped and resumed."""

import json
import re
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.processes import start, wait_for_line
from tests.support.runs import LOG_LINE, logged, moments, weights

MODEL = ("--dim", 16, "--heads", 2, "--ff", 32, "--layers", 2, "--seq", 16, "--batch", 4, "--vocab-size", 200)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    sentence = "the {} cat sat on the {} mat and saw the {} dog run to the {} house .\n"
    colors = ("red", "blue", "green", "old", "small")
    path.write_text("".join(sentence.format(*(colors[(i * k) % 5] for k in (1, 2, 3, 7))) for i in range(300)))
    return path


@pytest.fixture
def train(hipgpt, text):
    """Train a run; with `train.once` one that several tests begin with."""

    def run(*arguments, **kwargs):
        return hipgpt("train", "--data-path", text, *MODEL, *arguments, **kwargs)

    run.once = lambda *arguments, name: hipgpt.once("train", "--data-path", text, *MODEL, *arguments, name=name)
    return run


DEEP = ("--layers", 6)
COMPUTED_AGAIN = "; the backward pass computes each block again"


def test_blocks_that_are_computed_again_give_the_same_run_in_less_memory(train):
    common = ("--steps", 20, "--dropout", 0.1, "--log-every", 5, "--eval-every", 10, "--batch", 64, *DEEP)
    said = train("--run-name", "kept", *common).stdout
    again = train("--run-name", "again", *common, "--recompute").stdout
    assert weights("again", 20) == weights("kept", 20)
    assert [line["loss"] for line in logged("again") if "loss" in line] == [
        line["loss"] for line in logged("kept") if "loss" in line
    ]
    (needed, unit), (less, same) = (re.search(r"Memory: (\S+) (\w+) needed", each).groups() for each in (said, again))
    assert (float(less), same) < (float(needed), unit)


def test_a_resumed_run_computes_blocks_again_unless_it_is_told_not_to(train):
    assert COMPUTED_AGAIN in train("--run-name", "again", "--steps", 1, *DEEP, "--recompute").stdout
    assert COMPUTED_AGAIN in train("--run-name", "again", "--resume", "--steps", 2, *DEEP).stdout
    assert COMPUTED_AGAIN not in train("--run-name", "again", "--resume", "--steps", 3, *DEEP, "--no-recompute").stdout


LEARNING = ("--steps", 60, "--lr", "1e-2", "--log-every", 20, "--eval-every", 30)


def test_a_run_says_what_it_trains_and_its_loss_falls(train):
    out = train("--run-name", "r", *LEARNING).stdout
    assert out.startswith("Device: ")
    assert re.search(r"Model: +[\d,]+ parameters", out)
    assert re.search(r"Memory: .* needed, .* free", out)
    assert re.search(r"the rest will take about \d+ s", out)
    lines = [match for match in map(LOG_LINE.fullmatch, out.splitlines()) if match]
    assert [int(match[1]) for match in lines] == [20, 40, 60]
    assert float(lines[-1][2]) < 0.6 * float(lines[0][2])
    assert re.findall(r"\[Step (\d+)\] Validation Loss: \d", out) == ["30", "60"]


def test_a_run_leaves_the_promised_directory(train):
    train.once(*LEARNING, name="r")
    files = {path.name for path in Path("checkpoints/r").iterdir()} - {".lock"}
    assert files == {
        "tokenizer.json", "tokens.bin", "tokens.json", "metrics.jsonl", "latest_checkpoint.safetensors",
        "latest_config.json", "r_step60.safetensors", "r_step60_optimizer.safetensors", "r_step60_config.json",
        "best_checkpoint.safetensors", "best_config.json", "r_best_step60.safetensors", "r_best_step60_config.json",
    }  # fmt: skip


def test_the_config_of_a_run_tells_its_model_its_training_and_its_files(train):
    train.once(*LEARNING, name="r")
    config = json.loads(Path("checkpoints/r/latest_config.json").read_text())
    assert config["model"]["embed_dim"] == 16
    assert config["training"]["steps"] == 60
    assert config["training"]["batch_size"] == 4
    assert config["checkpoint"] == {"latest": "r_step60.safetensors", "step": 60}
    assert config["tokenizer"] == {"path": "tokenizer.json", "tokens_path": "tokens.bin"}


def test_each_logged_step_and_each_evaluation_is_a_line_of_the_log(train):
    train.once(*LEARNING, name="r")
    assert [(line["step"], "loss" in line) for line in logged("r")] == [
        (20, True), (30, False), (40, True), (60, True), (60, False),
    ]  # fmt: skip


def test_the_same_command_gives_the_same_bits(train):
    for run in ("a", "b"):
        train("--run-name", run, "--steps", 5, "--dropout", 0.2, "--sampling", "random", "--seed", 10**12)
    assert weights("a", 5) == weights("b", 5)


def test_resume_from_a_checkpoint_goes_on_exactly_as_if_it_had_never_stopped(train, hipgpt):
    steps = ("--dropout", 0.1, "--accumulate", 2, "--log-every", 5)
    train("--run-name", "whole", "--steps", 20, "--ckpt-every", 10, *steps)
    hipgpt("train", "--resume", "--ckpt", "checkpoints/whole/whole_step10.safetensors", "--run-name", "half")
    assert weights("half", 20) == weights("whole", 20)
    assert moments("half", 20) == moments("whole", 20)
    tokenizers = [Path(f"checkpoints/{run}/tokenizer.json").read_bytes() for run in ("whole", "half")]
    assert tokenizers[0] == tokenizers[1]


def test_a_checkpoint_names_the_device_that_trained_up_to_it(train, hipgpt):
    for threads, more in (("1", ()), ("2", ("--resume", "--steps", 4))):
        hipgpt.environment["OMP_NUM_THREADS"] = threads
        train("--run-name", "d", "--steps", 2, *more)
    steps = [json.loads(Path(f"checkpoints/d/d_step{step}_config.json").read_text()) for step in (2, 4)]
    assert [config["training"]["device"].replace(", numba", "") for config in steps] == [
        "CPU, 1 thread",
        "CPU, 2 threads",
    ]


@pytest.mark.parametrize("named", [True, False])
def test_a_run_made_before_windows_were_shuffled_goes_on_in_sequence(train, named):
    train("--run-name", "whole", "--steps", 8, "--ckpt-every", 4, "--sampling", "sequential")
    config = Path("checkpoints/whole/whole_step4_config.json")
    if not named:  # an old version had only this order, and did not record it
        sections = json.loads(config.read_text())
        assert sections["training"].pop("sampling") == "sequential"
        config.write_text(json.dumps(sections))
    train("--ckpt", config, "--run-name", "half", "--resume")
    assert weights("half", 8) == weights("whole", 8)
    assert json.loads(Path("checkpoints/half/latest_config.json").read_text())["training"]["sampling"] == "sequential"


def test_a_new_run_shuffles_its_windows_and_stays_with_that(train, hipgpt):
    steps = ("--schedule", "constant", "--steps")
    train("--run-name", "default", *steps, 4)
    hipgpt("train", "--run-name", "default", "--resume", "--steps", 8)
    for sampling in ("shuffled", "sequential"):
        train("--run-name", sampling, *steps, 8, "--sampling", sampling)
    assert weights("default", 8) == weights("shuffled", 8) != weights("sequential", 8)


def test_ckpt_takes_the_latest_link_and_stays_in_its_own_run(train, hipgpt):
    train("--run-name", "r", "--steps", 4, "--schedule", "constant")
    out = hipgpt("train", "--ckpt", "checkpoints/r/latest_checkpoint.safetensors", "--steps", 3).stdout
    assert "steps 5 to 7" in out
    assert json.loads(Path("checkpoints/r/latest_config.json").read_text())["checkpoint"]["step"] == 7


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_says_how_to_resume_and_ends_as_if_it_had_not_been_stopped(hipgpt, text, number, status):
    steps = ("--steps", 200, "--log-every", 1, "--eval-every", 50, "--dropout", 0.1)
    hipgpt.once("train", "--data-path", text, *MODEL, *steps, name="whole")
    process = start(hipgpt, "--data-path", "text.txt", *MODEL, "--run-name", "cut", *steps)
    wait_for_line(process, "[Step 25]")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == status
    stopped = int(re.search(r"Stopped at step (\d+), saved. Go on: hipgpt train --run-name cut --resume", out)[1])
    assert 25 <= stopped < 200
    hipgpt("train", "--run-name", "cut", "--resume")
    assert weights("cut", 200) == weights("whole", 200)
    assert moments("cut", 200) == moments("whole", 200)
    losses = [[line["loss"] for line in logged(run) if "loss" in line] for run in ("cut", "whole")]
    assert losses[0] == losses[1]


def test_a_second_interrupt_exits_at_once_without_saving(hipgpt, text):
    """One step of this model takes far longer than the time between the two signals."""
    large = ("--dim", 256, "--heads", 8, "--ff", 1024, "--layers", 8, "--seq", 256, "--batch", 4)
    process = start(hipgpt, "--data-path", text, *large, "--vocab-size", 200, "--log-every", 1, "--run-name", "r")
    wait_for_line(process, "[Step 1]")  # then the second step is under way
    process.send_signal(signal.SIGINT)
    wait_for_line(process, "Finishing")  # two that the process has not noticed yet would be one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not Path("checkpoints/r/latest_config.json").exists()


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits(train, hipgpt):
    steps = ("--steps", 300, "--log-every", 10, "--ckpt-every", 20, "--keep-last", 2)
    train("--run-name", "whole", *steps)
    process = start(hipgpt, "--data-path", "text.txt", *MODEL, "--run-name", "cut", *steps)
    wait_for_line(process, "[Step 50]")
    process.kill()
    process.communicate()
    hipgpt("train", "--run-name", "cut", "--resume")
    assert weights("cut", 300) == weights("whole", 300)
    steps_logged = [line["step"] for line in logged("cut") if "loss" in line]
    assert steps_logged == list(range(10, 301, 10)), "each step is logged once, the repeated ones too"
    assert len(list(Path("checkpoints/cut").glob("*_optimizer.safetensors"))) == 2
    assert not list(Path("checkpoints/cut").glob(".*.tmp"))


def test_a_second_process_cannot_train_the_same_run(train, hipgpt):
    nothing_saved = ("--steps", 100_000, "--ckpt-every", 0, "--eval-every", 0)  # a checkpoint would be another reason
    process = start(hipgpt, "--data-path", "text.txt", *MODEL, "--run-name", "r", *nothing_saved)
    wait_for_line(process, "[Step 50]")
    assert "another process" in train("--run-name", "r", "--steps", 5, status=2).stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_a_run_with_checkpoints_is_not_started_again(train):
    train.once("--steps", 2, name="r")
    before = weights("r", 2)
    for extra in ((), ("--reset",)):
        assert "--resume" in train("--run-name", "r", "--steps", 2, *extra, status=2).stderr
    assert "--reset" in train("--run-name", "r", "--resume", "--reset", "--steps", 4, status=2).stderr
    assert weights("r", 2) == before


def test_a_finished_run_says_how_to_train_on(train, hipgpt):
    train.once("--steps", 2, name="r")
    for steps in ((), ("--steps", 2)):
        out = hipgpt("train", "--run-name", "r", "--resume", *steps).stdout
        assert "Run r is done: it has reached step 2 of 2." in out
        assert "--ckpt checkpoints/r/latest_checkpoint.safetensors --steps N" in out
    assert "step 2 of 1" in hipgpt("train", "--run-name", "r", "--resume", "--steps", 1, status=2).stderr
    assert "steps 3 to 5" in hipgpt("train", "--run-name", "r", "--resume", "--steps", 5).stdout


def test_a_later_step_is_refused_before_it_would_be_overwritten(train, hipgpt):
    train("--run-name", "r", "--steps", 4, "--ckpt-every", 2)
    error = hipgpt("train", "--ckpt", "checkpoints/r/r_step2.safetensors", "--steps", 2, status=2).stderr
    assert "already has step 4" in error


def test_a_run_whose_text_is_no_longer_known_is_not_trained_on_another(train, hipgpt, text):
    train.once("--steps", 2, name="r")
    Path("checkpoints/r/tokens.json").unlink()
    Path("data").mkdir()
    Path("data/data.txt").write_text("another text altogether . " * 500)
    assert "--data-path" in hipgpt("train", "--run-name", "r", "--resume", "--steps", 4, status=2).stderr
    hipgpt("train", "--run-name", "r", "--resume", "--steps", 4, "--data-path", text)


@pytest.mark.parametrize("mistake", [("--data-path", "missing.txt"), ("--vocab-size", 77)])
def test_a_refused_branch_leaves_nothing_and_the_corrected_command_goes_on_with_the_runs_own_text(
    train, hipgpt, mistake
):
    train.once("--steps", 2, name="r")
    branch = ("train", "--ckpt", "checkpoints/r/r_step2.safetensors", "--run-name", "branch", "--steps", 1)
    hipgpt(*branch, *mistake, status=2)
    assert not Path("checkpoints/branch").exists()
    hipgpt(*branch)
    tokens = [Path(f"checkpoints/{run}/tokens.bin").read_bytes() for run in ("r", "branch")]
    assert tokens[0] == tokens[1]


def test_a_renamed_run_keeps_its_tokenizer_and_goes_on(train, hipgpt, text):
    train("--run-name", "old", "--steps", 2)
    Path("checkpoints/old").rename("checkpoints/new")
    assert "--reset" in hipgpt("tokenize", "--run-name", "new", "--reset", "--data-path", text, status=2).stderr
    assert "--resume" in train("--run-name", "new", "--steps", 2, status=2).stderr
    hipgpt("train", "--run-name", "new", "--resume", "--steps", 4)
    assert Path("checkpoints/new/new_step4.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "both"),
    [(("--dim", 32), ("32", "16")), (("--activation", "relu"), ("relu", "gelu")), (("--preset", "tiny"), ("64", "16"))],
)
def test_a_flag_that_contradicts_the_checkpoints_model_is_refused_with_both_values(train, hipgpt, flags, both):
    train.once("--steps", 2, name="r")
    error = hipgpt("train", "--run-name", "r", "--resume", "--steps", 4, *flags, status=2).stderr
    assert all(value in error for value in both)


def test_a_missing_optimizer_file_is_named(train, hipgpt):
    train.once("--steps", 2, name="r")
    Path("checkpoints/r/r_step2_optimizer.safetensors").unlink()
    error = hipgpt("train", "--run-name", "r", "--resume", "--steps", 4, status=2).stderr
    assert "r_step2_optimizer.safetensors" in error


def test_a_run_that_diverges_stops_with_a_checkpoint_and_advice(train):
    error = train("--run-name", "r", "--steps", 200, "--lr", "1e30", "--warmup-steps", 0, status=2).stderr
    assert "not finite" in error
    assert "--lr" in error
    assert Path("checkpoints/r/latest_config.json").exists()


# The first step is finite, and the weights that it leaves are not.
@pytest.mark.parametrize(("steps", "evaluation"), [(2, ()), (3, ("--eval-every", 0))])
def test_a_run_that_has_diverged_at_its_last_step_is_not_called_done(train, steps, evaluation):
    lr = ("--lr", "1e20", "--warmup-steps", 0)
    ended = train("--run-name", "r", "--steps", steps, *lr, *evaluation, status=2)
    assert f"not finite in the last {steps - 1} step" in ended.stderr
    assert f"up to step {steps} (saved); start again with a lower --lr" in ended.stderr
    assert "Done" not in ended.stdout
    assert Path(f"checkpoints/r/r_step{steps}_config.json").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--dim", 15), "not a multiple"),
        (("--heads", 0), "--heads is 0"),
        (("--steps", 0), "--steps is 0"),
        (("--steps", 10**400), "--steps is 1000"),
        (("--lr", 1e300), "--lr is 1e+300"),
        (("--lr", 0), "--lr is 0"),
        (("--dropout", 1), "--dropout is 1.0"),
        (("--seq", 100_000), "--seq"),
        (("--batch", "many"), "--batch"),
        (("--nonsense",), "--nonsense"),
        (("--run-name", "../r"), "--run-name"),
        (("--device", "tpu"), "--device is tpu"),
        (("--device", "gpu:x"), "--device is gpu:x"),
        (("--device", "gpu:"), "--device is gpu:"),
        (("--run-name", ""), "--run-name"),
        (("--device", "gpu:99"), "--device gpu"),
        (("--preset", "huge"), "huge"),
        (("--resume",), "--run-name"),
        (("--data-path", "missing.txt"), "missing.txt"),
        (("--batch", 1_000_000_000), "memory"),
        (("--dim", 2_000_000_000), "memory"),
        (("--layers", 3_000_000), "--layers is 3000000"),
    ],
)
def test_rubbish_is_refused_in_one_line_and_leaves_nothing_behind(train, flags, complaint):
    assert complaint in train(*flags, status=2).stderr
    assert not list(Path(".").glob("checkpoints/*/*.safetensors"))


def test_a_refused_first_command_leaves_no_run_behind(train):
    for mistake in (("--data-path", "missing.txt"), ("--seq", 100_000), ("--dim", 15)):
        train("--run-name", "r", *mistake, status=2)
        assert not Path("checkpoints/r").exists()


def test_without_a_text_of_ones_own_the_one_that_comes_with_hipgpt_is_taken(hipgpt):
    assert "1,300,070 characters" in hipgpt("tokenize", "--tokenizer", "byte", "--vocab-size", 257).stdout
    assert "hipgpt fetch" in hipgpt("train", "--data-path", "data/data.txt", status=2).stderr


def test_an_explicit_flag_wins_over_the_preset(train):
    out = train("--preset", "tiny", "--tokenizer", "word", "--steps", 1, "--run-name", "r").stdout
    assert "2 layers, dim 16, 2 heads, seq 16" in out
    assert "64 tokens per step (4 x 16)" in out


def test_tokenize_and_then_a_plain_train_just_works(hipgpt, text):
    hipgpt("tokenize", "--data-path", text, "--vocab-size", 50, "--run-name", "r")
    out = hipgpt("train", "--run-name", "r", "--preset", "tiny", "--steps", 1, "--seq", 8, "--batch", 2).stdout
    assert "vocabulary 50)" in out


def test_accumulated_batches_equal_one_large_batch(train):
    """Two orders of summing the gradients of 8 sequences round differently, by some 1e-7 of each weight per step."""
    train("--run-name", "a", "--steps", 3, "--batch", 8)
    train("--run-name", "b", "--steps", 3, "--batch", 2, "--accumulate", 4)
    losses = [[line["loss"] for line in logged(run) if "loss" in line] for run in ("a", "b")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_checkpoint_tensors_are_gpt2s_own(train):
    train("--run-name", "r", "--steps", 1, "--no-tie")
    tensors = load_file("checkpoints/r/r_step1.safetensors")
    assert tensors["transformer.h.1.attn.c_attn.weight"].shape == (16, 48)
    assert tensors["lm_head.weight"].shape == tensors["transformer.wte.weight"].shape
