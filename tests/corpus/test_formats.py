"""Each JSON line, object of a JSON list and row of a table is a document, and one that is none is named."""

import gzip
import json
import random
import re
import sys
from functools import partial
from itertools import chain

import pytest

import gpt.corpus.text_file
from gpt.corpus import documents
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.corpus.reading import COMPRESSORS, MARK, refused, text_of
from tests.support.project import TEXT

DOCUMENTS = [
    "one document",
    "zwei\nZeilen",
    'with "quotes", commas\tand tabs',
    "日本語 \u2028 😀",
    "<|endoftext|> within",
]


def json_lines(documents=DOCUMENTS, field="text", **how):
    return "".join(json.dumps({"id": 1, field: text}, **how) + "\n" for text in documents).encode()


def parquet_of(path, columns, **how):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path, **how)


def csv_of(documents, delimiter=","):
    rows = [("id", "body"), *((str(number), text) for number, text in enumerate(documents))]
    quoted = (delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return "\r\n".join(quoted).encode()


def marked(documents=DOCUMENTS):
    return "".join(text + MARK for text in documents)


@pytest.mark.parametrize("ascii", [True, False])
def test_each_json_line_is_a_document(tmp_path, ascii):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json_lines(ensure_ascii=ascii) + b"\n  \n")
    assert text_of(path) == marked()
    path.write_bytes(json_lines(field="body", ensure_ascii=ascii).rstrip())
    assert text_of(path, field="body") == marked()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_json_lines_may_be_compressed(tmp_path, name):
    path = tmp_path / "texts.jsonl.zst"
    path.write_bytes(COMPRESSORS[name](json_lines()))
    assert text_of(path) == marked()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('\n{"body": "a", "n": 1}\n{"body": "b"}\n', f"a{MARK}b{MARK}"),
        ('{\n "body": "a"\n}\n', None),  # one object on many lines
        ('[{"body": "a"}, {"n": 1, "body": "b"}]', f"a{MARK}b{MARK}"),
        ('\n[\n {\n "body": "a"\n },{"body":"b"}\n]\n', f"a{MARK}b{MARK}"),
        ('["a", {"body": "b"}]\n', None),
        ("[]\n", None),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.JSON.gz"])
def test_a_json_file_has_records_if_the_user_names_a_field_and_it_begins_with_an_object_or_is_a_list_of_them(
    tmp_path, content, text, name
):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert text_of(tmp_path / name) == content
    assert text_of(tmp_path / name, field="body") == (content if text is None else text)


def test_a_json_list_is_read_wherever_its_parts_end(tmp_path, monkeypatch):
    """Also within the pairs of surrogates, numbers, words and spaces that JSON has."""
    records = [
        {"body": f"ä\U0001f600 \\ {n}", "n": [-1.5e-30, None, True, {"a": "]}"}], "more": "x" * n} for n in range(9)
    ]
    content = "\ufeff \n" + json.dumps(records[:4]).replace(", ", " ,\n ")[:-1] + ",\n"
    (tmp_path / "a.json").write_text(content + json.dumps(records[4:], indent=2)[1:] + "\n", encoding="utf-8")
    expected = "".join(f"{record['body']}{MARK}" for record in records)
    for size in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr(documents, "_PART", size)
        assert text_of(tmp_path / "a.json", field="body") == expected


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"body": "a"}, {"body": "b" "c"}, {"body": "d"}' + " " * 20, "object 2, is not JSON (Expecting ',' del"),
        ('[{"body": "a"}, {"body": "b', "object 2, is not JSON (Unterminated string starting at): repair it"),
        ('[{"body": "a"}', "the list does not go on behind object 1: repair it"),
        ('[{"body": "a"}, ', "the list does not go on behind object 1: repair it"),
        ('[{"body": "a"}] [{"body": "b"}]', "the list does not go on behind object 1: repair it"),
        ('[{"body": "a"}, "b"]', "the list does not go on behind object 1: repair it"),
        ('[{"body": "a"}, {"text": "b"}]', "object 2, has no field 'body', only 'text': name the field"),
        ('[{"body": "a"}, {"body": 5}]', "object 2: the field 'body' is 5, but must be text"),
        ('[{"body": "a"}, {"body": ' + "[" * 100_000, "object 2, is not JSON ("),
    ],
)
def test_an_object_of_a_json_list_that_is_no_document_is_named(tmp_path, monkeypatch, content, message, size):
    monkeypatch.setattr(documents, "_PART", size)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as error:
        text_of(tmp_path / "a.json", field="body")
    assert f"a.json, {message}" in str(error.value)


