"""The memory and the disk space that training needs, and advice if there is less."""

import math
from bisect import bisect_right
from dataclasses import replace

from gpt import checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.model import KVCache, memory_bytes
from gpt.ops.interface import Operations
from gpt.optim import optimizer_bytes
from gpt.plan.ready import Plan
from gpt.system.console import Console, size
from gpt.system.limits import free_disk, free_memory, require_memory
from gpt.workspace import Kept

MOST_BATCHES = 100_000  # sizes of a batch that are looked at before one sequence at a time is advised
BYTES_PER_TOKEN = 12  # in a batch: the id, its label and its place in their order, 4 bytes each


def memory(model: ModelConfig, train: TrainConfig, ops: Operations, ranks: Ranks = ALONE) -> tuple[int, int]:
    """The bytes that training needs on the device, and the bytes that are free.

    Checkpoints of a GPU go through the host's memory, so that is checked too. Raises UserError if it needs more than is
    free; the error names settings that fit and take the same steps, if there are any.
    """
    needed, free = _memory_needed(model, train, ops, ranks), ops.free_bytes() // (ranks.neighbors if ops.is_cpu else 1)
    if needed > free:
        require_memory("training", needed, free, _advice(model, train, ops, ranks, free))
    if not ops.is_cpu:
        saved, advice = sum(checkpoint.file_bytes(model, train)), "free some of the host's, or lower the model's size"
        require_memory("saving a checkpoint", saved, free_memory(), advice)
    return needed, free


def _memory_needed(model: ModelConfig, train: TrainConfig, ops: Operations, ranks: Ranks) -> int:
    """Room to load the largest tensor counts too, so that a run that can start can also be resumed."""
    cache = KVCache.bytes(model, ops) if train.sample_every else 0
    kept = optimizer_bytes(model, train, ops, ranks) + cache + ops.loading_bytes(checkpoint.largest_tensor(model))
    return kept + _memory_of_batch(model, train, ops)


def _memory_of_batch(model: ModelConfig, train: TrainConfig, ops: Operations) -> int:
    """The part that depends on --batch and --recompute: the model with its activations, and the inputs."""
    inputs = BYTES_PER_TOKEN * train.batch_size * model.max_seq_len
    kept: Kept = "streams" if train.recompute else "everything"
    return inputs + memory_bytes(model, train.batch_size, ops, kept, train.lora)


def _advice(model: ModelConfig, train: TrainConfig, ops: Operations, ranks: Ranks, free: int) -> str:
    """The settings nearest to these that fit into `free` bytes: with and without --recompute, the largest batches.

    For example, if 16 sequences of 32 fit at a time, and all 32 with --recompute: "--batch 16 --accumulate 2 would fit
    and take the same steps; so would --recompute".
    """
    sequences = train.batch_size * train.accumulate // ranks.size
    others = _memory_needed(model, train, ops, ranks) - _memory_of_batch(model, train, ops)

    def needs(batch: int, recompute: bool) -> int:
        return others + _memory_of_batch(model, replace(train, batch_size=batch, recompute=recompute), ops)

    def largest(recompute: bool) -> str | None:
        """The options of the largest batch that fits and divides the sequences of a step."""
        # More sequences need more memory. The largest number that fits is found by halving, because --batch may be huge
        most = bisect_right(range(1, train.batch_size + 1), free, key=lambda batch: needs(batch, recompute))
        for batch in (*range(most, max(0, most - MOST_BATCHES), -1), 1):
            if batch <= most and sequences % batch == 0:
                options = ["--recompute"] if recompute and not train.recompute else []
                if batch < train.batch_size:
                    options.append(f"--batch {batch} --accumulate {sequences // batch}")
                return " ".join(options)
        return None

    fitting = [options for each in dict.fromkeys((train.recompute, True)) if (options := largest(recompute=each))]
    if not fitting:
        return f"lower --seq (it is {model.max_seq_len}) or the model's size"
    return f"{fitting[0]} would fit and take the same steps" + "".join(f"; so would {each}" for each in fitting[1:])


def disk(model: ModelConfig, train: TrainConfig) -> str:
    """The disk space of a checkpoint, and the number of checkpoints that are kept, in one line."""
    weights, optimizer = checkpoint.file_bytes(model, train)
    base = f"the model takes {size(checkpoint.base_bytes(model, train))}, " if train.lora else ""
    if not train.ckpt_every:
        kept = "only the last step's is written"
    elif train.keep_last == 1:
        kept = "the last one is kept"
    else:
        kept = f"the last {train.keep_last} are kept"
    best = f", and the best weights ({size(weights)})" if train.eval_every else ""
    return f"{base}a checkpoint takes {size(weights + optimizer)}; {kept}{best}"


def check_disk(plan: Plan, console: Console) -> None:
    """Print a note if the disk cannot hold all checkpoints. Raises UserError if it cannot hold even one."""
    train, run, free = plan.train_config, plan.run, free_disk(plan.run.path)
    weights, optimizer = checkpoint.file_bytes(plan.model_config, train)
    one, best = weights + optimizer, weights if train.eval_every else 0
    if free is None:
        return
    base = 0 if run.base_path.exists() else checkpoint.base_bytes(plan.model_config, train)
    if base > free:
        raise UserError(
            f"the model takes {size(base)}, but {size(free)} is free on the disk of {run.path}: free some, or keep "
            "runs elsewhere with --runs-dir"
        )
    free -= base
    if one > free:
        raise UserError(
            f"a checkpoint takes {size(one)}, but {size(free)} is free on the disk of {run.path}: free some, or keep "
            "runs elsewhere with --runs-dir"
        )
    steps = train.total_steps - (plan.start.step if plan.start else 0)
    written = math.ceil(steps / train.ckpt_every) if train.ckpt_every else 1
    # The oldest checkpoint is removed after the newest is written.
    more = min(written, max(0, train.keep_last - len(run.steps())) + 1)
    if more * one + best > free:
        weights_too = f" and the best weights ({size(best)})" if best else ""
        console.line(
            f"Note: {min(written, train.keep_last)} x {size(one)} of checkpoints{weights_too} will be kept, but "
            f"{size(free)} is free on the disk of {run.path}: free some, or lower --keep-last"
        )
