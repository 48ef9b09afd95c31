"""docs/formats.md describes every key that a run writes, with its type, and no key that no run writes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gpt import checkpoint
from gpt.config import ModelConfig
from gpt.export import export
from gpt.parameters import parameter_shapes
from gpt.pretrained import import_into
from gpt.run import Run
from gpt.tokenizer import Tokenizer
from tests.support import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
MODEL = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 12, "--layers", 1, "--seq", 8, "--batch", 2, "--no-tie")
TYPES = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "null": type(None),
}  # fmt: skip
KINDS = {"log": "loss", "evaluation": "val_loss", "sample": "sample"}  # a line of metrics.jsonl, and a key that it has


def table(heading: str) -> dict[str, list[str]]:
    """The table under a heading: the key in each row's first cell → its other cells."""
    section = re.split(r"^#+ ", PAGE.partition(f"\n### {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.+?) \|$", section, re.MULTILINE)
    return {key.strip("`"): cells for key, *cells in (row.split(" | ") for row in rows)}


def flat(value: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """{"text": {"size": 3}} as ("text.size", 3)."""
    for key, inner in value.items():
        yield from flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [(prefix + key, inner)]


def is_of(value: object, types: str) -> bool:
    """Whether a JSON value has one of the types in a text like "integer or null"; true and false are only booleans."""
    wanted = types.split(" or ")
    return any(isinstance(value, TYPES[each]) for each in wanted) and (type(value) is bool) == ("boolean" in wanted)


@pytest.fixture
def run(hipgpt, tmp_path):
    """The directory of a run that wrote every kind of file and line."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and saw a dog .\n" * 60, encoding="utf-8")
    hipgpt(
        "train", "--run-name", "r", "--data-path", "text.txt", *MODEL, "--device", "cpu", "--optimizer", "muon",
        "--steps", 2, "--log-every", 1, "--eval-every", 1, "--sample-every", 2,
    )  # fmt: skip
    return tmp_path / "checkpoints" / "r"


def imported(run: Path) -> Path:
    """The directory of a run that was imported from an export of this one."""
    export(checkpoint.load(Run.at(run)), run.parent / "hf")
    return import_into(Run("r", run.parent / "others"), run.parent / "hf").run.path


def test_every_key_of_a_run_is_described_and_no_other(run):
    absent = starting(("corpus.", "held_out.", "token_files.", "counted.", "tokenizer.sample"), "tokens.json")
    check_json(run / "tokens.json", "tokens.json", without=absent)
    of_imported = {"checkpoint.imported", "checkpoint.source"}
    check_json(run / "best_config.json", "The config", without=of_imported)
    check_json(run / "r_step2_config.json", "The config", without={"checkpoint.val_loss", *of_imported})
    check_json(imported(run) / "r_step0_config.json", "The config", without={"checkpoint.val_loss"})
    check_metrics(run / "metrics.jsonl")
    check_weights(run / "r_step2.safetensors")
    check_optimizer(run / "r_step2_optimizer.safetensors")
    check_tokens(run)


def test_every_key_of_tokens_json_of_a_folder_is_described_and_no_other(project):
    project.text.with_name("held.txt").write_text("the dog sat\n" * 40)
    project.text.with_name("dialogs.jsonl").write_text('{"prompt": "a cat?", "completion": "no"}')
    project.prepare(data_path="data/d*", val_path="data/held.txt", shuffle_documents=5, sample=900)
    check_json(project.run.tokens_info_path, "tokens.json", without=starting(("text.", "token_files."), "tokens.json"))


def test_every_key_of_tokens_json_of_ready_made_tokens_is_described_and_no_other(project):
    Tokenizer(kind="byte").save("tokenizer.json")
    for name in ("train.bin", "val.bin"):
        np.arange(50, dtype="<u2").tofile(name)
    project.prepare(tokens="train.bin", val_tokens="val.bin", kind="tokenizer.json")
    others = (
        "text.", "corpus.", "counted.", "tokenizer.sample", "tokens.", "dtype", "characters", "dropped",
        "held_out.encoding", "held_out.text_field", "held_out.documents",
    )  # fmt: skip
    check_json(project.run.tokens_info_path, "tokens.json", without=starting(others, "tokens.json"))


def starting(prefix, heading):
    return {key for key in table(heading) if key.startswith(prefix)}


def check_json(path, heading, without=frozenset()):
    described = {key: types for key, (types, _) in table(heading).items()}
    found = dict(flat(json.loads(path.read_text(encoding="utf-8"))))
    assert sorted(found) == sorted(described.keys() - without)
    assert {key: value for key, value in found.items() if not is_of(value, described[key])} == {}


def check_metrics(path):
    described = table("metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for kind, sign in KINDS.items():
        (line, *_) = (line for line in lines if sign in line)
        assert sorted(line) == sorted(key for key, (_, lines, _) in described.items() if lines in ("all", kind))
        assert {key: value for key, value in line.items() if not is_of(value, described[key][0])} == {}
    assert {lines for _, lines, _ in described.values()} == {"all", *KINDS}


def check_weights(path):
    """Two tensors in one row are `…ln_1.weight`, `.bias`."""
    described = set()
    for row in re.findall(r"^\| (`transformer.+?|`lm_head.+?) \|", PAGE, re.MULTILINE):
        name, *others = re.findall(r"`(.+?)`", row)
        described |= {name, *(name.removesuffix(".weight") + other for other in others)}
    with safe_open(path, "np") as file:
        found = {name.replace(".h.0.", ".h.i.") for name in file.keys()}  # noqa: SIM118, not a mapping
    assert found == described


def check_optimizer(path):
    described = {key: dtype for key, (dtype, _) in table("Optimizer").items()}
    names = parameter_shapes(ModelConfig(60, num_layers=1, tie_embeddings=False))
    with safe_open(path, "np") as file:
        dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    patterns = {key.partition(".")[0] + ".NAME" if key.partition(".")[2] in names else key for key in dtypes}
    assert patterns == set(described)
    for key, dtype in dtypes.items():
        assert dtype == described.get(key, "F32")


def check_tokens(run):
    info = json.loads((run / "tokens.json").read_text(encoding="utf-8"))
    assert (run / "tokens.bin").stat().st_size == info["count"] * {"uint16": 2, "uint32": 4}[info["dtype"]]
