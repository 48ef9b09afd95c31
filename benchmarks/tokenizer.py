"""hipgpt's tokenizer beside Hugging Face's `tokenizers`: learning from a text, encoding it, memory.

    python benchmarks/tokenizer.py TEXT [--vocab-size 16000] [--kind word|byte] [--rounds 5]

Three things are timed, after imports: training on the whole file, encoding it right after that, and encoding it in a
new process with the tokenizer loaded. In each round both sides take their turn: machines drift, so the ratios printed
are medians over rounds of neighbors' ratios. Memory is the largest resident memory of a side's process, looked at
twenty times a second while it trains and encodes. Both use all cores. Needs `pip install "hipgpt[peers]"`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import psutil

ROOT = Path(__file__).parents[1]
SIDES = ("hipgpt", "Hugging Face")
LINES = 100_000  # lines that Hugging Face encodes at a time
TIMED = {
    "train": "training",
    "encode": "encoding right after",
    "encode_loaded": "encoding in a new process",
}


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--vocab-size", default=16_000, show_default=True, help="Maximum vocabulary size.")
@click.option(
    "--kind", type=click.Choice(["word", "byte"]), default="word", show_default=True, help="Kind of tokenizer."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often both sides take turns.")
@click.option("--side", type=click.Choice(SIDES), hidden=True)  # one process measures one side; --saved: its tokenizer
@click.option("--saved", type=click.Path(path_type=Path), hidden=True)
@click.option("--load", is_flag=True, hidden=True)
def main(text: Path, vocab_size: int, kind: str, rounds: int, side: str | None, saved: Path | None, load: bool) -> None:
    """Compare both tokenizers on TEXT."""
    if side and saved:
        measure = hipgpt if side == "hipgpt" else hugging_face
        click.echo(json.dumps(measure(text, vocab_size, kind, saved, load)))
        return
    results: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            results.append({})
            for name in SIDES:
                command = [sys.executable, __file__, str(text), "--vocab-size", str(vocab_size), "--kind", kind]
                command += ["--side", name, "--saved", f"{folder}/{name}.json"]
                trained, size = watched(command)
                loaded, _ = watched([*command, "--load"])
                results[-1][name] = {**trained, **loaded, "bytes": size}
    heading = f"{kind}, {text.stat().st_size / 1e6:.1f} MB, {vocab_size} ids"
    click.echo(f"{heading:<30}{'HIPGPT':>14}{'HUGGING FACE':>14}{'TIMES':>8}")
    for key, label in TIMED.items():
        print_line(label, key, results, " s  ", 1)
    print_line("largest resident memory", "bytes", results, " GiB", 2**30)


def print_line(label: str, key: str, results: list[dict[str, dict[str, float]]], unit: str, size: float) -> None:
    ours, theirs = ([each[side][key] / size for each in results] for side in SIDES)
    cells = (f"{statistics.median(values):>10.2f}{unit}" for values in (ours, theirs))
    times = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    click.echo(f"{label:<30}{''.join(cells)}{times:>8.2f}")


def watched(command: list[str]) -> tuple[dict[str, float], int]:
    """The JSON object that a command prints, and its largest resident memory in bytes."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(printed), most


def resident(process: int) -> int:
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0  # it ended meanwhile


def hipgpt(text: Path, vocab_size: int, kind: str, saved: Path, load: bool) -> dict[str, float]:
    sys.path.insert(0, str(ROOT))
    from gpt.corpus import read_blocks
    from gpt.tokenizer import Tokenizer

    def encode(tokenizer: Tokenizer) -> None:
        exhaust(tokenizer.encode_blocks(read_blocks(text)))

    if load:
        tokenizer = Tokenizer.load(saved)
        return {"encode_loaded": seconds(lambda: encode(tokenizer))}
    tokenizer = Tokenizer(vocab_size, kind)
    times = {
        "train": seconds(lambda: tokenizer.train_bpe(read_blocks(text))),
        "encode": seconds(lambda: encode(tokenizer)),
    }
    tokenizer.save(saved)
    return times


def hugging_face(text: Path, vocab_size: int, kind: str, saved: Path, load: bool) -> dict[str, float]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def encode(tokenizer: Tokenizer) -> None:
        lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
        for start in range(0, len(lines), LINES):
            exhaust(encoding.ids for encoding in tokenizer.encode_batch_fast(lines[start : start + LINES]))

    if load:
        tokenizer = Tokenizer.from_file(str(saved))
        return {"encode_loaded": seconds(lambda: encode(tokenizer))}
    options: dict[str, Any]
    if kind == "word":
        tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        options = {"end_of_word_suffix": "</w>"}
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    times = {
        "train": seconds(lambda: tokenizer.train([str(text)], trainer)),
        "encode": seconds(lambda: encode(tokenizer)),
    }
    tokenizer.save(str(saved))
    return times


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def exhaust(results: Iterable[object]) -> None:
    for _ in results:
        pass


if __name__ == "__main__":
    main()
