"""Training by mpirun: the numbers of one rank, whatever the number of ranks, also if it changes in between."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

SHARED = ("--batch", 1, "--global-batch", 8)  # in batches that are the same for 1, 2, 4 and 8 ranks
STEPS = ("--steps", 6, "--log-every", 1, "--eval-every", 3, "--ckpt-every", 0)

# Gradients that are summed in another order differ by about 2^-24 of the largest. Adam divides each by its own size,
# so a tiny one's step may change by as much as lr, but the loss changes by step · gradient: by 2^-24 · lr ·
# |gradient|max a parameter and step. That is 6e-8 · 3e-4 · 0.5 · 1,400 · 6 = 8e-8. The loss itself is a mean of float32
# numbers of about 4, each rounded by 2^-23.
ROUNDING = 8e-8 + 4 * 2**-23


def logged(name: str, *keys: str) -> dict[tuple[int, str], float]:
    lines = map(json.loads, Path(f"checkpoints/{name}/metrics.jsonl").read_text().splitlines())
    return {(line["step"], key): line[key] for line in lines for key in keys if key in line}


def digests(name: str) -> dict[str, str]:
    """The SHA-256 of each file of tensors of a run, by its name without the run's."""
    files = Path("checkpoints", name).glob("*_step*.safetensors")
    return {path.name.removeprefix(name): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_close(ours: str, theirs: str) -> None:
    """The two runs have logged the same losses, but for roundings."""
    ours, theirs = (logged(name, "loss", "val_loss") for name in (ours, theirs))
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=ROUNDING)


# ---- the numbers of one rank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_any_number_of_ranks_trains_as_one_does_and_again_to_the_bit(train, optimizer):
    flags = (*SHARED, *STEPS, "--dropout", 0.2, "--optimizer", optimizer)
    train(1, "one", *flags)
    for size in (2, 4):
        train(size, f"on{size}", *flags)
        assert_close(f"on{size}", "one")
    train(4, "again", *flags)
    assert digests("again") == digests("on4")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_ranks_with_a_sharded_optimizer_give_the_same_bits_if_nothing_is_clipped(train, optimizer):
    """A sum of two numbers has only one order; MPI may add up more of them in another order for each element.
    Clipping depends on the norm, whose squares are added up in another order.
    """
    flags = (*SHARED, *STEPS, "--optimizer", optimizer, "--grad-clip", 0)
    train(2, "whole", *flags)
    train(2, "sharded", *flags, "--shard-optimizer")
    assert digests("sharded") == digests("whole")


def test_four_ranks_with_a_sharded_optimizer_train_as_one_does(train):
    flags = (*SHARED, *STEPS)
    train(1, "one", *flags)
    train(4, "sharded", *flags, "--shard-optimizer")
    assert_close("sharded", "one")


# ---- another number of ranks -----------------------------------------------------------------------------------------


def test_a_run_goes_on_with_any_number_of_ranks_where_its_data_stood(train):
    flags = ("--schedule", "constant", "--warmup-steps", 0, *STEPS, "--dropout", 0.2)
    train(1, "one", *flags, *SHARED, "--steps", 8)
    train(4, "many", *flags, "--batch", 1, "--accumulate", 2, "--steps", 2)  # the same 8 sequences
    for size, steps in ((2, 4), (1, 6), (4, 8)):
        train(size, "many", "--resume", "--steps", steps)
    ours, theirs = logged("many", "loss"), logged("one", "loss")
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=ROUNDING)
    assert list(ours) == [(step, "loss") for step in range(1, 9)]


def test_ranks_that_cannot_share_the_sequences_equally_are_told_which_could(train):
    train(1, "one", *SHARED, *STEPS)
    error = train(3, "one", "--resume", "--steps", 8, status=2).stderr
    assert re.fullmatch(
        r"Error: rank 0 on \S+: the run, whose steps read 8 sequences, cannot be shared out equally to 3 ranks: take "
        r"1, 2, 4, 8 ranks\n",
        error,
    )


def test_the_start_says_what_a_rank_takes_and_all_together(train):
    said = train(2, "two", *STEPS, "--batch", 3, "--global-batch", 12).stdout
    assert "Ranks:  2; in a step each takes 2 x 3 sequences (--batch is for one rank), all together 12\n" in said
    assert "96 tokens per step (12 x 8)" in said
    assert said.count("Device: CPU") == said.count("[Step 6] Loss") == said.count("Done.") == 1
