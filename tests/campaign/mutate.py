"""Every input file is damaged in every way; each command then ends well, or with status 2 and one line.

A trial takes a file of a finished run, or the text, and a command that reads it. It damages the file by bytes (flipped,
inserted, removed, repeated, cut), by structure (a JSON value replaced by another one, removed, nested, or repeated as a
key; the header of a safetensors file likewise), or puts something else in its place (nothing, a folder, a FIFO, a link
to itself, to /dev/zero or to nowhere, another file of the run). No command may take more than `process.TIME_LIMIT` and
`process.MEMORY_LIMIT`, be ended by a signal or show a traceback.
"""

import json
import os
import struct
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.scenarios import LATEST, LEARN, RESUME, SCENARIOS, SIZES, Failure, Lab

RUN = "checkpoints/r"
FILES = (
    "text.txt", f"{RUN}/latest_config.json", f"{RUN}/r_step6_config.json", f"{RUN}/best_config.json",
    f"{RUN}/tokens.json", f"{RUN}/tokenizer.json", f"{RUN}/tokens.bin", f"{RUN}/metrics.jsonl",
    f"{RUN}/r_step6.safetensors", f"{RUN}/r_step6_optimizer.safetensors", f"{RUN}/r_best_step6.safetensors",
)  # fmt: skip
COMMANDS = (
    "runs",
    "generate --run-name r --prompt the --num-tokens 12",
    "generate --run-name r --prompt the --best",
    "generate --run-name r --prompt the --step 4",
    "export --run-name r --out hf",
    "export --run-name r --out hf --best",
    f"{RESUME} --steps 8",
    f"train --ckpt {LATEST} --steps 2",
    f"train --ckpt {LATEST} --run-name b --steps 2",
    f"train --ckpt {LATEST} --run-name b --steps 2 --data-path other.txt",
    "tokenize --run-name r",
    "tokenize --run-name r --text the",
    "tokenize --run-name r --decode 1,2",
    "tokenize --run-name t --data-path text.txt",
    "tokenize --run-name t --data-path text.txt --tokenizer byte --vocab-size 300",
    f"train --run-name f --steps 2 {LEARN} {SIZES}",
)
OF_TEXT = [each for each in COMMANDS if "text.txt" in each] + [f"{RESUME} --steps 8"]
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1e-300, 1e308, -0.0, 10**19, -(10**19), 2**31, 2**63, 1e6, 10**400,
    float("nan"), float("inf"), "", "x", "0", "\ud800", "\0", "../..", "/dev/zero", "a" * 70_000, [], {}, [[]],
    [0] * 1000, {"": None},
)  # fmt: skip


def trial(lab: Lab, seed: int) -> Failure | None:
    random = Random(seed)
    exported = next(each for each in SCENARIOS if each.name == "export")
    lab.begin(lab.known(exported).before)
    name = random.choice(FILES)
    path = (lab.trial / name).resolve()
    how = random.choice([_bytes, _bytes, _structure, _structure, _structure, _special])
    lab.story.append(f"{name}: {how(path, random)}")
    command = random.choice(OF_TEXT if name == "text.txt" else COMMANDS)
    outcome = lab.run(command, real=seed % 128 == 0)
    if outcome.status is None and "\nDisk: " in outcome.output:
        return None  # it trains: the damaged config asks for a lot of it
    if outcome.fault:
        words = f"{Path(name).suffix[1:]}: {outcome.fault}"
        return Failure(f"{command.split()[0]}: {words}", lab.story)
    return None


def _bytes(path: Path, random: Random) -> str:
    data = bytearray(path.read_bytes())
    done = []
    for _ in range(random.choice([1, 1, 1, 2, 5, 40])):
        at, size = random.randrange(len(data) + 1), random.choice([1, 1, 2, 8, 64])
        how = random.choice(["flip", "insert", "remove", "repeat", "cut", "set", "zero"])
        match how:
            case "flip":
                data[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])
            case "insert":
                data[at:at] = random.randbytes(size)
            case "remove":
                del data[at : at + size]
            case "repeat":
                data[at:at] = data[at : at + size] * random.choice([1, 3, 100])
            case "cut":
                del data[at:]
            case "set":
                data[at : at + size] = random.randbytes(size)
            case "zero":
                data[at:] = bytes(len(data) - at)
        done.append(f"{how} {size} at {at}")
    path.write_bytes(data)
    return ", ".join(done)


