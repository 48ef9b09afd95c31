"""Turns flags and the files of a run into a `Plan`: a run, a model, tokens and steps that are ready to train.

A setting comes from the first of these that has it: an explicit flag, the checkpoint to continue, the preset, the
default. All checks happen here, before anything is written. One exception: a text that has been tokenized stays
tokenized, because the corrected command can use the tokens.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpt
from gpt import checkpoint
from gpt.batches import Batches
from gpt.checkpoint import Checkpoint
from gpt.config import (
    LORA,
    PRESETS,
    RATES,
    TUNING,
    TUNING_RATES,
    DataConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
    check,
    flag,
    pick,
)
from gpt.distributed.ranks import ALONE, Ranks
from gpt.errors import UserError
from gpt.generate import prompt_ids
from gpt.history import owes_result
from gpt.lora import largest_rank, trained_count
from gpt.model import KVCache, memory_bytes
from gpt.ops.interface import Operations
from gpt.optim import optimizer_bytes, stacks_here
from gpt.parameters import parameter_count
from gpt.prepare import Corpus, adopt, adopt_tokenizer, is_text_of, prepare
from gpt.pretrained import Pretrained
from gpt.run import ROOT, Run
from gpt.schedule import describe_rate
from gpt.system.console import Console, size
from gpt.system.limits import free_disk, free_memory, require_memory
from gpt.tokenizer import lost_note
from gpt.workspace import Kept

MOST_NAMED = 64  # ranks that a message proposes at most
MOST_BATCHES = 100_000  # sizes of a batch that are looked at before one sequence at a time is advised
BYTES_PER_TOKEN = 12  # in a batch: the id, its label and its place in their order, 4 bytes each

# Muennighoff et al. 2023, "Scaling data-constrained language models": up to 4 passes over a text teach almost as much
# as new text would, beyond 16 each teaches little, and after 40 nothing is left to gain.
FRESH_PASSES, USEFUL_PASSES, MOST_PASSES = 4, 16, 40
TOKENS_PER_PARAMETER = 20  # best amount of training text (Hoffmann et al. 2022, "Training compute-optimal LLMs")


@dataclass(frozen=True)
class Plan:
    """A run that is ready to train.

    `start` is the checkpoint to continue, None for a new run. `origin` is the model whose weights and tokenizer a new
    run begins with, None for random weights.
    """

    run: Run
    model_config: ModelConfig
    train_config: TrainConfig
    corpus: Corpus
    batches: Batches
    start: Checkpoint | None
    origin: Pretrained | None = None


def locate(run_name: str | None, resume: bool, ckpt: str | None, root: Path = ROOT) -> tuple[Run, Checkpoint | None]:
    """The run under `root` to train and the checkpoint to start from (None: fresh weights). Writes nothing.

    Raises UserError if training would overwrite a checkpoint, or mix two trainings in one run.
    """
    if resume and ckpt is None:
        if run_name is None:
            raise UserError("--resume needs --run-name: which run should be resumed? `hipgpt runs` lists them")
        run = Run(run_name, root)
        return run, _trained_here(checkpoint.load(run))
    if ckpt is None:
        run = Run(Run.new_name() if run_name is None else run_name, root)
        if run.has_checkpoints:
            raise UserError(
                f"run {run.name} already has checkpoints: go on with --resume or --ckpt, or take another --run-name"
            )
        return run, None
    start = _trained_here(checkpoint.find(ckpt))
    if start.val_loss is not None:
        raise UserError(
            f"--ckpt {ckpt} is a best checkpoint, which is weights without the optimizer's state, and training cannot "
            "go on from those: name another one, or start a new run from its weights with --from"
        )
    run = start.run if run_name is None else Run(run_name, root)
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


def _trained_here(start: Checkpoint) -> Checkpoint:
    """Returns `start`. Raises UserError if it was imported, because nothing can go on without an optimizer's state."""
    if start.imported:
        raise UserError(
            f"run {start.run.name} has imported weights, without an optimizer's state that training could go on with: "
            f"start a new run from them with --from {start.run.name}"
        )
    return start


