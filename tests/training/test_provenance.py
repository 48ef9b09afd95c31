"""tokens.json: which texts count as the same, and how files are remembered."""

import json

import pytest

from gpt import provenance
from gpt.provenance.record import files_of
from gpt.run import Run

FILE = {"path": "../../a.txt", "size": 4, "mtime_ns": 1, "sha256": "a" * 64}
OTHER = FILE | {"sha256": "b" * 64}
CORPUS = {
    "paths": ["../.."], "encoding": "utf-8", "text_field": None, "documents": True, "sources": [FILE, OTHER],
}  # fmt: skip
TEXT, FOLDER = {"text": FILE}, {"corpus": CORPUS}


@pytest.mark.parametrize(
    "other",
    [
        {"text": OTHER},
        FOLDER,
        {"corpus": CORPUS | {"sources": [OTHER, FILE]}},
        {"corpus": CORPUS | {"sources": [FILE]}},
        {"corpus": CORPUS | {"encoding": "iso8859-1"}},
        {"corpus": CORPUS | {"text_field": "content"}},
        {"corpus": CORPUS | {"shuffle_documents": 0}},
        FOLDER | {"held_out": CORPUS},
        FOLDER | {"held_out": CORPUS | {"sources": [OTHER]}},
        FOLDER | {"held_out": CORPUS | {"encoding": "iso8859-1"}},
        TEXT | {"held_out": CORPUS},
    ],
)
def test_a_text_is_another_one_if_its_bytes_its_reading_or_what_is_held_out_differ(other):
    for one in (TEXT, FOLDER):
        assert (provenance.identity(one) == provenance.identity(other)) == (one == other)


def test_a_text_is_the_same_wherever_and_whenever_its_files_were_written():
    moved = {"path": "/b.txt", "mtime_ns": 2}
    assert provenance.identity({"text": FILE | moved}) == provenance.identity(TEXT)
    sources = [FILE | moved, OTHER | moved]
    assert provenance.identity({"corpus": CORPUS | {"paths": ["/"], "sources": sources}}) == provenance.identity(FOLDER)


def test_a_pair_of_tokens_and_tokenizer_is_another_one_if_either_differs():
    def pair(tokens, tokenizer):
        return {"tokens": {"sha256": tokens}, "tokenizer": {"sha256": tokenizer}}

    pairs = [pair("a", "c"), pair("b", "c"), pair("a", "d")]
    pairs += [{"token_files": {"sources": [file]}, "tokenizer": {"sha256": "c"}} for file in (FILE, OTHER)]
    assert len(set(map(provenance.pair_digest, pairs))) == len(pairs)


def test_files_inside_the_project_are_remembered_relative_to_the_run(tmp_path):
    run = Run("r", tmp_path / "project" / "checkpoints")
    inside, beside = tmp_path / "project" / "a.txt", tmp_path / "project2" / "a.txt"
    assert provenance.remember(run, inside) == "../../a.txt"
    assert provenance.remember(run, beside) == str(beside), "its name begins as the project's does"
    assert list(provenance.remember_all(run, [run.path / "b.txt", inside, beside])) == (
        ["b.txt", "../../a.txt", str(beside)]
    )  # fmt: skip
    for path in (inside, beside, run.path / "b.txt"):
        assert provenance.locate(run, provenance.remember(run, path)) == path


INFO = {
    "count": 2, "vocab_size": 9, "dtype": "uint16", "characters": 4, "dropped": 0, "text": FILE,
    "tokenizer": {"kind": "byte", "vocab_limit": 9, "sha256": "c"},
    "tokens": {"size": 4, "mtime_ns": 1, "sha256": "d"},
}  # fmt: skip


def read(tmp_path, info):
    run = Run.at(tmp_path)
    run.tokens_info_path.write_text(json.dumps(info))
    return provenance.read(run)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    assert read(tmp_path, INFO) == INFO
    assert read(tmp_path, INFO | {"held_out": CORPUS | {"count": 1}}) is not None
    assert read(tmp_path, INFO | {"counted": {"count": 1, "size": 2, "mtime_ns": 1, "sha256": "e"}}) is not None


@pytest.mark.parametrize(
    "damage",
    [
        {"count": 3},
        {"count": 0, "tokens": INFO["tokens"] | {"size": 0}},
        {"dtype": "uint32"},
        {"dtype": "float64"},
        {"held_out": CORPUS},
        {"counted": {"count": 1}},
        {"corpus": CORPUS | {"sources": []}},
        {"token_files": {"paths": ["a"], "sources": [FILE]}, "count": 0},
        {"tokenizer": {"kind": "byte", "vocab_limit": 9}},
    ],
)
def test_a_record_that_contradicts_itself_or_lacks_something_is_none(tmp_path, damage):
    assert read(tmp_path, INFO | damage) is None


@pytest.mark.parametrize("text", [TEXT, FOLDER, {"token_files": {"paths": ["../.."], "sources": [FILE, OTHER]}}])
def test_a_run_that_takes_tokens_over_locates_the_same_files(tmp_path, text):
    source, run = Run("r", tmp_path / "project" / "checkpoints"), Run("s", tmp_path / "other" / "runs")
    rest = {key: value for key, value in INFO.items() if key != "text"}
    record = rest | text | {"held_out": CORPUS | {"count": 1}}
    moved = provenance.moved(record, source, run)
    assert moved | rest == moved
    assert moved["held_out"]["count"] == 1
    for there, here in ((record, moved), ({"corpus": record["held_out"]}, {"corpus": moved["held_out"]})):
        assert located(run, here) == located(source, there)
        assert tmp_path / "project" / "a.txt" in located(run, here)


def located(run, info):
    """The paths of all files of a text, and what --data-path named."""
    files = [provenance.locate(run, file["path"]) for file in files_of(info)]
    return [*files, *provenance.paths_of(run, info)]