def test_a_mistake_in_a_long_json_list_is_found_where_it_is(tmp_path):
    """And not only when all that follows has been read, which might not fit the memory."""
    (tmp_path / "a.json").write_text('[{"body": "a"}, {"body": b}' + ', {"body": "c"}' * 1_000_000 + "]")
    read = []
    with pytest.raises(UserError, match="object 2, is not JSON"):
        for _ in find([str(tmp_path / "a.json")], field="body").sources.blocks(
            watch=lambda data: read.append(len(data))
        ):
            pass
    assert sum(read) < 3 << 20


def test_documents_that_are_all_empty_are_refused(project):
    project.text.with_suffix(".jsonl").write_text('{"text": ""}\n' * 3)
    said = project.refused(data_path="data/data.jsonl", kind="byte", vocab_limit=300)
    assert said == "all documents of data/data.jsonl are empty: give others"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"id": 1, "body": "a"}',
            "line 3, has no field 'text', only 'id', 'body': name the field of the text with --",
        ),
        (b'{"text": false}', "line 3: the field 'text' is false, but must be text"),
        (b'{"text": 5}', "line 3: the field 'text' is 5, but must be text"),
        (b'["text"]', "line 3, is not a JSON object, but must be one: repair it"),
        (b'{"text": "a"', "line 3, is not JSON ("),
        (b'{"text": "a \\ud800 b"}', "line 3: the field 'text' has half of a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8: byte 63 (0xff) in line 3"),
        (b'{"a":' * 100_000, "line 3, is not JSON ("),
    ],
)
@pytest.mark.parametrize("ranges", [1, 3])
def test_a_line_that_is_no_document_is_named(tmp_path, line, message, ranges):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(json_lines(["a", "b"]) + line + b"\n" + json_lines(["c"]))
    sources = find([str(path)]).sources
    pieces = sources.pieces(20 if ranges > 1 else 1 << 20, ranges)
    with pytest.raises(UserError) as error:
        list(chain.from_iterable(sources.blocks(*piece) for piece in pieces))
    assert f"{path}" in str(error.value)
    assert message.replace("byte 63", f"byte {path.read_bytes().index(line) + 10}") in str(error.value)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_each_row_of_a_table_is_a_document_if_the_user_names_the_column(tmp_path, suffix, delimiter):
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(csv_of(DOCUMENTS, delimiter))
    assert text_of(path, field="body") == marked()
    assert text_of(path) == csv_of(DOCUMENTS, delimiter).decode()
    assert "has no column 'text', only 'id', 'body': name the column of the text with --text-field" in refused(
        path, field="text"
    )
    path.write_bytes(b"\n\nid,body,\n1,a\n\n".replace(b",", delimiter.encode()))
    assert text_of(path, field="body") == f"a{MARK}"
    path.write_bytes(b"id,body\n1,a\n2\n".replace(b",", delimiter.encode()))
    assert "line 3: the row has 1 of 2 cells: repair it" in refused(path, field="body")
    path.write_bytes(b'id,body\n1,"a\n'.replace(b",", delimiter.encode()))
    assert "line 2, is not a row of a table (unexpected end of data)" in refused(path, field="body")
    path.write_bytes(b"body,id,body\na,1,b\n".replace(b",", delimiter.encode()))
    assert "has 2 columns 'body': rename all but the one with the text" in refused(path, field="body")


@pytest.mark.parametrize(("suffix", "separators"), [(".csv", "commas"), (".tsv", "tabs")])
def test_a_table_whose_cells_are_not_what_its_first_row_says_is_refused(tmp_path, suffix, separators):
    """Of a text with commas that are not quoted, all behind the first one would be lost."""
    path = tmp_path / f"texts{suffix}"
    path.write_text("id,body\n1,a b\n2,a, b\n".replace(",", {"commas": ",", "tabs": "\t"}[separators]))
    wanted = f"{path}, line 3: the row has 3 cells, but the first row 2: quote a cell that has {separators} in it"
    assert refused(path, field="body") == wanted
    path.write_text("id;body\n1;a b\n")
    wanted = f"{path} has the columns 'id;body' in one cell: separate cells with {separators}"
    assert refused(path, field="body") == wanted


