"""Removes checkpoints that are no longer wanted, in an order that leaves a whole run after a kill at any moment."""

from pathlib import Path

from gpt.checkpoint.reading import best, load, read
from gpt.run import CONFIG, OPTIMIZER, WEIGHTS, Run
from gpt.system.files import remove
from gpt.system.filesystem import sync_directory


def prune(run: Run, keep_last: int) -> None:
    """Remove all checkpoints but those of the `keep_last` highest steps and the one that `latest_*` names.

    Also removes files without a config, which a killed save or pruning left, and old best checkpoints. The caller holds
    `run.lock()`. A file that cannot be removed now (on Windows, because a reader has it open) is removed the next time.

    Raises UserError, having removed nothing, if the latest checkpoint does not load.
    """
    latest = {load(run).path.name, run.latest_weights_path.resolve().name}
    if run.latest_config_path.exists():
        latest.add(read(run, run.latest_config_path).path.name)
    kept = run.steps()[-keep_last:]
    discarded = {
        f"{prefix}_step{step}": parts
        for (prefix, step), parts in run.parts().items()
        if f"{prefix}_step{step}{WEIGHTS}" not in latest
        and not (CONFIG in parts and step in kept)
        and not (parts == {WEIGHTS} and prefix != run.name)  # somebody else's file
    }
    # A step that has a config is whole, after a power cut too. So the configs go first.
    for stem in discarded:
        remove(run.path / f"{stem}{CONFIG}")
    if discarded:
        sync_directory(run.path)
    for stem, parts in discarded.items():
        if not (run.path / f"{stem}{CONFIG}").exists():
            for part in (WEIGHTS, OPTIMIZER):
                if part in parts:
                    remove(run.path / f"{stem}{part}")
    if (kept_best := best(run)) is not None:
        forget_other_best(run, kept_best.path)


def forget_best(run: Run) -> None:
    """Remove the best checkpoint, if there is one: its links first, so that no link is ever broken."""
    for path in (run.best_config_path, run.best_weights_path, *_best_files(run)):
        path.unlink(missing_ok=True)


def forget_other_best(run: Run, weights_path: Path) -> None:
    """Remove the files of all best checkpoints but the one with these weights."""
    for path in _best_files(run):
        if path not in (weights_path, weights_path.with_name(weights_path.stem + CONFIG)):
            remove(path)


def _best_files(run: Run) -> list[Path]:
    return [
        run.path / f"{prefix}_step{step}{part}"
        for (prefix, step), parts in run.parts(best=True).items()
        for part in sorted(parts, reverse=True)  # the config first: "_" comes after "."
    ]
