"""The settings of a model and of its training, from flags, a preset, and the checkpoint or the model to start from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpt.checkpoint import Checkpoint
from gpt.config import (
    LORA,
    PRESETS,
    RATES,
    TUNING,
    TUNING_RATES,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
    flag,
    pick,
)
from gpt.errors import UserError
from gpt.lora import largest_rank
from gpt.pretrained import Pretrained


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
        model, train = _of_tuning(flags, preset, origin)
    else:
        chosen = PRESETS.get(preset or "", {})
        if flags.get("optimizer", chosen.get("optimizer")) != chosen.get("optimizer"):
            chosen = {key: value for key, value in chosen.items() if key not in RATES}
        wanted = {**chosen, **flags}
        if start is None:
            model, train = _of_new_run(wanted)
        else:
            model, train = _of_same_model(flags, wanted, start), _of_more_training(flags, start, resume)
    if flags.get("sample_prompt") is not None and not train.sample_every:
        raise UserError("--sample-prompt needs --sample-every N: after how many steps is the model to write?")
    return model, train


def _of_new_run(wanted: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a run with random weights, which has no vocabulary yet."""
    train = TrainConfig(**pick(TrainConfig, wanted)).resolved()
    if train.lora:
        raise UserError(f"--lora {train.lora} trains adapters beside a trained model: name that model with --from")
    return ModelConfig(vocab_size=1, **pick(ModelConfig, wanted)), train


def _of_same_model(flags: Mapping[str, Any], wanted: Mapping[str, Any], start: Checkpoint) -> ModelConfig:
    """The checkpoint's model. Flags may change --dropout alone, because no weight has a shape that depends on it.

    Raises UserError if the `wanted` settings, those of the flags and of the preset, contradict the model.
    """
    for key, value in pick(ModelConfig, wanted).items():
        if key != "dropout" and value != (stored := getattr(start.model_config, key)):
            raise UserError(f"{flag(key)} {value} contradicts the checkpoint, whose model has {stored}: leave it out")
    return replace(start.model_config, dropout=flags.get("dropout", start.model_config.dropout))


def _of_more_training(flags: Mapping[str, Any], start: Checkpoint, resume: bool) -> TrainConfig:
    """The settings of a training that goes on from the checkpoint; `settle` says what `resume` does.

    Raises UserError if a flag contradicts the checkpoint, or if its schedule has ended.
    """
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
    return start.train_config.changed(**changes)


def _of_tuning(flags: Mapping[str, Any], preset: str | None, origin: Pretrained) -> tuple[ModelConfig, TrainConfig]:
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
        train = replace(train, base=origin.directory or origin.name)
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
