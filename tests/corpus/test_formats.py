"""Compressed files, other encodings, JSON Lines and tables are read as the documents in them."""

import bz2
import gzip
import json
import lzma
import random
import re
import sys
from functools import partial
from itertools import chain

import pytest

import gpt.corpus.kinds
import gpt.corpus.sources
from gpt.config import DataConfig
from gpt.corpus import documents
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT

MARK = "<|endoftext|>"
DOCUMENTS = [
    "one document",
    "zwei\nZeilen",
    'with "quotes", commas\tand tabs',
    "日本語 \u2028 😀",
    "<|endoftext|> within",
]


def zstd_module():
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def zstd_compressed(data):
    """Two frames, one after the other, as `cat a.zst b.zst` makes them."""
    zstd = zstd_module()
    return zstd.compress(data[: len(data) // 2]) + zstd.compress(data[len(data) // 2 :])


COMPRESSORS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd_compressed}


def text_of(path, **how):
    sources = find([str(path)], **how).sources
    seen, ends = [], []
    text = "".join(sources.blocks(watch=seen.append, watch_end=lambda: ends.append(None)))
    assert b"".join(seen) == path.read_bytes(), "the digest takes every byte of the file"
    assert len(ends) == 1
    return text


def refused(path, **how):
    with pytest.raises(UserError) as error:
        text_of(path, **how)
    return str(error.value)


# Compression


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_text_is_recognized_by_its_content_and_has_the_ids_of_the_text(project, tmp_path, name):
    plain = project.prepare()
    project.text.write_bytes(COMPRESSORS[name](TEXT.encode()))  # still called data.txt
    packed = project.prepare(reset=True)
    assert packed.tokens[:].tolist() == plain.tokens[:].tolist()
    assert project.info()["text"]["size"] == project.text.stat().st_size
    project.prepare()
    assert project.notes == []


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compression_is_named(tmp_path, name, damage):
    data = bytearray(COMPRESSORS[name](json.dumps(list(range(30_000))).encode()))
    if damage == "cut":
        del data[-9:]
    else:
        data[len(data) // 2] ^= 0xFF
    (tmp_path / "text").write_bytes(data)
    assert f"{tmp_path / 'text'} is damaged or cut short ({name}: " in refused(tmp_path / "text")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_streams_one_after_the_other_are_one_text_and_a_later_one_that_is_damaged_is_named(tmp_path, name):
    """As parallel compressors write them. A damaged beginning of the second must not pass for the end of the file."""
    path, first = tmp_path / "text", COMPRESSORS[name](TEXT.encode())
    path.write_bytes(first + COMPRESSORS[name](b"and more"))
    assert text_of(path) == TEXT + "and more"
    path.write_bytes(first + b"?" + COMPRESSORS[name](b"and more")[1:])
    assert f"{path} is damaged or cut short ({name}: " in refused(path)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_zeros_may_fill_up_a_compressed_file(tmp_path, name):
    packed = COMPRESSORS[name](TEXT.encode())
    (tmp_path / "text").write_bytes(packed + bytes(512) + packed + bytes(512))
    assert text_of(tmp_path / "text") == TEXT * 2


def test_zstd_may_begin_with_a_frame_that_is_to_be_skipped(tmp_path):
    """As pzstd writes it."""
    (tmp_path / "text").write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + COMPRESSORS["zstd"](TEXT.encode()))
    assert text_of(tmp_path / "text") == TEXT


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressed_file_may_begin_with_nothing_or_hold_nothing(tmp_path, name):
    """As a program writes it that adds to a file, and has had nothing to write at first."""
    path = tmp_path / "text"
    path.write_bytes(COMPRESSORS[name](b"") + COMPRESSORS[name](TEXT.encode()))
    assert text_of(path) == TEXT
    path.write_bytes(COMPRESSORS[name](b""))
    assert refused(path) == f"{path} is empty: give a text file with something in it"


def test_zstd_may_look_back_as_far_as_it_can(tmp_path):
    """`zstd --long=31`, as archives of the web are compressed."""
    zstd = zstd_module()
    farthest = zstd.CompressionParameter.window_log.bounds()[1]
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: farthest})
    (tmp_path / "text").write_bytes(packer.compress(TEXT.encode()) + packer.flush())
    assert text_of(tmp_path / "text") == TEXT


def test_zstd_without_its_package_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x24\x06\x31\x00\x00")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    assert 'pip install "hipgpt[zstd]"' in refused(path)