def is_done(start: Checkpoint | None, steps: int | None) -> bool:
    """Whether a run has done all of its steps and evaluations. `steps` is their number (None: the run's own)."""
    if start is None or start.step != (start.train_config.total_steps if steps is None else steps):
        return False
    return not owes_result(start.run, start.train_config, start.step)


def settle(
    flags: Mapping[str, Any], preset: str | None, start: Checkpoint | None, resume: bool,
    origin: Pretrained | None = None,
) -> tuple[ModelConfig, TrainConfig]:  # fmt: skip
    """The settings of the model and of its training, from explicit `flags`, the preset, the checkpoint and `origin`.

    The model's vocab_size is set later, from the tokenizer. With `resume` the checkpoint's schedule goes on, and
    `--steps` is its last step. Otherwise the checkpoint gets a schedule of its own, of `--steps` more steps.
    Raises UserError for values out of range and for flags that contradict the checkpoint's model.
    """
    if origin is not None:
        return _settle_tuning(flags, preset, origin)
    chosen = PRESETS.get(preset or "", {})
    if flags.get("optimizer", chosen.get("optimizer")) != chosen.get("optimizer"):
        chosen = {key: value for key, value in chosen.items() if key not in RATES}
    wanted = {**chosen, **flags}
    model = pick(ModelConfig, wanted)
    if start is None:
        train = TrainConfig(**pick(TrainConfig, wanted)).resolved()
        if train.lora:
            raise UserError(f"--lora {train.lora} trains adapters beside a trained model: name that model with --from")
        _check_sample_prompt(flags, train)
        return ModelConfig(vocab_size=1, **model), train
    dropout = flags.get("dropout", start.model_config.dropout)  # no weight has a shape that depends on it
    for key, value in model.items():
        if key != "dropout" and value != (stored := getattr(start.model_config, key)):
            raise UserError(f"{flag(key)} {value} contradicts the checkpoint, whose model has {stored}: leave it out")
    changes = pick(TrainConfig, flags)
    if (optimizer := changes.get("optimizer", start.train_config.optimizer)) != start.train_config.optimizer:
        raise UserError(
            f"--optimizer {optimizer} cannot go on from a checkpoint of {start.train_config.optimizer}, which kept "
            "other moments: leave it out, or train a new run"
        )
    if "lora" in changes and changes["lora"] != start.train_config.lora:
        has = f"has adapters of rank {start.train_config.lora}" if start.train_config.lora else "has no adapters"
        raise UserError(f"--lora {changes['lora']} contradicts the checkpoint, which {has}: leave it out")
    if not resume:
        changes |= _own_schedule(changes, start)
    total_steps = changes.get("total_steps", start.train_config.total_steps)
    if total_steps < start.step or (total_steps == start.step and not resume):
        raise UserError(
            f"run {start.run.name} has reached step {start.step} of {total_steps}: to train on, "
            f"use --ckpt {start.run.latest_weights_path} --steps N"
        )
    lr, final = changes.get("learning_rate", start.train_config.peak_lr), start.train_config.final_lr
    if lr < final and "min_lr" not in changes and "min_lr" not in start.train_config.computed:
        raise UserError(f"--lr {lr} is below {final}, which the run was given as its --min-lr: give --min-lr too")
    train = start.train_config.changed(**changes)
    _check_sample_prompt(flags, train)
    return replace(start.model_config, dropout=dropout), train


