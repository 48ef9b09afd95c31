"""Files that are compressed, or in other encodings than UTF-8, are read as the text in them."""

import gzip
import json
import sys

import pytest

import gpt.corpus.text_file
from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.corpus.reading import COMPRESSORS, refused, text_of, zstd_module
from tests.support.project import TEXT

# ---- compression -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("outer", "inner"), [("gzip", "gzip"), ("xz", "bzip2")])
def test_a_file_that_is_compressed_twice_is_refused(tmp_path, outer, inner):
    path = tmp_path / "text.txt"
    path.write_bytes(COMPRESSORS[outer](COMPRESSORS[inner](b"a b")))
    assert f"text.txt is compressed twice, with {inner}, then {outer}: unpack it" in refused(path)


# ---- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_decoded_without_it(tmp_path, encoding):
    (tmp_path / "text.txt").write_bytes(TEXT.encode(encoding))
    assert text_of(tmp_path / "text.txt") == TEXT


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "shift_jis", "utf-16-be", "utf-7"])
def test_the_encoding_that_the_user_names_is_decoded(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(gpt.corpus.text_file, "_BUFFER", 7)  # characters are cut in two
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
    monkeypatch.setattr(gpt.corpus.text_file, "_BUFFER", at_once)
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


def test_tokens_are_not_taken_for_utf_16(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(b"a\0\0b" * 99)
    assert refused(path) == f"{path} looks like tokens that another program has made: name them with --tokens"
