"""--global-batch, --shard-optimizer and --reduce-precision with a single rank, through the real command."""

import json

import pytest

MODEL = ("--preset", "tiny", "--device", "cpu", "--dim", 16, "--heads", 2, "--ff", 16, "--seq", 16, "--layers", 1)
MODEL += ("--steps", 2, "--run-name", "r")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--global-batch", 0), "--global-batch is 0, but must be at least 1"),
        (("--global-batch", -4), "--global-batch is -4, but must be at least 1"),
        (
            ("--global-batch", 12, "--batch", 8),
            "--global-batch 12 is 12 for each rank, which is not a multiple",
        ),
        (
            ("--global-batch", 8, "--accumulate", 2),
            "--global-batch 8 decides about --accumulate too: leave one",
        ),
        (
            ("--reduce-precision", "bf16"),
            "--reduce-precision bf16 needs --precision bf16, but the ranks compute in fp32: leave it out",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_one_line(hipgpt, arguments, message):
    assert message in hipgpt("train", *MODEL, *arguments, status=2).stderr


@pytest.mark.parametrize(("sequences", "batch", "accumulate"), [(7, 7, 1), (64, 16, 4), (40, 10, 4)])
def test_a_global_batch_is_cut_into_batches_of_at_most_the_usual_size(hipgpt, tmp_path, sequences, batch, accumulate):
    """The preset's batch is 16. 40 sequences are 4 batches of 10, because 16 does not divide them."""
    hipgpt("train", *MODEL, "--global-batch", sequences)
    config = json.loads((tmp_path / "checkpoints/r/latest_config.json").read_text())["training"]
    assert (config["batch_size"], config["accumulate"]) == (batch, accumulate)


def test_sharding_among_one_rank_is_noted(hipgpt):
    assert "Note: --shard-optimizer changes nothing" in hipgpt("train", *MODEL, "--shard-optimizer").stdout
