"""From flags and what lies on disk to a run that is ready to train: which model, on which tokens, for which steps.

A value comes from the first of these that has it: an explicit flag, the checkpoint being continued, the preset, the
default. What can be refused is refused here, before the run has anything that it had not before; only a tokenized text
stays, for it serves the corrected command too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gpt import checkpoint
from gpt.checkpoint import Checkpoint
from gpt.config import DATA_PATH, PRESETS, RATES, VOCAB_LIMIT, ModelConfig, TrainConfig, flag
from gpt.console import Console, size
from gpt.data import Batches
from gpt.errors import UserError
from gpt.generate import prompt_ids
from gpt.history import owes_evaluation
from gpt.model import KVCache, memory_bytes, parameter_count
from gpt.optim import describe_rate
from gpt.prepare import Corpus, adopt, prepare
from gpt.run import Run

BYTES_PER_TOKEN = 12  # of a batch: its id, its label and its place in their order

# Muennighoff et al. 2023, "Scaling data-constrained language models": up to 4 passes over a text teach almost as much
# as new text would, beyond 16 each teaches little, and after 40 nothing is left to gain.
FRESH_PASSES, USEFUL_PASSES, MOST_PASSES = 4, 16, 40
TOKENS_PER_PARAMETER = 20  # that a model is best trained on: Hoffmann et al. 2022, "Training compute-optimal LLMs"


@dataclass(frozen=True)
class Plan:
    """What to train, and from where."""

    run: Run
    model: ModelConfig
    train: TrainConfig
    corpus: Corpus
    batches: Batches
    start: Checkpoint | None


def locate(run_name: str | None, resume: bool, ckpt: str | None) -> tuple[Run, Checkpoint | None]:
    """The run to train and the checkpoint to start from (None: fresh weights). Writes nothing.

    Raises UserError where that would overwrite or mix up what is there already.
    """
    if resume and ckpt:
        raise UserError("--resume and --ckpt exclude each other: --resume takes the run's latest checkpoint itself")
    if resume:
        if run_name is None:
            raise UserError("--resume needs --run-name: which run is to go on? `hipgpt runs` lists them")
        run = Run(run_name)
        return run, checkpoint.load(run)
    if ckpt is None:
        run = Run(Run.new_name() if run_name is None else run_name)
        if run.has_checkpoints:
            raise UserError(
                f"run {run.name} already has checkpoints: go on with --resume or --ckpt, or take another --run-name"
            )
        return run, None
    start = checkpoint.find(ckpt)
    if start.val_loss is not None:
        raise UserError(
            f"--ckpt {ckpt} is a best checkpoint, which is weights without the optimizer's state, and training cannot "
            "go on from those: name another one"
        )
    run = start.run if run_name is None else Run(run_name)
    if run.path.exists() and run.path.samefile(start.run.path):
        run, in_the_way = start.run, [step for step in start.run.steps() if step > start.step]
    else:
        in_the_way = run.steps()
        if run.has_checkpoints and not in_the_way:
            raise UserError(f"run {run.name} already has a checkpoint of its own: take another --run-name")
    if in_the_way:
        raise UserError(
            f"run {run.name} already has step {in_the_way[-1]}, which going on from {ckpt} would overwrite: "
            "continue that one, or take another --run-name"
        )
    return run, start


def is_done(start: Checkpoint | None, steps: int | None) -> bool:
    """Whether nothing is left of `steps` steps in all (None: as many as the run was to have), no evaluation either."""
    if start is None or start.step != (start.train.total_steps if steps is None else steps):
        return False
    return not owes_evaluation(start.run, start.train, start.step)


def settle(
    flags: Mapping[str, Any], preset: str | None, start: Checkpoint | None, resume: bool
) -> tuple[ModelConfig, TrainConfig]:
    """What to train and how, but for the vocabulary's size, which is the tokenizer's. `flags` are explicit ones only.

    With a checkpoint, `--steps` counts on from it, or is the total if this is a plain resume.
    Raises UserError for values out of range and for flags that contradict the checkpoint's model.
    """
    chosen = PRESETS.get(preset or "", {})
    if flags.get("optimizer", chosen.get("optimizer")) != chosen.get("optimizer"):
        chosen = {key: value for key, value in chosen.items() if key not in RATES}
    wanted = {**chosen, **flags}
    model = _pick(ModelConfig, wanted)
    model.pop("vocab_size", None)
    if start is None:
        train = TrainConfig(**_pick(TrainConfig, wanted))
        _check_sample_prompt(flags, train)
        return ModelConfig(vocab_size=1, **model), train
    for key, value in model.items():
        if value != (stored := getattr(start.model, key)):
            raise UserError(f"{flag(key)} {value} contradicts the checkpoint, whose model has {stored}: leave it out")
    changes = _pick(TrainConfig, flags)
    if (optimizer := changes.get("optimizer", start.train.optimizer)) != start.train.optimizer:
        raise UserError(
            f"--optimizer {optimizer} cannot go on from a checkpoint of {start.train.optimizer}, which kept other "
            "moments: leave it out, or train a new run"
        )
    if not resume and "total_steps" in changes:
        changes["total_steps"] += start.step
    train = replace(start.train, **changes)
    _check_sample_prompt(flags, train)
    if train.total_steps < start.step or (train.total_steps == start.step and not resume):
        raise UserError(
            f"run {start.run.name} has reached step {start.step} of {train.total_steps}: to train on, "
            f"use --ckpt {start.run.latest_weights_path} --steps N"
        )
    return start.model, train


def make(
    run: Run, start: Checkpoint | None, model: ModelConfig, train: TrainConfig, *,
    data_path: str | None, vocab_limit: int | None, tokenizer: str | None, preset: str | None, reset: bool,
    console: Console,
) -> Plan:  # fmt: skip
    """Tokenize the text if need be, and fit the model to the tokenizer. The caller holds the run's lock.

    Raises UserError if that cannot be done; a run that had no tokenizer then has none.
    """
    if start and reset:
        raise UserError("--reset would make another tokenizer than the checkpoint's: leave it out, or train a new run")
    is_new = not run.tokenizer_path.exists()
    try:
        if start and start.run.path != run.path:
            adopt(start.run, run, with_tokens=data_path is None)
        corpus = prepare(
            run, data_path=data_path, vocab_limit=vocab_limit, kind=tokenizer, defaults=tokenizer_defaults(preset),
            reset=reset, report=console.line, progress=console.progress,
        )  # fmt: skip
        batches = Batches(
            corpus.tokens, train.batch_size, model.max_seq_len,
            sampling=train.sampling, seed=train.seed, val_fraction=train.val_fraction,
        )  # fmt: skip
        if train.sample_prompt is not None:
            prompt_ids(corpus.tokenizer, train.sample_prompt, "--sample-prompt")
    except UserError:
        if is_new:
            run.discard_tokens()
        raise
    vocab_size = corpus.tokenizer.vocab_size
    if start and start.model.vocab_size != vocab_size:
        raise UserError(
            f"{run.tokenizer_path} has {vocab_size} tokens, but the checkpoint's model {start.model.vocab_size}: "
            "put the tokenizer back that it was trained with"
        )
    return Plan(run, replace(model, vocab_size=vocab_size), train, corpus, batches, start)


def tokenizer_defaults(preset: str | None) -> dict[str, Any]:
    """How a text is tokenized where neither a flag nor the run itself says so."""
    chosen = PRESETS.get(preset or "", {})
    return {
        "data_path": DATA_PATH,
        "vocab_limit": chosen.get("vocab_size", VOCAB_LIMIT),
        "kind": chosen.get("tokenizer", "word"),
    }


def announce(plan: Plan, ops: Any, console: Console) -> None:
    """Say what is about to be trained and what it takes. Raises UserError if the memory is not there."""
    model, train, run = plan.model, plan.train, plan.run
    first = plan.start.step + 1 if plan.start else 1
    held_out = f", {plan.batches.val_tokens:,} of them held out" if plan.batches.val_tokens else ""
    sequences, seq = train.batch_size * train.accumulate, model.max_seq_len
    console.line(f"Run:    {run.path}, steps {first} to {train.total_steps}")
    console.line(f"Model:  {describe(model)}")
    console.line(
        f"Data:   {len(plan.corpus.tokens):,} tokens{held_out}; a step takes {sequences} x {seq} = {sequences * seq:,}"
    )
    console.line("Steps:  " + passes(train.total_steps, sequences * seq, plan.batches.train_tokens, model))
    console.line("Rate:   " + describe_rate(train))
    for note in (*ops.notes, plan.batches.note if train.eval_every else None):
        if note:
            console.line(note)
    needed, free = memory(model, train, ops)
    console.line(f"Memory: {size(needed)} needed, {size(free)} free")
    console.line("Disk:   " + disk(model, train))


def describe(model: ModelConfig) -> str:
    """A model's size and shape in a line."""
    return (
        f"{parameter_count(model):,} parameters ({model.num_layers} layers, dim {model.embed_dim}, "
        f"{model.num_heads} heads, seq {model.max_seq_len}, vocabulary {model.vocab_size:,})"
    )


