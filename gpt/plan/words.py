"""A plan in words: what `hipgpt train` says before the first step."""

import math
from collections.abc import Iterator

from gpt.config import ModelConfig, TrainConfig
from gpt.distributed.ranks import ALONE, Ranks
from gpt.lora import trained_count
from gpt.ops.interface import Operations
from gpt.optim import stacks_here
from gpt.parameters import parameter_count
from gpt.plan.ready import Plan
from gpt.plan.space import check_disk, disk, memory
from gpt.schedule import describe_rate
from gpt.system.console import Console, size

# Muennighoff et al. 2023, "Scaling data-constrained language models": up to 4 passes over a text teach almost as much
# as new text would, beyond 16 each teaches little, and after 40 nothing is left to gain.
FRESH_PASSES, USEFUL_PASSES, MOST_PASSES = 4, 16, 40
TOKENS_PER_PARAMETER = 20  # best amount of training text (Hoffmann et al. 2022, "Training compute-optimal LLMs")


def announce(plan: Plan, ops: Operations, console: Console, ranks: Ranks = ALONE, sharded: bool = False) -> None:
    """Describe the training that is about to start, its memory and its disk space.

    Before it prints anything, it has the device check the products that the training relies on, because that may add to
    the device's notes. Raises UserError if the memory or the disk space is not there, and as `check_products` does.
    """
    model, train = plan.model_config, plan.train_config
    needed, free = memory(model, train, ops, ranks)
    stacks = stacks_here(model, train, ops, ranks)
    ops.check_products(model, train.batch_size, training=True, stacks=stacks, lora=train.lora)
    how = "; the backward pass computes each block again" if train.recompute else ""
    lines = [
        *_of_model(plan),
        *_of_ranks(train, ranks, sharded),
        *_of_data(plan),
        *_notes(plan, ops, ranks),
        f"Memory: {size(needed)} needed, {size(free)} free{how}",
        f"Disk:   {disk(model, train)}",
    ]
    for line in lines:
        console.line(line)
    check_disk(plan, console)


def _of_model(plan: Plan) -> Iterator[str]:
    """The lines about the run and its model."""
    yield f"Run:    {plan.run.path}, steps {plan.first_step} to {plan.train_config.total_steps}"
    if plan.origin:
        yield f"From:   {plan.origin.name}"
    yield f"Model:  {describe(plan.model_config)}"
    if plan.train_config.lora:
        yield f"LoRA:   {describe_adapters(plan.model_config, plan.train_config.lora)}"


def _of_ranks(train: TrainConfig, ranks: Ranks, sharded: bool) -> Iterator[str]:
    """The line about the ranks, if there are several."""
    if ranks.size > 1:
        each = train.accumulate // ranks.size
        yield (
            f"Ranks:  {ranks.size}; in a step each takes {each} x {train.batch_size} sequences (--batch is for "
            f"one rank), all together {train.batch_size * train.accumulate}"
        )
    elif sharded:
        yield "Note: --shard-optimizer changes nothing, because there is one rank alone"


def _of_data(plan: Plan) -> Iterator[str]:
    """The lines about the text, the passes over it and the rates."""
    train, batches, info = plan.train_config, plan.batches, plan.corpus.info
    sequences, seq = train.batch_size * train.accumulate, plan.model_config.max_seq_len
    learned = f", {info['counted']['count']:,} of them learned" if "counted" in info else ""
    held_out = f", {batches.val_tokens:,} of them held out" if batches.val_tokens else ""
    per_step = f"{sequences * seq:,} tokens per step ({sequences} x {seq})"
    yield f"Data:   {len(plan.corpus.tokens):,} tokens{learned}{held_out}; {per_step}"
    steps = train.total_steps - train.text_start
    yield "Steps:  " + passes(steps, sequences * seq, batches.train_tokens, plan.model_config)
    yield "Rate:   " + describe_rate(train, plan.first_step, plan.start.train_config if plan.start else None)


