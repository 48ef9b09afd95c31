"""The texts that become tokens: those that the user names, else those of tokens.json, else the one of hipgpt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt import provenance
from gpt.config import DATA_PATH, DataConfig
from gpt.corpus.finding import absolute
from gpt.corpus.sources import Found, Texts, check_field, find, left_out_words
from gpt.corpus.text_file import UTF_8
from gpt.errors import UserError
from gpt.provenance import Info, Report
from gpt.run import Run
from gpt.system.shipped import default_text


def names_of(run: Run, data: DataConfig, info: Info | None) -> Sequence[str]:
    """What names the text: --data-path, else tokens.json, else the default text."""
    if data.data_path:
        names: Sequence[str] = data.data_path
    elif info is not None:
        names = provenance.paths_of(run, info)
    elif run.has_weights:
        raise UserError(
            f"{run.tokens_info_path} is missing or damaged, so nothing says what text the run was trained on: "
            "put it back, or name the text with --data-path"
        )
    else:
        names = [default_text()]
    if info is None and any(Path(name) == Path(DATA_PATH) for name in names) and not Path(DATA_PATH).exists():
        raise UserError(
            f"{DATA_PATH} does not exist: name a text with --data-path, get one with `hipgpt fetch shakespeare`, or "
            "leave --data-path out for the text that comes with hipgpt"
        )
    return names


def found(run: Run, names: Sequence[str], data: DataConfig, info: Info | None, report: Report) -> Texts:
    """The files of the texts that are to be encoded: those that `names` stand for, and those that are held out.

    How one is read is up to the flags, else to tokens.json if that knows it, else to the defaults. Raises UserError if
    a file cannot be used or is in both texts, and if a flag does not fit the files.
    """
    before = info.get("corpus", {}) if info else {}
    if info and before and list(absolute(names)) != list(absolute(provenance.paths_of(run, info))):
        before = {}  # of another text
    encoding, field = data.encoding or before.get("encoding", UTF_8), data.text_field or before.get("text_field")
    train, held = find(names, encoding, field), _held_out(run, data, info, encoding, field)
    seed = data.shuffle_documents if data.shuffle_documents is not None else before.get("shuffle_documents")
    if seed is not None and not train.sources.marks:
        raise UserError(
            f"--shuffle-documents is {seed}, but {train.sources.name} is one plain text: leave it out, or give several "
            "files, a folder or JSON Lines"
        )
    both = [each for each in (train, held) if each]
    check_field([each.sources for each in both], data.text_field)
    if left_out := [path for each in both for path in each.left_out]:
        report(f"Note: {left_out_words(left_out)}")
    if held:
        learned, kept = (set(absolute(file.path for file in each.sources.files)) for each in both)
        if shared := learned & kept:
            raise UserError(f"{min(shared)} is a part of both --data-path and --val-path: name it in one of them")
    sample = data.sample if data.sample is not None else info["tokenizer"].get("sample") if info else None
    return Texts(replace(train.sources, seed=seed, sample=sample), held.sources if held else None)


def _held_out(run: Run, data: DataConfig, info: Info | None, encoding: str, field: str | None) -> Found | None:
    """The files of --val-path, read as those of --data-path, or else of tokens.json, read as before."""
    if data.val_path:
        return find(data.val_path, encoding, field, "--val-path")
    if info is None or "held_out" not in info:
        return None
    then, names = info["held_out"], provenance.paths_of(run, {"corpus": info["held_out"]})
    encoding, field = data.encoding or then["encoding"], data.text_field or then["text_field"]
    return find(names, encoding, field, "--val-path")