def _structure(path: Path, random: Random) -> str:
    """Change values in a JSON file, or in the header of a safetensors file. Damage any other file by bytes."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        header, said = _changed(data[8 : 8 + size], random)
        if random.random() < 0.9:
            size = len(header)
        path.write_bytes(struct.pack("<Q", size) + header + data[8 + struct.unpack("<Q", data[:8])[0] :])
        return said
    if path.suffix == ".jsonl":
        lines = data.splitlines()
        at = random.randrange(len(lines))
        lines[at], said = _changed(lines[at], random)
        path.write_bytes(b"\n".join(lines) + b"\n")
        return f"line {at}: {said}"
    if path.suffix != ".json":
        return _bytes(path, random)
    changed, said = _changed(data, random)
    path.write_bytes(changed)
    return said


def _changed(data: bytes, random: Random) -> tuple[bytes, str]:
    """JSON with one to three values changed, and a description of the changes."""
    document, said = json.loads(data), []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        if not isinstance(document, dict | list) or not document:
            break
        inside, key = random.choice(_places(document))
        how = random.choice(["replace", "replace", "replace", "remove", "swap", "nest", "rename", "double"])
        value = inside[key]
        match how:
            case "replace":
                inside[key] = deepcopy(random.choice(ODD))  # a later change may go into it
            case "remove":
                del inside[key]
            case "swap":
                other, place = random.choice(_places(document))
                inside[key], other[place] = other[place], value
            case "nest":
                for _ in range(random.choice([1, 2, 400, 900])):
                    value = [value]
                inside[key] = value
            case "rename" if isinstance(inside, dict):
                inside[str(random.choice(ODD))] = inside.pop(key)
            case "double" if isinstance(value, int | float) and not isinstance(value, bool):
                inside[key] = random.choice([value * 2, value + 1, value - 1, -value, float(value), str(value)])
        said.append(f"{how} {key!r:.40} → {_shown(inside.get(key) if isinstance(inside, dict) else '…')}")
    text = json.dumps(document, skipkeys=True) if _is_plain(document) else "[" * 5000
    if random.random() < 0.05:
        text = text.replace(":", ': {"a": 1, "a": 2}, "b":', 1)
    elif random.random() < 0.05:
        deep = random.choice([1000, 100_000])
        text = text.replace(":", ":" + '{"a":' * deep + "1" + "}" * deep + ', "b":', 1)
    return text.encode("utf-8", "surrogatepass"), "; ".join(said)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except RecursionError:  # Python prints lists in lists as deep as it can call functions
        return "lists in lists"


def _is_plain(document: Any) -> bool:
    """Whether a document can be written as JSON: without loops, which a swap may make, and not nested too deeply."""
    try:
        json.dumps(document, skipkeys=True)
    except (ValueError, RecursionError):
        return False
    return True


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every dictionary and list in a document, with each of its keys; large ones with 30 of them."""
    found, waiting, seen = [], [document], set()
    while waiting:
        inside = waiting.pop()
        if id(inside) in seen:
            continue
        seen.add(id(inside))
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        found += [(inside, key) for key in keys[:15] + keys[15:][-15:]]
        waiting += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    return found


def _special(path: Path, random: Random) -> str:
    """Put something else in the place of a file."""
    ways = ["missing", "empty", "folder", "fifo", "loop", "zero", "nowhere", "null", "another", "unreadable"]
    how = random.choice(ways)
    data = path.read_bytes()
    path.unlink()
    match how:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "zero":
            path.symlink_to("/dev/zero")
        case "null":
            path.symlink_to("/dev/null")
        case "nowhere":
            path.symlink_to("no/such/file")
        case "another":
            others = sorted(each for each in path.parent.iterdir() if each.is_file() and each != path)
            path.write_bytes(random.choice(others).read_bytes())
        case "unreadable":
            path.write_bytes(data)
            path.chmod(0)
    return how