def passes(steps: int, tokens_per_step: int, train_tokens: int, model: ModelConfig) -> str:
    """How often a run of so many steps goes over its text; and, if that is too often, how many steps would do.

    Beyond MOST_PASSES a model learns nothing more from its text; one with more parameters than the text has tokens for
    learns it by heart. Then as many tokens would do as the model is best trained on, but never less than the passes
    that are as good as new text, and never more than those that still teach something. For example 7.7 million
    parameters are best trained on 154 million tokens. With a text of 258,000 that is 597 passes, so 16 are named:
    4.1 million tokens, about 500 steps of 8,192.
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
    unit = 10 ** max(0, math.floor(math.log10(max(1, count))))
    return max(1, round(count / unit) * unit)


def disk(model: ModelConfig, train: TrainConfig) -> str:
    """What checkpoints take on disk, and how many of them are kept."""
    weights, optimizer = checkpoint.file_bytes(model, train)
    if not train.ckpt_every:
        kept = "only the last step's is written"
    elif train.keep_last == 1:
        kept = "the last one is kept"
    else:
        kept = f"the last {train.keep_last} are kept"
    best = f", and the best weights ({size(weights)})" if train.eval_every else ""
    return f"a checkpoint takes {size(weights + optimizer)}; {kept}{best}"


def memory(model: ModelConfig, train: TrainConfig, ops: Any) -> tuple[int, int]:
    """Bytes that training takes, and bytes that are free. Raises UserError if those are fewer."""
    inputs = BYTES_PER_TOKEN * train.batch_size * model.max_seq_len
    cache = KVCache.bytes(model, ops) if train.sample_every else 0
    needed = memory_bytes(model, train.batch_size, ops, train.optimizer) + inputs + cache
    free = ops.free_bytes()
    if needed > free:
        raise UserError(
            f"training needs {size(needed)} of memory, but {size(free)} is free: lower --batch (it is "
            f"{train.batch_size}; --accumulate makes up for it), --seq ({model.max_seq_len}) or the model's size"
        )
    return needed, free


def _check_sample_prompt(flags: Mapping[str, Any], train: TrainConfig) -> None:
    if flags.get("sample_prompt") is not None and not train.sample_every:
        raise UserError("--sample-prompt needs --sample-every N: after how many steps is the model to write?")


def _pick(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}
