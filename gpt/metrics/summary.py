"""A summary of a run: how far it is, how good, on what data."""

from dataclasses import asdict, dataclass
from typing import Any

from gpt import checkpoint, provenance
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.history import lowest, owes_result, validation_losses
from gpt.parameters import parameter_count
from gpt.run import Run
from gpt.system.lock import is_held


@dataclass(frozen=True)
class Summary:
    """What a run has reached. None stands for what it does not have.

    `state` is "training" (another process writes to the run, which may also tokenize), "done" (all steps are taken),
    "diverged" (the last loss or its gradient was not finite), "stopped" (it can go on), "tokenized" (it has no model
    yet), "imported" (another program trained its model), or "damaged" (its checkpoint does not load, and `damage` says
    why). `step` is that of the checkpoint, or of the last line of the log while it trains, and `steps` how many there
    will be. Losses are in nats per token; `seconds` and `tokens` are those that it has trained for and on, `device` the
    last one on which it has.
    """

    name: str
    state: str
    damage: str | None
    step: int | None
    steps: int | None
    loss: float | None
    best_val_loss: float | None
    best_step: int | None
    last_val_loss: float | None
    last_val_step: int | None
    tokens: int | None
    seconds: float | None
    device: str | None
    parameters: int | None
    disk_bytes: int
    model: ModelConfig | None
    train: TrainConfig | None
    data: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """All fields; those of the model, of its training and of its data (tokens.json) as objects."""
        return asdict(self)


def summary(run: Run) -> Summary:
    """The summary of a run, which may be damaged, or be training in another process."""
    saved, damage = None, None
    try:
        saved = checkpoint.load(run)
    except (UserError, OSError) as error:
        damage = str(error) if run.has_weights else None
    lines = run.metrics()
    logged = [line for line in lines if "loss" in line]
    losses = [line["loss"] for line in logged if line["loss"] is not None]
    evaluations, kept = validation_losses(lines), checkpoint.best(run)
    best = (kept.step, kept.val_loss) if kept and kept.val_loss is not None else lowest(evaluations)
    last = evaluations[-1] if evaluations else None
    timed = [line for line in lines if line.get("time") is not None and line.get("tokens") is not None]
    state = _state(run, saved, damage, has_diverged=bool(logged) and _is_broken(logged[-1]))
    known = saved or kept  # a run that trains may have best weights before its first checkpoint
    trained = None if known and known.imported else known
    step = saved.step if saved and not saved.imported else None
    return Summary(
        name=run.name,
        state=state,
        damage=damage if state == "damaged" else None,
        step=max(step or 0, logged[-1]["step"]) if state == "training" and logged else step,
        steps=trained.train_config.total_steps if trained else None,
        loss=losses[-1] if losses else None,
        best_val_loss=best[1] if best else None,
        best_step=best[0] if best else None,
        last_val_loss=last[1] if last else None,
        last_val_step=last[0] if last else None,
        tokens=timed[-1]["tokens"] if timed else None,
        seconds=timed[-1]["time"] if timed else None,
        device=trained.train_config.device if trained else None,
        parameters=parameter_count(known.model_config) if known else None,
        disk_bytes=run.disk_bytes(),
        model=known.model_config if known else None,
        train=trained.train_config if trained else None,
        data=provenance.read(run),
    )


def _is_broken(line: dict[str, Any]) -> bool:
    """Whether the step of this line changed nothing, because its loss or its gradient was not finite."""
    return line["loss"] is None or line.get("grad_norm", 0) is None


def _state(run: Run, saved: checkpoint.Checkpoint | None, damage: str | None, has_diverged: bool) -> str:
    if is_held(run.path):
        return "training"
    if damage:
        return "damaged"
    if has_diverged:
        return "diverged"
    if saved is None:
        return "tokenized"
    if saved.imported:
        return "imported"
    is_done = saved.step == saved.train_config.total_steps and not owes_result(run, saved.train_config, saved.step)
    return "done" if is_done else "stopped"