def test_an_archive_within_compression_is_refused(tmp_path):
    (tmp_path / "texts.tar.gz").write_bytes(gzip.compress(b"a" * 257 + b"ustar"))
    assert "is a tar archive: unpack it" in refused(tmp_path / "texts.tar.gz")


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_decoded_without_it(tmp_path, encoding):
    (tmp_path / "text.txt").write_bytes(TEXT.encode(encoding))
    assert text_of(tmp_path / "text.txt") == TEXT


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "shift_jis", "utf-16-be", "utf-7"])
def test_the_encoding_that_the_user_names_is_decoded(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(gpt.corpus.sources, "_BUFFER", 7)  # characters are cut in two
    text = (
        "the cat あ漢字 日 "
        if encoding in ("gb18030", "shift_jis")
        else "the cät “sat” "
        if "12" in encoding
        else "bär "
    )
    (tmp_path / "text.txt").write_bytes((text * 30).encode(encoding))
    assert text_of(tmp_path / "text.txt", encoding=encoding) == text * 30


@pytest.mark.parametrize(
    ("encoding", "data", "byte", "line"),
    [
        ("utf-8", b"ab\ncd\n\xe2\x80 x", 6, 3),
        ("utf-8", b"ab\ncd \xe2\x80", 6, 2),
        ("utf-16", "ab\ncd".encode("utf-16") + b"\x00\xd8x\x00", 12, 2),
        ("shift_jis", b"a\n\x82\xa0\x82", 4, 2),
        ("ascii", b"a\nb\nc\xe9", 5, 3),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_a_byte_that_cannot_be_decoded_is_named_with_its_offset_and_line(
    tmp_path, monkeypatch, encoding, data, byte, line, at_once
):
    monkeypatch.setattr(gpt.corpus.sources, "_BUFFER", at_once)
    (tmp_path / "text.txt").write_bytes(data)
    told = refused(tmp_path / "text.txt", encoding=encoding)
    assert f"text.txt is not {encoding.upper()}: byte {byte} ({data[byte]:#04x}) in line {line} is not part of" in told
    assert "--encoding" in told


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl", "text.csv"])
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_utf16_without_the_mark_that_its_encoding_asks_for_is_refused_at_any_size(tmp_path, name, size):
    (tmp_path / name).write_bytes(("text\nthe cat " + "sat " * (size // 8)).encode("utf-16-le"))
    message = refused(tmp_path / name, encoding="utf-16", field="text")
    assert f"{name} is not UTF-16 (UTF-16 stream does not start with BOM): convert the file to UTF-8, or" in message


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "undefined", "hex", "punycode", "idna", ""])
def test_an_encoding_that_is_none_is_refused(encoding):
    said = f"--encoding is {encoding or 'empty'}, but must be that of a text, such as latin-1"
    with pytest.raises(UserError, match=said):
        DataConfig(encoding=encoding)


def test_the_encoding_is_remembered_and_another_one_is_refused(project):
    project.text.write_bytes(TEXT.encode("latin-1"))
    corpus = project.prepare(encoding="latin-1")
    assert corpus.tokens[:].tolist() == Tokenizer.load(project.run.tokenizer_path).encode(TEXT)
    assert project.info()["corpus"]["documents"] is False
    project.run.tokens_path.unlink()
    again = project.prepare()
    assert again.tokens[:].tolist() == corpus.tokens[:].tolist()
    error = project.refused(encoding="cp1252")
    assert "--encoding is cp1252, but the tokens of run r were made with iso8859-1: leave it out, or " in error


# JSON Lines and tables


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


@pytest.mark.parametrize(("outer", "inner"), [("gzip", "gzip"), ("xz", "bzip2")])
def test_a_file_that_is_compressed_twice_is_refused(tmp_path, outer, inner):
    path = tmp_path / "text.txt"
    path.write_bytes(COMPRESSORS[outer](COMPRESSORS[inner](b"a b")))
    assert f"text.txt is compressed twice, with {inner}, then {outer}: unpack it" in refused(path)


def test_tokens_are_not_taken_for_utf_16(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(b"a\0\0b" * 99)
    assert refused(path) == f"{path} looks like tokens that another program has made: name them with --tokens"


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
        (b'{"text": null}', "line 3: the field 'text' is null, but must be text"),
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
        ({"text": ["a", None]}, "row 2: the column 'text' has no text"),
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
    monkeypatch.setattr(gpt.corpus.sources, "_BUFFER", 16)
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