def test_a_table_without_a_named_column_is_learned_as_it_stands_with_a_note(project):
    project.text.with_name("table.csv").write_bytes(csv_of(["the cat sat", "a dog"] * 40))
    corpus = project.prepare(data_path="data/table.csv", kind="byte", vocab_limit=300)
    assert corpus.tokenizer.decode(corpus.tokens[:].tolist()).startswith('"id","body"')
    assert project.notes[-1] == (
        "Note: learned as they stand, with all columns: data/table.csv; --text-field NAME would take one column"
    )


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    (tmp_path / "texts.csv").write_text("body\n" + "word " * 100_000)
    assert len(text_of(tmp_path / "texts.csv", field="body")) == 500_000 + len(MARK)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_each_row_of_a_parquet_file_is_a_document(tmp_path, rows):
    path = tmp_path / "texts"
    parquet_of(path, {"id": list(range(5)), "text": DOCUMENTS}, row_group_size=rows)
    assert text_of(path) == marked()
    sources = find([str(path)]).sources
    pieces = sources.pieces(1, 1)
    assert len(pieces) == -(-5 // rows)
    assert "".join("".join(sources.blocks(*piece)) for piece in pieces) == marked()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_texts_in_a_parquet_file_may_have_any_of_arrows_kinds_of_strings(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    if kind == "string_view" and not hasattr(arrow, kind):
        pytest.skip("pyarrow < 16 has no string_view")
    column = arrow.array(DOCUMENTS)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(arrow, kind)())
    parquet_of(tmp_path / "texts", {"text": column})
    assert text_of(tmp_path / "texts") == marked()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, "has no column 'text', only 'body': name the column of the text with --text-field"),
        ({"text": [1]}, "the column 'text' holds int64, not text"),
    ],
)
def test_a_parquet_file_without_texts_is_refused(tmp_path, columns, message):
    parquet_of(tmp_path / "texts", columns)
    assert message in refused(tmp_path / "texts")


def test_a_damaged_parquet_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "texts").write_bytes(b"PAR1 and nothing more")
    assert "texts is damaged or cut short (parquet: " in refused(tmp_path / "texts")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'which needs pyarrow: pip install "hipgpt[parquet]"' in refused(tmp_path / "texts")


@pytest.mark.parametrize("place", ["footer", "pages"])
def test_a_parquet_file_with_wrong_bytes_is_read_or_refused_in_one_line(tmp_path, place):
    path, chance = tmp_path / "texts.parquet", random.Random(7)
    parquet_of(path, {"text": [f"text number {number}, and more of it" for number in range(200)]}, row_group_size=50)
    whole, complaints = path.read_bytes(), set()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(60):
        data = bytearray(whole)
        if place == "footer":  # from its beginning on, because pyarrow ends the process for some wrong columns
            data[footer : footer + 30] = chance.randbytes(30)
        else:
            for _ in range(chance.choice([1, 3, 30])):
                data[chance.randrange(4, footer)] = chance.randrange(256)
        path.write_bytes(data)
        try:
            text_of(path)
        except UserError as error:
            complaints.add(
                re.search(r"is damaged or cut short \(parquet: |, row \d+, is not UTF-8", str(error))[0][:20]
            )
    assert "is damaged or cut sh" in complaints


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_row_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path, rows):
    parquet_of(tmp_path / "texts", {"text": DOCUMENTS}, row_group_size=rows, compression="none", use_dictionary=False)
    data = (tmp_path / "texts").read_bytes()
    (tmp_path / "texts").write_bytes(data.replace("日".encode(), b"\xff\xff\xff"))
    assert f"{tmp_path / 'texts'}, row 4, is not UTF-8 (" in refused(tmp_path / "texts")


