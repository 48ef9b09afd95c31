"""Which settings learn fastest: trains one model with each of them, through the real command, and ranks them.

    python benchmarks/recipes.py TEXT --preset medium --steps 1250 --vary lr=2e-3,4e-3,8e-3 --vary optimizer=adamw
    python benchmarks/recipes.py TEXT --preset tiny --steps 300 --vary vocab-size=500,1000,2000 --device cpu --jobs 2

Each value of a `--vary` is one run in which that flag alone differs from the preset. The unchanged preset runs too.
Prints, the best run first, the validation loss in bits per byte, by which runs with different tokenizers compare, the
median time of a step, and the time until the end of the last step. With more than one of `--jobs`, runs share the
machine, and their times say less. docs/recipes.md has the results.
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from gpt.config import PRESETS, TokenizerConfig

ROOT = Path(__file__).resolve().parent.parent
TOKEN_FILES = ("tokenizer.json", "tokens.bin", "tokens.json")
TOKENIZER_FLAGS = ("tokenizer", "vocab-size")


class Result(NamedTuple):
    """The result of a run, or the medians over several seeds."""

    bits_per_byte: float
    ms: float
    seconds: float


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, resolve_path=True))
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Model and recipe to begin with.")
@click.option("--steps", type=int, required=True, help="Steps of each run.")
@click.option("--vary", multiple=True, metavar="FLAG=A,B,…", help="A flag of hipgpt train, and values to try.")
@click.option("--fixed", multiple=True, metavar="FLAG=A", help="A flag that differs from the preset in all runs.")
@click.option("--device", default="auto", show_default=True, help="Device, as in hipgpt train.")
@click.option("--seeds", default=1, show_default=True, help="Runs of each setting, with different seeds.")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    text: str, preset: str, steps: int, vary: tuple[str, ...], fixed: tuple[str, ...], device: str, seeds: int,
    jobs: int, as_json: bool,
) -> None:  # fmt: skip
    """Train the preset's model on TEXT with each of the settings, and rank them."""
    always = {"steps": steps, "eval-every": steps, "ckpt-every": 0, "device": device, **dict(map(_pair, fixed))}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        sweep = Sweep(Path(folder), text, preset)
        names = list(_settings(vary))
        for setting in names:
            sweep.tokenize({**always, **setting})
        runs = {
            label(setting): [pool.submit(sweep.train, {**always, **setting, "seed": seed}) for seed in range(seeds)]
            for setting in names
        }
        results = {}
        for name, futures in runs.items():
            results[name] = Result(*map(statistics.median, zip(*(each.result() for each in futures), strict=True)))
            if not as_json:
                click.echo(f"{results[name].bits_per_byte:.4f} bits/byte  {name}", err=True)
    ranked = sorted(results.items(), key=lambda pair: pair[1].bits_per_byte)
    if as_json:
        click.echo(json.dumps({name: result._asdict() for name, result in ranked}, indent=2))
        return
    for name, (bits, ms, seconds) in ranked:
        click.echo(f"{bits:8.4f} bits/byte  {ms:8.1f} ms  {seconds:8.1f} s  {name}")


def _settings(vary: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The preset as it is, then the preset with each value of each flag."""
    yield {}
    for name, values in map(_pair, vary):
        for value in values.split(","):
            yield {name: value}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text} is not of the form FLAG=VALUE")
    return name.removeprefix("--"), value


def label(setting: dict[str, str]) -> str:
    """The name of a setting: "lr 4e-3", or "as it is"."""
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "as it is"


class Sweep:
    """Runs in `folder`. Those whose texts are tokenized alike share the tokens."""

    def __init__(self, folder: Path, text: str, preset: str) -> None:
        self._folder, self._text, self._preset = folder, text, preset
        self._tokenized: dict[tuple[str, ...], Path] = {}
        self._numbers = itertools.count(1)

    def tokenize(self, setting: dict[str, Any]) -> Path:
        """The run that has the tokens of a setting, made at the first call."""
        usual = TokenizerConfig.of(self._preset)
        chosen = {"tokenizer": usual.kind, "vocab-size": usual.vocab_limit}
        flags = tuple(str(setting.get(flag, chosen[flag])) for flag in TOKENIZER_FLAGS)
        if flags not in self._tokenized:
            name = f"tokens{len(self._tokenized)}"
            options = [part for pair in zip(TOKENIZER_FLAGS, flags, strict=True) if pair[1] for part in _flag(*pair)]
            self._hipgpt("tokenize", "--run-name", name, "--data-path", self._text, *options)
            self._tokenized[flags] = self._folder / "checkpoints" / name
        return self._tokenized[flags]

    def train(self, setting: dict[str, Any]) -> Result:
        """Train a run by the preset with these flags; its files are removed again."""
        tokens = self.tokenize(setting)
        run = self._folder / "checkpoints" / f"run{next(self._numbers)}"
        run.mkdir()
        for name in TOKEN_FILES:
            shutil.copy2(tokens / name, run)
        options = [part for name, value in setting.items() for part in _flag(name, value)]
        self._hipgpt("train", "--run-name", run.name, "--preset", self._preset, *options)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(run)
        last = [line for line in lines if "val_bits_per_byte" in line][-1]
        ms = statistics.median(line["ms"] for line in lines if "ms" in line)
        return Result(last["val_bits_per_byte"], ms, last["time"])

    def _hipgpt(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "gpt.cli", *arguments]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"{' '.join(arguments)}: {done.stderr.strip()}")


def _flag(name: str, value: Any) -> list[str]:
    return [f"--{name}", str(value)]


if __name__ == "__main__":
    main()