def _settle_tuning(flags: Mapping[str, Any], preset: str | None, origin: Pretrained) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a new run that begins with the weights of `origin`. Flags may change --dropout and lower --seq.

    Raises UserError for values out of range and for flags that contradict the model of `origin`.
    """
    if preset is not None:
        raise UserError(f"--preset {preset} describes a new model, but --from brings one: leave --preset out")
    for key in pick(TokenizerConfig, flags):
        raise UserError(f"{flag(key)} {flags[key]} describes a new tokenizer, but --from brings one: leave it out")
    model, changes = origin.config, pick(ModelConfig, flags)
    for key, value in changes.items():
        stored = getattr(model, key)
        if key == "max_seq_len" and value > stored:
            raise UserError(f"--seq {value} is more than the {stored} positions of {origin.name}: lower it")
        if key not in ("max_seq_len", "dropout") and value != stored:
            raise UserError(f"{flag(key)} {value} contradicts {origin.name}, whose model has {stored}: leave it out")
    usual = {**TUNING, **LORA} if "lora" in flags else TUNING
    chosen = {**usual, **pick(TrainConfig, flags)}
    train = TrainConfig(**{"learning_rate": TUNING_RATES.get(chosen["optimizer"]), **chosen}).resolved()
    if train.lora and train.lora > largest_rank(model):
        raise UserError(
            f"--lora {train.lora} is more than {largest_rank(model)}, the smallest dimension of the matrices of "
            f"{origin.name}: lower it"
        )
    if train.lora:
        train = replace(train, base=origin.name)
    _check_sample_prompt(flags, train)
    return replace(model, **changes), train


def _own_schedule(changes: Mapping[str, Any], start: Checkpoint) -> dict[str, int]:
    """The start and the last step of a schedule that begins after the checkpoint.

    Raises UserError if --steps is missing or below 1, or if a given warmup would not end within them.
    """
    if "total_steps" not in changes:
        raise UserError(
            "--ckpt starts a schedule of its own: give its length with --steps N, or finish the checkpoint's schedule "
            "with --resume"
        )
    steps, warmup = changes["total_steps"], start.train_config.warmup
    if steps < 1:
        raise UserError(f"--steps is {steps}, but must be at least 1")
    if warmup >= steps and "warmup_steps" not in changes and "warmup_steps" not in start.train_config.computed:
        raise UserError(
            f"--steps {steps} would end within the {warmup} that the checkpoint's run was given as its --warmup-steps: "
            "give --warmup-steps too"
        )
    return {"total_steps": start.step + steps, "schedule_start": start.step}


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
        raise UserError(f"--reduce-precision bf16 needs --precision bf16, but the ranks compute in {ops.precision}")
    return ops, train.computing_in(ops.precision)


def make(
    run: Run, start: Checkpoint | None, model: ModelConfig, train: TrainConfig, *, flags: Mapping[str, Any],
    preset: str | None, reset: bool, console: Console, ranks: Ranks = ALONE, origin: Pretrained | None = None,
) -> Plan:  # fmt: skip
    """Tokenize the text if necessary, and fit the model to the tokenizer. The first rank holds the run's lock.

    All `ranks` call this, but only the first one changes the run's files. A new tokenizer gets its settings from the
    explicit `flags`, then from the preset; `origin` brings its own. Raises UserError if the text, the tokenizer and the
    checkpoint do not fit together; a run that had no tokenizer then has none.
    """
    if reset and (start or origin):
        whose = "the checkpoint's" if start else "that of --from"
        raise UserError(f"--reset would make another tokenizer than {whose}: leave it out, or train a new run")
    is_new, data = not run.tokenizer_path.exists(), DataConfig(**pick(DataConfig, flags))
    try:
        if start and start.run.path != run.path and ranks.is_first:
            adopt(start.run, run, with_tokens=not (data.data_path or data.tokens))
        if origin and ranks.is_first:
            adopt_tokenizer(origin.tokenizer, run, origin.name)
        corpus = prepare(
            run, data=data, preset=None if start else preset, reset=reset, report=console.line,
            progress=console.progress, ranks=ranks, may_grow=start is None, **pick(TokenizerConfig, flags),
        )  # fmt: skip
        if corpus.val_fraction is not None:
            if "val_fraction" in flags:
                other = "--val-tokens" if "token_files" in corpus.info else "--val-path"
                raise UserError(f"--val-fraction and {other} both say what is held out: leave --val-fraction out")
            unseen = train.unseen_fraction if start else corpus.val_fraction
            train = replace(train, val_fraction=corpus.val_fraction, unseen_fraction=unseen)
        if start:
            train = _on_its_text(train, start, corpus)
        batches = Batches(
            corpus.tokens, train.batch_size, model.max_seq_len,
            sampling=train.sampling, seed=train.seed, val_fraction=train.val_fraction,
            accumulate=train.accumulate, counted=corpus.counted,
        )  # fmt: skip
        if train.sample_prompt is not None:
            prompt_ids(corpus.tokenizer, train.sample_prompt, "--sample-prompt")
            if unknown := corpus.tokenizer.unknown(train.sample_prompt):
                console.line(f"Note: {lost_note('--sample-prompt', unknown, len(train.sample_prompt))}")
    except UserError:
        if is_new and ranks.is_first:
            run.discard_tokens()
        raise
    vocab_size = corpus.tokenizer.vocab_size
    if start:
        start.model_config.check_tokenizer(run.tokenizer_path, vocab_size)
    origin = origin.grown(vocab_size) if origin else None
    return Plan(run, replace(model, vocab_size=vocab_size), train, corpus, batches, start, origin)


def _on_its_text(train: TrainConfig, start: Checkpoint, corpus: Corpus) -> TrainConfig:
    """`train` with the step after which its text began, and the share of the text that no step has trained on.

    A text other than the checkpoint's is read from its beginning.
    """
    if not is_text_of(start.run, corpus):
        return replace(train, text_start=start.step, unseen_fraction=train.val_fraction)
    return replace(train, unseen_fraction=min(start.train_config.unseen, train.val_fraction))


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


def announce(plan: Plan, ops: Operations, console: Console, ranks: Ranks = ALONE, sharded: bool = False) -> None:
    """Describe the training that is about to start, its memory and its disk space.

    Raises UserError if the memory or the disk space is not there.
    """
    model, train, run = plan.model_config, plan.train_config, plan.run
    needed, free = memory(model, train, ops, ranks)
    stacks = stacks_here(model, train, ops, ranks)
    ops.check_products(model, train.batch_size, training=True, stacks=stacks, lora=train.lora)
    first = plan.start.step + 1 if plan.start else 1
    held_out = f", {plan.batches.val_tokens:,} of them held out" if plan.batches.val_tokens else ""
    sequences, seq = train.batch_size * train.accumulate, model.max_seq_len
    console.line(f"Run:    {run.path}, steps {first} to {train.total_steps}")
    if plan.origin:
        console.line(f"From:   {plan.origin.name}")
    console.line(f"Model:  {describe(model)}")
    if train.lora:
        console.line(f"LoRA:   {describe_adapters(model, train.lora)}")
    per_step = f"{sequences * seq:,} tokens per step ({sequences} x {seq})"
    if sharded and ranks.size == 1:
        console.line("Note: --shard-optimizer changes nothing, because there is one rank alone")
    if ranks.size > 1:
        each = train.accumulate // ranks.size
        console.line(
            f"Ranks:  {ranks.size}; in a step each takes {each} x {train.batch_size} sequences (--batch is for "
            f"one rank), all together {sequences}"
        )
    learned = f", {plan.corpus.info['counted']['count']:,} of them learned" if "counted" in plan.corpus.info else ""
    console.line(f"Data:   {len(plan.corpus.tokens):,} tokens{learned}{held_out}; {per_step}")
    steps = train.total_steps - train.text_start
    console.line("Steps:  " + passes(steps, sequences * seq, plan.batches.train_tokens, model))
    console.line("Rate:   " + describe_rate(train, first, plan.start.train_config if plan.start else None))
    of_evaluation = (plan.batches.note, _seen_note(plan)) if train.eval_every else ()
    others = _notes_of_others(ops, ranks)
    for note in filter(None, (*ops.notes, *others, _precision_note(plan, ops), *of_evaluation)):
        console.line(note)
    how = "; the backward pass computes each block again" if train.recompute else ""
    console.line(f"Memory: {size(needed)} needed, {size(free)} free{how}")
    console.line("Disk:   " + disk(model, train))
    check_disk(plan, console)


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
    return (
        f"{parameter_count(model):,} parameters ({model.num_layers} layers, dim {model.embed_dim}, "
        f"{model.num_heads} heads, seq {model.max_seq_len}, vocabulary {model.vocab_size:,})"
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
    """The largest tensor counts twice, as when it is loaded, so that a run that can start can also be resumed."""
    cache = KVCache.bytes(model, ops) if train.sample_every else 0
    kept = optimizer_bytes(model, train, ops, ranks) + cache + checkpoint.largest_tensor(model)
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


def _check_sample_prompt(flags: Mapping[str, Any], train: TrainConfig) -> None:
    if flags.get("sample_prompt") is not None and not train.sample_every:
        raise UserError("--sample-prompt needs --sample-every N: after how many steps is the model to write?")
