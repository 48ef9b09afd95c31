"""Documents that have no text are left out, counted, and the first of them is named, in each format."""

import csv
import gzip
import json

import pytest

from gpt.corpus.sources import find
from gpt.corpus.without_text import WithoutText
from tests.corpus.reading import MARK

DOCUMENTS = ["the cat", None, "sat", "", "on\na mat", None]  # records 2, 4 and 6 have no text
TEXT = f"the cat{MARK}sat{MARK}on\na mat{MARK}"


def as_json_lines(path, documents):
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))


def as_json(path, documents):
    path.write_text(json.dumps([{"text": text} for text in documents], indent=1))


def as_gzip(path, documents):
    path.write_bytes(gzip.compress("\n".join(json.dumps({"text": text}) for text in documents).encode()))


def as_csv(path, documents):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("text", "id"), *((text, 1) for text in documents)])


def as_parquet(path, documents):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": documents}), path, row_group_size=3)


FORMATS = [
    ("a.jsonl", as_json_lines, "line 2", "line 6"), ("a.jsonl.gz", as_gzip, "line 2", "line 6"),
    ("a.json", as_json, "object 2", "object 6"), ("a.csv", as_csv, "line 3", "line 8"),
    ("a.parquet", as_parquet, "row 2", "row 6"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "first", "last"), FORMATS)
def test_documents_that_are_null_or_empty_are_left_out_and_the_first_one_is_named(tmp_path, name, write, first, last):
    path = tmp_path / name
    for documents, place, count in ((DOCUMENTS, first, 3), (["the cat", "a", "sat", "b", "on\na mat", None], last, 1)):
        write(path, documents)
        sources, found = find([str(path)], field="text").sources, WithoutText()
        assert "".join(sources.blocks(left_out=found.add)).count(MARK) == 6 - count
        what = "3 documents have no text and are left out, the first" if count == 3 else (
            "one document has no text and is left out"
        )  # fmt: skip
        assert found.words(sources) == f"{what} in {path}, {place}"
    write(path, DOCUMENTS)
    assert "".join(find([str(path)], field="text").sources.blocks()) == TEXT


@pytest.mark.parametrize(("name", "write", "first", "last"), FORMATS)
def test_the_first_document_without_text_is_named_wherever_pieces_end(tmp_path, name, write, first, last):
    path = tmp_path / name
    write(path, ["the cat"] * 3 + DOCUMENTS[2:])
    sources = find([str(path)], field="text").sources
    whole = WithoutText()
    list(sources.blocks(left_out=whole.add))
    for size in (1, 20, 50):
        joined = WithoutText()
        for piece in sources.pieces(size, 2):
            part = WithoutText()
            list(sources.blocks(*piece, left_out=part.add))
            joined.take(json.loads(json.dumps(part.files)))  # as ranks and the journal hand it on
        assert joined.words(sources) == whole.words(sources)
        assert "2 documents have no text" in joined.words(sources)


@pytest.mark.parametrize("nulls", [["prompt"], ["completion"], ["prompt", "completion"]])
@pytest.mark.parametrize("at_first", [False, True])
def test_conversations_with_a_field_that_is_null_are_left_out(tmp_path, nulls, at_first):
    pair = {"prompt": "2 + 2?", "completion": "four"}
    records = [pair, {**pair, **dict.fromkeys(nulls)}, {"prompt": None, "completion": None, "messages": None}]
    records = records[::-1] if at_first else records
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    sources, found = find([str(path)]).sources, WithoutText()
    assert sources.with_conversations == [path]
    assert "".join(sources.blocks(left_out=found.add)) == f"<|user|>2 + 2?<|assistant|>four{MARK}"
    place = f"{path}, line {1 if at_first else 2}"
    assert found.words(sources) == f"2 documents have no text and are left out, the first in {place}"


def test_rows_of_a_table_of_conversations_that_are_null_are_left_out(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "four"}]
    parquet.write_table(arrow.table({"messages": [talk, None, talk]}), tmp_path / "a.parquet")
    sources, found = find([str(tmp_path / "a.parquet")]).sources, WithoutText()
    assert "".join(sources.blocks(left_out=found.add)) == f"<|user|>2 + 2?<|assistant|>four{MARK}" * 2
    assert found.words(sources).endswith("a.parquet, row 2")


def test_a_run_says_what_it_has_left_out_of_its_files_and_of_the_held_out_text(project):
    folder, held = project.text.with_name("web"), project.text.with_name("held")
    folder.mkdir()
    held.mkdir()
    as_json_lines(folder / "a.jsonl", ["the cat"] * 30)
    as_json_lines(folder / "b.jsonl", DOCUMENTS)
    as_json_lines(folder / "c.jsonl", [None, "a", ""])
    as_json_lines(held / "d.jsonl", ["the cat sat", ""])
    project.prepare(data_path="data/web", val_path="data/held", kind="byte", vocab_limit=300)
    assert project.notes == [
        "Note: 5 documents of 2 files have no text and are left out, the first in data/web/b.jsonl, line 2",
        "Note: one document has no text and is left out in data/held/d.jsonl, line 2",
    ]
