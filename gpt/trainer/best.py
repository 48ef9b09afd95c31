"""The best checkpoint of a run, the one with the lowest validation loss, is kept while training goes on."""

import math

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.config import TrainConfig
from gpt.distributed.ranks import Ranks
from gpt.optim import Optimizer
from gpt.run import Run


class Best:
    """The best checkpoint so far. All ranks have it, but only the first one writes it.

    A run that `is_new` begins without one. If one is there, a run that was killed before its first checkpoint has left
    it, and it is removed.
    """

    def __init__(self, run: Run, optimizer: Optimizer, train_config: TrainConfig, ranks: Ranks, is_new: bool) -> None:
        self._run, self._optimizer, self._train_config, self._ranks = run, optimizer, train_config, ranks
        self.checkpoint: Checkpoint | None = None
        if is_new:
            if ranks.is_first:
                checkpoint.forget_best(run)
            return
        found = checkpoint.best(run)
        # A best checkpoint on other held-out text says nothing about this one.
        if found and found.train_config.val_fraction == train_config.val_fraction:
            self.checkpoint = found

    def offer(self, step: int, val_loss: float) -> None:
        """Keep the weights of `step`, the last one that was taken, if their loss is finite and the lowest so far."""
        lowest = self.checkpoint.val_loss if self.checkpoint else None
        if not math.isfinite(val_loss) or (lowest is not None and val_loss >= lowest):
            return
        model_config, weights, saved = self._optimizer.model.config, self._optimizer.weights_on_host(), None
        if self._ranks.is_first:
            saved = checkpoint.save_best(self._run, step, model_config, self._train_config, weights, val_loss)
        self.checkpoint = saved or Checkpoint(
            self._run, step, model_config, self._train_config, self._run.best_weights_path, val_loss
        )

    def __str__(self) -> str:
        """A sentence for the user."""
        if self.checkpoint is None:
            return "No evaluation gave a finite loss."
        step, val_loss = self.checkpoint.step, self.checkpoint.val_loss
        return f"The best checkpoint, step {step} with {val_loss:.4f}, is kept: use it with --best."
