"""What ranks have in a plan: their batches, their devices, and the check that all of them plan the same."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gpt
from gpt.checkpoint import Checkpoint
from gpt.config import TrainConfig, check, flag
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.ops.interface import Operations
from gpt.plan.ready import Plan

MOST_NAMED = 64  # ranks that a message proposes at most


def shared_out(
    train: TrainConfig, flags: Mapping[str, Any], start: Checkpoint | None, global_batch: int | None, ranks: int
) -> TrainConfig:
    """`train` with the batches of a step for this number of ranks.

    `--batch` and `--accumulate` are those of one rank. A checkpoint's steps keep their number of sequences, so each
    rank takes its share of them: as many batches as that takes, of at most as many sequences as before. So does
    `global_batch`, the number of sequences that the user wants in a step. For example, 4 ranks with a batch of 8 have
    an `accumulate` of 4; so has 1 rank that goes on with their checkpoint, and 8 ranks then have batches of 4
    sequences and an `accumulate` of 8.

    Raises UserError if the ranks cannot share the sequences equally.
    """
    batch, total = train.batch_size, train.batch_size * train.accumulate
    if global_batch is not None:
        check(global_batch >= 1, "global_batch", global_batch, "at least 1")
        if "accumulate" in flags:
            raise UserError(f"--global-batch {global_batch} decides about --accumulate too: leave one of them out")
        total = global_batch
    elif start is None or "accumulate" in flags:
        total *= ranks
    each, left = divmod(total, ranks)
    wanted = f"--global-batch {total}" if global_batch is not None else f"the run, whose steps read {total} sequences,"
    if left or not each:
        divisors = ", ".join(str(number) for number in range(1, min(total, MOST_NAMED) + 1) if total % number == 0)
        raise UserError(f"{wanted} cannot be shared out equally to {ranks} ranks: take {divisors} ranks")
    if each % batch and "batch_size" in flags:
        raise UserError(f"{wanted} is {each} for each rank, which is not a multiple of --batch {batch}: change one")
    batch = next(size for size in range(min(batch, each), 0, -1) if each % size == 0)
    return replace(train, batch_size=batch, accumulate=total // batch)


def select_ops(
    device: str, blas: str, train: TrainConfig, inherited: bool, ranks: Ranks = ALONE
) -> tuple[Operations, TrainConfig]:
    """The operations object to train with, and `train` with the precision in which they compute.

    A precision that was `inherited` from a checkpoint is given up on a device that lacks it. Raises UserError as
    `select` does.
    """
    from gpt.ops import select

    device = ranks.device(device)
    try:
        ops = select(device, train.precision, training=True, processes=ranks.sharing_cpus, blas=blas)
    except UserError:
        if not inherited:
            raise
        # raises the same error if the device itself is at fault
        ops = select(device, training=True, processes=ranks.sharing_cpus, blas=blas)
        train = replace(train, precision="auto").resolved()
    if train.reduce_precision == "bf16" and not ops.low_precision:
        raise UserError(
            f"--reduce-precision bf16 needs --precision bf16, but the ranks compute in {ops.precision}: leave it out"
        )
    return ops, train.computing_in(ops.precision)


def agree(plan: Plan, ops: Operations, ranks: Ranks, sharded: bool) -> None:
    """Check that this rank would train as the first one does; `make` has checked the tokens.

    Raises UserError that names the first difference.
    """
    here = {
        "hipgpt's version": gpt.__version__,
        "device": "CPU" if ops.is_cpu else "GPU",
        **{
            flag(key): value
            for config in (plan.model_config, plan.train_config)
            for key, value in config.to_json().items()
        },
        "--shard-optimizer": sharded,
        "checkpoint": plan.start.step if plan.start else None,
        "--from": plan.origin.name if plan.origin else None,
    }
    first = ranks.share(here)
    for name, value in json.loads(json.dumps(here)).items():
        if value != first.get(name):
            raise UserError(
                f"{name} is {value} here, but {first.get(name)} on the first rank: start all ranks with the same "
                "command, version and files"
            )
