"""Commands that are killed at, or fail at, one call after the other: `python -m tests.trials KIND [STRIDE]`.

Runs in a process of its own under tests/faults.c (LD_PRELOAD). It imports hipgpt once and forks for each command, as
starting Python anew would take most of the time. Prints one line for each trial that went wrong, and a count.
"""

import errno
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

MODEL = "--vocab-size 60 --dim 8 --heads 2 --ff 8 --layers 1 --seq 8 --batch 2 --device cpu"
TRAIN = f"train --run-name r --data-path text.txt {MODEL} --steps 6 --log-every 1 --eval-every 2 --ckpt-every 2"
TRAIN += " --keep-last 1 --sample-every 3"
RESUME = "train --run-name r --resume"
TEXTS = ("the cat sat on the mat and saw a dog .\n" * 60, "a cow sat on the log and ate the grass .\n" * 60)
WALL_CLOCK = {"time", "ms", "tokens_per_second"}
RUN = Path("checkpoints/r")


def command(line: str, **faults: object) -> tuple[int, str]:
    """Exit status (negative for a signal) and standard error of `hipgpt line`."""
    child = os.fork()
    if child == 0:
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False)) for n in (1, 2))
            os.environ |= {f"FAULTS_{name.upper()}": str(value) for name, value in faults.items()}
            if faults:
                os.environ["FAULTS_UNDER"] = "checkpoints"
            from gpt.cli import main

            main(line.split())
        except SystemExit as error:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(error.code or 0)
        finally:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, Path("err").read_text()


def logged() -> list[dict]:
    lines = map(json.loads, (RUN / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


def trained() -> dict[str, object]:
    """What a run leaves, but for how long things took."""
    files = {path.name: path.read_bytes() for path in RUN.iterdir() if path.suffix in (".safetensors", ".bin")}
    names = {path.name for path in RUN.iterdir()}
    return {**files, "names": names, "log": logged()}


def tokenized() -> dict[str, object]:
    return {path.name: path.read_bytes() for path in RUN.iterdir() if path.name in ("tokenizer.json", "tokens.bin")}


def go_on_training() -> str | None:
    """Train on by the command that works, or that the error names; what is wrong if none does."""
    status, error = command(RESUME)
    if status == 2 and ("without --resume" in error or "there is no run" in error):
        status, error = command(TRAIN)
    return None if status == 0 else f"going on: status {status}, {error}"


def go_on_tokenizing() -> str | None:
    status, error = command("tokenize --run-name r --data-path text.txt")
    if status == 2 and "--reset" in error:
        status, error = command("tokenize --run-name r --data-path text.txt --reset")
    return None if status == 0 else f"going on: status {status}, {error}"


def reset_ready() -> None:
    command("tokenize --run-name r --data-path text.txt --vocab-size 60")
    Path("text.txt").write_text(TEXTS[1])


KINDS = {
    "train": (lambda: None, TRAIN, go_on_training, trained),
    "reset": (reset_ready, "tokenize --run-name r --data-path text.txt --reset", go_on_tokenizing, tokenized),
}


def trial(kind: str, faults: dict[str, object]) -> tuple[dict[str, object], str | None]:
    """What a command with `faults` and then one without leave, and what is wrong with how they ended."""
    prepare, line, go_on, look = KINDS[kind]
    home = tempfile.mkdtemp()
    os.chdir(home)
    try:
        Path("text.txt").write_text(TEXTS[0])
        prepare()
        status, error = command(line, **faults)
        if status not in (0, 2, -9) or (status == 2 and error.splitlines()[-1][:7] != "Error: "):
            return {}, f"status {status}, {error}"
        return (look(), None) if not faults else (go_on(), look())[::-1]
    except Exception as error:
        return {}, repr(error)
    finally:
        os.chdir("/")
        shutil.rmtree(home)


def main(kind: str, stride: int = 1) -> None:
    import gpt.plan
    import gpt.trainer  # noqa: F401  before the first fork

    whole, wrong = trial(kind, {})
    assert wrong is None, wrong
    count_file = tempfile.mktemp()
    trial(kind, {"at": 0, "count": count_file})
    calls = int(Path(count_file).read_text())
    trials = [(at, number) for number in (0, errno.ENOSPC, errno.EIO) for at in range(1, calls + 1)][::stride]
    failures = 0
    for at, number in trials:
        left, wrong = trial(kind, {"at": at, "errno": number})
        differ = [name for name in whole.keys() | left.keys() if whole.get(name) != left.get(name)]
        if wrong or differ:
            failures += 1
            print(f"call {at} of {calls}, errno {number}: {wrong or f'{differ} differ'}")
            if "names" in differ and left:
                print("   names:", whole["names"] ^ left["names"])
            if "log" in differ and left:
                print("   log:", *left["log"], sep="\n     ")
    print(f"{len(trials)} trials, {failures} failures")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))