def _notes(plan: Plan, ops: Operations, ranks: Ranks) -> Iterator[str]:
    """Notes about the devices, the precision and the held-out text."""
    yield from ops.notes
    yield from _notes_of_others(ops, ranks)
    of_evaluation = (plan.batches.note, _seen_note(plan)) if plan.train_config.eval_every else ()
    yield from filter(None, (_precision_note(plan, ops), *of_evaluation))


def _notes_of_others(ops: Operations, ranks: Ranks) -> list[str]:
    """The notes about the devices of other ranks, each once; on the first rank, which prints them."""
    said: dict[str, int] = dict.fromkeys(ops.notes, 0)
    for rank, notes in enumerate(ranks.gather(list(ops.notes))):
        for note in notes:
            said.setdefault(note, rank)
    return [f"{note} (on rank {rank})" for note, rank in said.items() if rank]


def _precision_note(plan: Plan, ops: Operations) -> str | None:
    """One line if the run goes on in another precision than before, though nobody asked for that now."""
    if plan.start is None or "precision" not in plan.train_config.computed:
        return None
    before = plan.start.train_config.precision
    if before in ("auto", ops.precision):
        return None
    return f"Note: steps up to {plan.start.step} were computed in {before}, those after it are in {ops.precision}"


def _seen_note(plan: Plan) -> str | None:
    """One line if the run has trained on text that is held out now."""
    batches = plan.batches
    seen = batches.val_tokens - math.floor(len(batches.tokens) * plan.train_config.unseen)
    if seen <= 0:
        return None
    return (
        f"Note: {seen:,} of the {batches.val_tokens:,} tokens held out were trained on before, so the validation loss "
        "is lower than it would be on new text"
    )


def describe(model: ModelConfig) -> str:
    """The size and the shape of a model, in one line."""
    layers = "1 layer" if model.num_layers == 1 else f"{model.num_layers} layers"
    heads = "1 head" if model.num_heads == 1 else f"{model.num_heads} heads"
    return (
        f"{parameter_count(model):,} parameters ({layers}, dim {model.embed_dim}, "
        f"{heads}, seq {model.max_seq_len}, vocabulary {model.vocab_size:,})"
    )


def describe_adapters(model: ModelConfig, lora: int) -> str:
    """The rank and the size of the adapters that learn, in one line."""
    return f"adapters of rank {lora}, {trained_count(model, lora):,} parameters, beside a model that stays as it is"


def passes(steps: int, tokens_per_step: int, train_tokens: int, model: ModelConfig) -> str:
    """How often a run of `steps` steps goes over its text and, if that is too often, how many steps would be enough.

    Beyond MOST_PASSES a model learns nothing more from its text. If the text is too short for its parameters, the model
    learns it by heart. Enough is the text that a model of this size is best trained on (TOKENS_PER_PARAMETER), but at
    least FRESH_PASSES, which are as good as new text, and at most USEFUL_PASSES, which still teach something.

    For example 7.7 million parameters are best trained on 154 million tokens. With a text of 258,000 tokens that is 597
    passes, so 16 are advised: 4.1 million tokens, about 500 steps of 8,192.
    """
    count = steps * tokens_per_step / train_tokens
    said = f"{steps:,} steps are {count:,.{0 if count >= 10 else 1}f} passes over {train_tokens:,} tokens"
    if count <= MOST_PASSES:
        return said
    wanted = TOKENS_PER_PARAMETER * parameter_count(model)
    enough = min(max(wanted, FRESH_PASSES * train_tokens), USEFUL_PASSES * train_tokens) / tokens_per_step
    verdict = "the model will memorize" if wanted > train_tokens else "the last ones will teach it nothing"
    return f"{said}: {verdict}; about {_roughly(enough):,} steps would do"


def _roughly(count: float) -> int:
    """A number to one digit, and at least 1: 503.9 is about 500."""
    unit = int(10 ** max(0, math.floor(math.log10(max(1, count)))))
    return max(1, round(count / unit) * unit)