def test_ranges_of_any_sources_join_to_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.corpus.text_file, "_BUFFER", 16)
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 9)
    (tmp_path / "b.jsonl").write_bytes(json_lines(field="body"))
    (tmp_path / "c.csv").write_bytes(csv_of(DOCUMENTS))
    (tmp_path / "d.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "e.txt").write_text("and a dog")
    sources = find([str(tmp_path)], field="body").sources
    whole = "".join(sources.blocks())
    data = b"".join(source.path.read_bytes() for source in sources.files)
    for size in (1, 10, 77, 300, 5000):
        pieces, seen, ends = sources.pieces(size, 3), [], []
        parts = ["".join(sources.blocks(*piece, seen.append, partial(ends.append, None))) for piece in pieces]
        assert "".join(parts) == whole
        assert b"".join(seen) == data
        assert len(ends) == 5
        fed = []
        for piece in pieces:
            sources.feed(*piece, fed.append, lambda: None)
        assert b"".join(fed) == data


def test_another_text_is_not_read_in_the_way_of_the_one_before(project):
    project.text.with_name("wide.txt").write_text(TEXT, encoding="utf-16-le")
    project.text.with_name("table.csv").write_bytes(csv_of(DOCUMENTS))
    project.prepare(data_path="data/wide.txt", encoding="utf-16-le")
    assert project.prepare(data_path="data/wide.txt", reset=True).info["corpus"]["encoding"] == "utf-16-le"
    assert project.prepare(data_path="data/data.txt", reset=True).info["characters"] == len(project.text.read_text())
    project.prepare(data_path="data/table.csv", text_field="body", reset=True)
    assert "corpus" not in project.prepare(data_path="data/data.txt", reset=True).info


def test_a_run_learns_from_records_in_a_folder_and_remembers_their_field(project):
    folder = project.text.with_name("records")
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(json_lines(["the cat sat", "a dog sat"] * 40, field="body"))
    (folder / "b.csv").write_bytes(csv_of(["the mat", "a log"] * 40))
    corpus = project.prepare(data_path="data/records", text_field="body")
    text = marked(["the cat sat", "a dog sat"] * 40 + ["the mat", "a log"] * 40)
    assert corpus.tokens[:].tolist() == Tokenizer.load(project.run.tokenizer_path).encode(text)
    project.prepare()
    assert project.notes == []
    corpus = project.prepare(reset=True)
    assert corpus.info["corpus"]["text_field"] == "body"
    assert "--text-field is text, but the tokens of run r were made with body" in project.refused(text_field="text")


NESTED = [
    ({"data": {"text": "a", "n": 1}, "id": 1}, "data.text"),
    ({"data": {"meta": {"text": "a"}}, "text": "b"}, "data.meta.text"),
    ({"data.text": "a", "data": {"text": "b"}}, "data.text"),
    ({"data": {"meta.text": "a", "meta": {"text": "b"}}}, "data.meta.text"),
]  # a record, and what names the text "a" in it


@pytest.mark.parametrize(("record", "field"), NESTED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_name_with_dots_leads_into_nested_objects_if_no_field_has_it(tmp_path, name, record, field):
    path = tmp_path / name
    if name == "a.parquet":
        parquet_of(path, {key: [value] * 3 for key, value in record.items()})
    else:
        path.write_text(json.dumps([record] * 3) if name == "a.json" else (json.dumps(record) + "\n") * 3)
    assert text_of(path, field=field) == marked("aaa")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_null_on_the_way_to_a_nested_text_is_one_in_its_place(tmp_path, name):
    rows = [{"text": "a"}, None, {"text": None}, {"text": "b"}]
    if name == "a.parquet":
        parquet_of(tmp_path / name, {"data": rows})
    else:
        (tmp_path / name).write_text("".join(json.dumps({"data": row}) + "\n" for row in rows))
    assert text_of(tmp_path / name, field="data.text") == marked("ab")


@pytest.mark.parametrize("field", ["data.body", "data.text.more", "data.", ".text", "texts.text", "other.text"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_nested_field_that_is_not_there_is_named(tmp_path, name, field):
    record = {"data": {"text": "a"}, "texts": [{"text": "a"}]}
    if name == "a.parquet":
        parquet_of(tmp_path / name, {key: [value] for key, value in record.items()})
    else:
        (tmp_path / name).write_text(json.dumps(record))
    what = "column" if name == "a.parquet" else "field"
    assert f"has no {what} '{field}', only 'data', 'texts': name the {what}" in refused(tmp_path / name, field=field)


def test_a_nested_column_that_is_no_text_is_refused(tmp_path):
    parquet_of(tmp_path / "a.parquet", {"data": [{"text": 1}]})
    assert "the column 'data.text' holds int64, not text" in refused(tmp_path / "a.parquet", field="data.text")
