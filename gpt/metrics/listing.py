"""Summaries of runs in words: the table of `hipgpt runs`, and the page of `hipgpt show`."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from gpt.config import NOT_CHOSEN, ModelConfig, TrainConfig, flag
from gpt.metrics.curves import loss_text
from gpt.metrics.summary import Summary
from gpt.provenance import paths_of
from gpt.run import Run
from gpt.system.console import duration, rate, size

HEADER = (
    "RUN", "STATE", "STEP", "LOSS", "BEST VALIDATION", "LAST VALIDATION", "TOKENS", "TIME", "DEVICE", "PARAMETERS",
    "SIZE",
)  # fmt: skip
_LEFT = 2  # columns whose cells stand on the left: names and states
# Columns that are left out, one after the other, if the terminal is too narrow
_LEAST = ("SIZE", "PARAMETERS", "DEVICE", "LAST VALIDATION", "TOKENS", "TIME", "BEST VALIDATION")


def table(summaries: Sequence[Summary], width: int | None = None) -> list[str]:
    """The lines of the table, the header first. "-" stands for whatever a run does not have.

    If they are wider than `width` characters, columns are left out, the least important ones first, and the last lines
    name them.
    """
    columns = [_aligned(column) for column in zip(HEADER, *map(_row, summaries), strict=True)]
    left_out: list[str] = []
    for name in _LEAST:
        if width is None or sum(len(column[0]) + 2 for column in columns) - 2 <= width:
            break
        columns = [column for column in columns if column[0].strip() != name]
        left_out.append(name)
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    if left_out:
        note = f"A wider terminal shows {', '.join(sorted(left_out, key=HEADER.index))} too"
        lines += ["", *_wrapped(note, width)]
    return lines


def _aligned(column: tuple[str, ...]) -> list[str]:
    """The cells of a column, the header first, all as wide as the widest."""
    width = max(map(len, column))
    is_left = column[0] in HEADER[:_LEFT]
    return [cell.ljust(width) if is_left else cell.rjust(width) for cell in column]


def page(run: Run, it: Summary, width: int | None = None) -> list[str]:
    """The lines of `hipgpt show`: state, model, data, losses, settings, checkpoints, and what to do next.

    A fact that is wider than `width` characters goes on in further lines. What to do next stays in one, because a
    command that is broken cannot be copied.
    """
    facts = [
        ("Run", f"{run.path} ({size(it.disk_bytes)})"),
        ("State", _state(it)),
        ("Damage", it.damage),
        ("Model", _model(it.model) if it.model else None),
        ("LoRA", _adapters(it.model, it.train) if it.model and it.train else None),
        ("Data", _data(run, it.data) if it.data else None),
        ("Trained", _trained(it)),
        ("Device", it.device),
        ("Loss", None if it.loss is None else f"{loss_text(it.loss)} on the text that it trains on"),
        ("Held out", _held_out(it)),
        ("Settings", ", ".join(_settings(it)) or None),
        ("Checkpoints", ", ".join(_checkpoints(run)) or None),
    ]
    indent = max(len(name) for name, _ in facts) + 2
    lines = []
    for name, fact in facts:
        if fact:
            first, *rest = _wrapped(fact, width and width - indent)
            lines += [f"{name + ':':{indent}}{first}", *(f"{'':{indent}}{line}" for line in rest)]
    return [*lines, f"{'Next:':{indent}}{_next(run, it)}"]


def _wrapped(text: str, width: int | None) -> list[str]:
    """A text in lines of at most `width` characters (None: in one), broken between words alone."""
    if width is None:
        return [text]
    return textwrap.wrap(text, max(1, width), break_long_words=False, break_on_hyphens=False)


def _row(it: Summary) -> tuple[str, ...]:
    return (
        it.name,
        it.state,
        "-" if it.step is None else f"{it.step}/{it.steps or '?'}",
        "-" if it.loss is None else loss_text(it.loss),
        _at(it.best_val_loss, it.best_step),
        _at(it.last_val_loss, it.last_val_step),
        "-" if it.tokens is None else rate(it.tokens),
        "-" if it.seconds is None else duration(it.seconds),
        it.device or "-",
        "-" if it.parameters is None else f"{it.parameters:,}",
        size(it.disk_bytes),
    )


def _at(value: float | None, step: int | None) -> str:
    return "-" if value is None else f"{loss_text(value)} at {step}"


def _state(it: Summary) -> str:
    if it.step is None:
        return it.state
    return f"{it.state}, at step {it.step}" + (f" of {it.steps}" if it.steps else "")


def _model(model: ModelConfig) -> str:
    from gpt.plan import describe

    return describe(model)


def _adapters(model: ModelConfig, train: TrainConfig) -> str | None:
    from gpt.plan import describe_adapters

    return f"{describe_adapters(model, train.lora)}: {train.base}" if train.lora else None


def _data(run: Run, info: dict[str, Any]) -> str:
    kind, vocabulary = info["tokenizer"]["kind"], info["vocab_size"]
    return f"{', '.join(paths_of(run, info))}: {info['count']:,} tokens ({kind} tokenizer, vocabulary {vocabulary:,})"


def _trained(it: Summary) -> str | None:
    return None if it.tokens is None or it.seconds is None else f"on {it.tokens:,} tokens for {duration(it.seconds)}"


def _held_out(it: Summary) -> str | None:
    if it.best_val_loss is None:
        return None
    last = "" if it.last_val_loss is None else f", {_at(it.last_val_loss, it.last_val_step)} (the last)"
    return f"validation loss {_at(it.best_val_loss, it.best_step)} (the best){last}"


def _settings(it: Summary) -> Iterator[str]:
    """The settings of the training that are not the defaults, as flags."""
    if it.train is None:
        return
    computed = {*it.train.computed, *NOT_CHOSEN}
    usual = TrainConfig().to_json()
    for key, value in it.train.to_json().items():
        if key not in computed and value != usual[key]:
            yield _as_flag(key, value)
    if it.model is not None:
        usual = ModelConfig(vocab_size=1).to_json()
        for key, value in it.model.to_json().items():
            if key not in NOT_CHOSEN and value != usual[key]:
                yield _as_flag(key, value)


def _as_flag(key: str, value: object) -> str:
    """For example "--dim 128", and for a switch "--no-tie" or "--recompute"."""
    return flag(key) if isinstance(value, bool) else f"{flag(key)} {value}"


def _checkpoints(run: Run) -> Iterator[str]:
    for step in run.steps():
        paths = (run.weights_path(step), run.optimizer_path(step), run.config_path(step))
        yield f"step {step} ({size(sum(path.stat().st_size for path in paths if path.exists()))})"


def _next(run: Run, it: Summary) -> str:
    if it.state == "training":
        return f"hipgpt plot {run.name}{run.elsewhere}" if it.loss is not None else "wait until it has logged a step"
    if it.state == "damaged":
        return "mend the damage that is named above, or use an earlier checkpoint: --step, --ckpt"
    if it.state == "tokenized":
        return f"hipgpt train {run.options}"
    if it.state == "stopped":
        return f"hipgpt train {run.options} --resume"
    if it.state == "diverged":
        return f"train it anew with a lower --lr (it was {it.train.peak_lr:g})" if it.train else "train it anew"
    return run.trial(best=it.best_step not in (None, it.step))
