"""Training by mpirun comes to each of its ends as one rank does, and says it once."""

import pytest

from gpt.run import Run

STEPS = ("--batch", 1, "--log-every", 1, "--ckpt-every", 0)
BROKEN = """
from gpt.model import TrainableGPT
work = TrainableGPT.loss_and_gradients
def broken(self, *args, **kwargs):
    work(self, *args, **kwargs)
    self.metrics[0] = float("nan")
TrainableGPT.loss_and_gradients = broken
"""
SAME = ("--schedule", "constant", "--warmup-steps", 0)


def test_patience_ends_all_ranks_and_the_best_checkpoint_is_kept(train):
    said = train(2, "r", *STEPS, *SAME, "--lr", 3, "--steps", 100, "--eval-every", 1, "--patience", 2).stdout
    assert said.count("Ended at step ") == said.count(" --best --prompt") == 1
    assert Run("r").best_weights_path.exists()


def test_a_done_run_says_so_and_goes_on_from_its_checkpoint_with_more_steps(train):
    train(2, "r", *STEPS, "--steps", 2, "--eval-every", 0)
    done = train(2, "r", "--resume").stdout
    assert done.startswith("Run r is done: it has reached step 2 of 2.")
    assert done.count("\n") == 1
    more = train(2, "r", "--ckpt", "checkpoints/r/r_step2.safetensors", "--steps", 1).stdout
    assert "steps 3 to 3\n" in more
    assert more.count("Done.") == 1
    assert "Validation" not in more


def test_samples_are_written_by_the_first_rank_alone(train):
    said = train(2, "r", *STEPS, "--steps", 2, "--eval-every", 1, "--sample-every", 1, "--sample-prompt", "cat").stdout
    for step in (1, 2):
        assert said.count(f"[Step {step}] Sample: cat") == said.count(f"[Step {step}] Validation") == 1


@pytest.mark.parametrize("rank", range(2))
def test_losses_that_are_not_finite_on_one_rank_end_all(train, rank):
    end = train(2, "r", *STEPS, "--steps", 20, "--eval-every", 0, only={rank: BROKEN}, status=2)
    assert end.stderr.count("\n") == 1
    assert "was not finite in the last 10 steps, up to step 10 (saved)" in end.stderr
    assert Run("r").steps() == [10]
