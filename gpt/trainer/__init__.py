"""Training: batch, forward, backward, clip, step; log, evaluate, checkpoint; stop when asked, resume exactly.

Everything random or scheduled in a step follows from its number: the batch, the dropout masks, the learning rate. A
checkpoint therefore holds weights, moments and a step, and no generator state.

    step.py    one step, as a function of its number
    loop.py    the steps of a run, and what happens between them
    best.py    the best checkpoint so far
    clock.py   the time that steps take
"""

from gpt.trainer.loop import Trainer
from gpt.trainer.step import TrainStep

__all__ = ["TrainStep", "Trainer"]
