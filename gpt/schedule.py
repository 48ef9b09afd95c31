"""The learning rate of each step: a warmup, and then one of three schedules."""

import math

from gpt.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of `step` (the first is 1): a linear warmup to the peak, then one of three schedules.

    A schedule begins with the step after `schedule_start`, and ends with `total_steps`.

    - cosine: half a cosine down to the final rate at the last step (Loshchilov & Hutter 2017, one cycle).
    - trapezoid: constant, then linear to the final rate over the last `decay_fraction` of the schedule
      (warmup-stable-decay, Hu et al. 2024). Until the decay begins, the rate does not depend on the number of steps.
    - constant: no decay.

    Example: 100 steps, 10 of warmup, a peak of 1.0, a min_lr of 0 and a decay_fraction of 0.4. A trapezoid has 0.5 at
    step 5, 1.0 from step 10 to step 60, 0.5 at step 80 and 0 at step 100; a cosine has 0.5 at step 55. With a
    schedule_start of 200 and a total of 300 steps, a trapezoid has 0.5 at step 205 and 1.0 from step 210 to step 260.
    """
    peak, warmup, total = config.peak_lr, config.warmup, config.total_steps - config.schedule_start
    decay = decay_start(config)
    step -= config.schedule_start
    if warmup and step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant" or step <= decay - config.schedule_start:
        return peak
    if config.schedule == "trapezoid":
        left = max(0, total - step) / max(1, config.total_steps - decay)
        return config.final_lr + (peak - config.final_lr) * left
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return config.final_lr + (peak - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def describe_rate(config: TrainConfig, first: int, before: TrainConfig | None) -> str:
    """The learning rate from step `first` on, in one line.

    For example "0.008 from step 10 on, falling from step 60 on to 0 (trapezoid); AdamW". `before` is the training that
    the run had up to that step. If it would have gone on with another rate, the line begins with the rate up to then.
    """
    peak, total = config.peak_lr, config.total_steps
    warm, decay = config.schedule_start + config.warmup, decay_start(config)
    if first <= warm >= total:
        said = f"rising to {learning_rate(total, config):.3g} at step {total}, the last"
    elif first <= max(warm, decay) or first == 1:
        said = f"{peak:g} " + (f"from step {max(warm, first)} on" if warm or first > 1 else "at first")
        if decay < total:
            since = f"from step {decay} on " if config.schedule == "trapezoid" else ""
            said += f", falling {since}to {config.final_lr:g}"
    else:
        said = f"{learning_rate(first, config):.3g} at step {first}"
        said += f", falling to {config.final_lr:g}" if first < total else ""
    if before and learning_rate(first, config) not in (learning_rate(step, before) for step in (first - 1, first)):
        if config.schedule_start < first - 1 and first < warm:  # in a warmup whose length has changed
            said = f"{learning_rate(first, config):.3g} at step {first}, {said}"
        said = f"{learning_rate(first - 1, before):.3g} up to step {first - 1}, then {said}"
    by = {"adamw": "AdamW", "muon": "Muon for the blocks' matrices, AdamW for the rest"}[config.optimizer]
    return f"{said} ({config.schedule}); {by}"


def decay_start(config: TrainConfig) -> int:
    """The last step that has the full rate. A cosine decays from the end of the warmup on, a constant rate never."""
    steps, warmup = config.total_steps - config.schedule_start, config.warmup
    full = {"cosine": warmup, "constant": steps}.get(config.schedule, steps - math.ceil(config.decay_fraction * steps))
    return config.schedule_start + max(warmup, full)
