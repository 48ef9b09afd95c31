"""Turns flags and the files of a run into a `Plan`: a run, a model, tokens and steps that are ready to train.

A setting comes from the first of these that has it: an explicit flag, the checkpoint to continue, the preset, the
default. All checks happen here, before anything is written. One exception: a text that has been tokenized stays
tokenized, because the corrected command can use the tokens.

A training calls the functions in this order (gpt/training.py):

    locate       the run, and the checkpoint to start from    start.py
    settle       the settings of model and training           settings.py
    shared_out   the batches of each rank                     ranks.py
    select_ops   the device                                   ranks.py
    make         the tokens: the plan is ready                ready.py
    agree        the same plan on all ranks?                  ranks.py
    announce     the plan in words; memory and disk suffice   words.py, space.py
"""

from gpt.plan.ranks import agree, select_ops, shared_out
from gpt.plan.ready import Plan, make
from gpt.plan.settings import settle
from gpt.plan.space import memory
from gpt.plan.start import is_done, locate
from gpt.plan.words import announce, describe, describe_adapters

__all__ = [
    "Plan", "agree", "announce", "describe", "describe_adapters", "is_done", "locate", "make", "memory", "select_ops",
    "settle", "shared_out",
]  # fmt: skip
