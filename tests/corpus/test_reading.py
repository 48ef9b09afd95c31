"""gpt/corpus/: files are read unchanged, in blocks that end at a seam of every tokenizer."""

import os
import random
import re
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

import gpt.corpus.text_file
import gpt.tokenizer.text
from gpt.corpus import read_blocks
from gpt.corpus.kinds import looks_like_json
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT, Tokenizer

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_WHITE_SPACE = "\x1c\x1d\x1e\x1f\u180e\u200b\ufeff"
SCRIPTS = ["a", "é", "日本", "👩‍👧", "\r\n", "\n", " ", "<|", "endoftext", "|>"]
FRAGMENTS = [*SCRIPTS, END_OF_TEXT, *WHITE_SPACE, *NOT_WHITE_SPACE]


def written(path, text):
    path.write_bytes(text.encode())
    return path


@given(fragments=st.lists(st.sampled_from(FRAGMENTS), min_size=1), block_chars=st.integers(1, 40))
def test_blocks_joined_are_the_text_and_end_only_at_seams(tmp_path_factory, fragments, block_chars):
    text = "".join(fragments)
    path = written(tmp_path_factory.getbasetemp() / "text.txt", text)
    blocks = list(read_blocks(path, block_chars))
    assert "".join(blocks) == text
    for block, following in zip(blocks, blocks[1:], strict=False):
        assert is_seam(block, following)


@pytest.mark.parametrize("text", ["\ufeffa b", "a\r\nb\rc\nd", "a\x1cb\x1dc\x00d", "日本語 の 文", " ", "\n\n"])
@pytest.mark.parametrize("block_chars", [1, 2, 3, 1 << 20])
def test_byte_order_marks_newlines_and_control_characters_stay_as_they_are(tmp_path, text, block_chars):
    assert "".join(read_blocks(written(tmp_path / "text.txt", text), block_chars)) == text


def test_blocks_stay_small_if_the_text_has_seams(tmp_path):
    path = written(tmp_path / "text.txt", "word another\n" * 10_000)
    assert max(map(len, read_blocks(path, 100))) <= 100 + len(" another")
    path = written(tmp_path / "marks.txt", ("無" * 30 + END_OF_TEXT) * 1000)
    assert max(map(len, read_blocks(path, 100))) <= 100 + 30 + 2 * len(END_OF_TEXT)


def test_a_text_without_a_seam_is_one_block(tmp_path):
    text = "無" * 10_000
    assert list(read_blocks(written(tmp_path / "text.txt", text), 100)) == [text]


@pytest.mark.parametrize("block_chars", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\xffabc", 0),
        (b"abc d\xe9f", 5),
        ("日本 日".encode() + b"\x80", 10),
        (b"ab \xe6\x97", 3),
        (b"a \xed\xa0\x80", 2),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path, data, offset, block_chars):
    (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"text.txt is not UTF-8: byte {offset} \({data[offset]:#04x}\)"):
        list(read_blocks(tmp_path / "text.txt", block_chars))


@pytest.mark.parametrize(
    ("name", "complaint"), [("none", "does not exist"), ("folder", "holds no text"), ("empty", "is empty")]
)
def test_an_unreadable_path_is_refused_in_one_line_that_names_it(tmp_path, name, complaint):
    written(tmp_path / "empty", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / name))}\b.*{complaint}[^\n]*$"):
        list(read_blocks(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    written(tmp_path / "text.txt", "a").chmod(0)
    with pytest.raises(UserError, match="cannot read .*: Permission denied"):
        list(read_blocks(tmp_path / "text.txt"))


# Files that are not text


FORMATS = {
    "zip": b"PK\x03\x04\x14\x00",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "tar": b"a" * 257 + b"ustar",
    "PDF": b"%PDF-1.7",
    "rar": b"Rar!\x1a\x07\x01",
    "docx": b"PK\x03\x04\x14\x00",
    "Arrow": b"ARROW1\0\0",
    "Arrow file": b"\xff\xff\xff\xff\xd0\x01\0\0\x10",  # a stream
    "Microsoft Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16),
    "SQLite": b"SQLite format 3\0\x10\0\1\1" + bytes(99),
    "UTF-16-BE without its mark": "a täxt".encode("utf-16-be"),
    "UTF-16-LE without its mark": ("a text" * 999).encode("utf-16-le"),
    "UTF-32-LE without its mark": "a text".encode("utf-32-le"),
    "not text, as many of its bytes are 0": b"\x89HDF\r\n\x1a\n" + bytes(40),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_text_is_named_by_its_first_bytes(tmp_path, name):
    (tmp_path / "text").write_bytes(FORMATS[name])
    with pytest.raises(UserError, match=rf"text is (.*\b)?{name}\b.*: (unpack|write|give) "):
        list(read_blocks(tmp_path / "text"))


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', True),
        ('{"text": "a"}\n', True),
        ('[\n {\n  "instruction": "a"', True),
        ('{"a":' * 100_000, True),
        ("{\n}\n", False),
        ('{"a", "b"} is a set', False),
        ("[1] a\n", False),
        ("5\n6\n", False),
        ("a b\n", False),
        (" \n" * 9999, False),
    ],
)
def test_json_is_recognized(text, is_json):
    assert looks_like_json(text) == is_json


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="the system has no files whose size it does not say")
def test_a_file_is_read_to_its_end_whatever_the_system_says_of_its_size():
    assert os.path.getsize("/proc/version") == 0
    assert "".join(read_blocks("/proc/version")) == Path("/proc/version").read_text()


def test_a_pipe_and_a_device_are_refused_unread_and_with_a_way_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
        with pytest.raises(UserError, match=rf"{path} is {what}, but a text is read more than once: write it to a"):
            list(read_blocks(path))


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
def test_ranges_between_seams_join_to_the_text_and_have_its_ids(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(gpt.tokenizer.text, "_SEARCHED", at_once)
    monkeypatch.setattr(gpt.corpus.text_file, "_BUFFER", 8)
    chance, tokenizer, path = random.Random(3), Tokenizer(kind="byte"), tmp_path / "text.txt"
    for _ in range(60):
        text = "".join(
            chance.choices(["a", "é", "😀", " ", "\r\n", "\u2003", "\x1c", "'s", "<|endoftext|>", "."], k=40)
        )
        path.write_bytes(text.encode())
        sources, size = find([str(path)]).sources, chance.randint(1, 40)
        pieces = sources.pieces(size, chance.randint(1, 9))
        assert [begin for begin, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
        parts = ["".join(sources.blocks(begin, end, block_chars=8)) for begin, end in pieces]
        assert "".join(parts) == text
        assert [id for part in parts if part for id in tokenizer.encode(part)] == tokenizer.encode(text)
        inner = [end.byte for _, end in pieces if end.source == 0]
        assert all(is_seam(text.encode()[:place].decode(), text.encode()[place:].decode()) for place in inner)
        assert all(end.byte - begin.byte >= size for begin, end in pieces if end.source == 0)


def is_seam(before: str, behind: str) -> bool:
    """Whether a text may be cut here, by the classes of characters of the newest Unicode."""
    if regex.search(r"\S$", before) and regex.match(r"[^\S\r\n]", behind):
        return True
    if regex.search(r"\S[\r\n]$", before) and regex.match(r"\S", behind):
        return True
    return bool(regex.search(r"[\p{L}\p{N}]$", before) and regex.match(r"[\r\n]|<\|endoftext\|>", behind))
