"""Ranks encode a text together: the files are those of one process, whatever the text, and whatever goes wrong."""

import errno
import gzip
import os
import random
import signal
import time

import numpy as np
import pytest

import gpt.encode
from gpt.corpus import Sources
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.distributed.conftest import until
from tests.support.forked_ranks import OtherRankEndedError, on_ranks
from tests.support.grids import pairs
from tests.support.project import TEXT

pytestmark = pytest.mark.slow  # each test starts several processes

LETTERS = "abc é ß 日本語 😀 \u2003 \xa0 \r\n \x1c \u200b ' 12 ."  # of 1, 2, 3 and 4 bytes; some of them white space
TEXTS = {
    "lines": TEXT,
    "CRLF": TEXT.replace("\n", "\r\n"),
    "characters of several bytes": "".join(random.Random(1).choices(LETTERS, k=5000)),
    "runs of white space": "a" + " \u2003\r\n\u3000" * 2000 + "b",
    "one long word": "日" * 30_000,  # longer than the search for a seam reads at a time
    "one long word and then lines": "x" * 90_000 + TEXT,
    "one line of several blocks": "the cat sat on the mat . " * 100_000,
    "marks only": "<|endoftext|>" * 300,
    "a byte order mark": "\ufeff" + TEXT,
    "fewer bytes than ranks": "ab",
    "white space at both ends": " \n a b c \n ",
}


@pytest.fixture
def many_pieces(monkeypatch):
    """Even a short text has several pieces for each rank."""
    monkeypatch.setattr(gpt.encode, "_PIECE", 100)


@pytest.fixture
def tokenized(project):
    """Function that prepares the project's text on some ranks: the results of all of them.

    `first(ranks)` is called on each rank before it begins.
    """

    def prepare(size, first=lambda ranks: None, **kwargs):
        def work(ranks):
            ranks.size = size
            first(ranks)
            if ranks.is_first:
                return project.prepare(ranks=ranks, **kwargs)
            corpus = gpt.prepare.prepare(project.run, ranks=ranks, report=pytest.fail)
            return [corpus.tokens[:].tolist()[:1000], corpus.info, corpus.tokenizer.vocab_size]

        return on_ranks(size, work)

    return prepare


def status_of_first_rank(work):
    """The exit status of a fork that does `work`, which starts ranks, when these have ended, too."""
    ended, held = os.pipe()  # every process of the work holds one end, until it ends
    if (child := os.fork()) == 0:
        work()
        os._exit(1)
    os.close(held)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.read(ended, 1)
    os.close(ended)
    return status


def described(info):
    """tokens.json without the time at which tokens.bin was written."""
    return {**info, "tokens": {**info["tokens"], "mtime_ns": None}}


@pytest.mark.parametrize(("name", "kind", "size"), pairs(list(TEXTS), ["word", "byte"], [2, 3, 5]))
def test_any_number_of_ranks_writes_the_files_of_one_process(project, tokenized, many_pieces, name, kind, size):
    project.text.write_bytes((TEXT + TEXTS[name][:3000]).encode())  # long words would take long to learn
    project.prepare(kind=kind, vocab_limit=300)
    project.text.write_bytes(TEXTS[name].encode())
    project.run.tokens_info_path.unlink()
    project.prepare()
    alone, info, notes = project.snapshot(), project.info(), list(project.notes)
    project.run.tokens_path.unlink()
    project.run.tokens_info_path.unlink()
    corpus, *others = tokenized(size)
    together = project.snapshot()
    assert together["tokens.bin"] == alone["tokens.bin"]
    assert together["tokenizer.json"] == alone["tokenizer.json"]
    assert described(project.info()) == described(info)
    assert project.notes[1:] == notes[1:]  # the first one says why the text is encoded again
    assert together.keys() == alone.keys()
    assert not project.run.staged_path.exists()
    expected = [corpus.tokens[:].tolist()[:1000], project.info(), corpus.tokenizer.vocab_size]
    assert others == [expected] * (size - 1)


def test_ranks_share_the_files_of_a_folder(project, tokenized, many_pieces):
    folder = project.text.with_name("folder")
    folder.mkdir()
    for number, text in enumerate(TEXTS.values()):
        (folder / f"{number:02}.txt").write_bytes(text[:3000].encode())
    (folder / "records.jsonl").write_text('{"text": "the cat\\nsat"}\n' * 200)
    (folder / "packed.gz").write_bytes(gzip.compress(TEXT.encode()))
    project.prepare(data_path="data/folder", vocab_limit=300)
    alone, info = project.snapshot(), project.info()
    assert info["count"] > 1000
    for size in (2, 5):
        project.run.tokens_path.unlink()
        corpus, *others = tokenized(size)
        assert project.snapshot()["tokens.bin"] == alone["tokens.bin"]
        assert described(project.info()) == described(info)
        assert others == [[corpus.tokens[:].tolist()[:1000], project.info(), corpus.tokenizer.vocab_size]] * (size - 1)
        assert not project.run.staged_path.exists()


def test_a_rank_that_is_slow_leaves_pieces_to_the_others(project, tokenized, many_pieces):
    def slow(ranks):
        encode_range = gpt.encode._encode_range

        def late(*arguments):
            time.sleep(1)
            with open(project.text.with_name("taken"), "a") as taken:
                taken.write("x")
            return encode_range(*arguments)

        if ranks.rank == 2:
            gpt.encode._encode_range = late

    tokenized(3, slow)
    assert 0 < len(project.text.with_name("taken").read_text()) < len(TEXT) / 100 / 3
    assert project.run.tokens_path.stat().st_size == 2 * project.info()["count"]


def test_characters_that_the_vocabulary_lacks_are_counted_over_all_ranks(project, tokenized, many_pieces):
    project.prepare()
    lossy = TEXT + "ж " * 20 + "the cat\n" * 200 + "ж ю\n" * 5
    project.text.write_text(lossy, encoding="utf-8")
    project.run.tokens_info_path.unlink()
    project.run.tokens_path.unlink()
    project.prepare()
    alone, notes, info = project.run.tokens_path.read_bytes(), list(project.notes), project.info()
    assert info["dropped"] == 30
    assert "'ж' (25), 'ю' (5)" in notes[-1]
    project.run.tokens_path.unlink()
    tokenized(3)
    assert project.run.tokens_path.read_bytes() == alone
    assert project.info()["dropped"] == 30
    assert project.notes[-1] == notes[-1]


def test_documents_without_text_are_counted_over_all_ranks(project, tokenized, many_pieces):
    lines = ['{"text": "the cat sat"}'] * 60 + ['{"text": null}', '{"text": "a mat"}'] * 20
    project.text.with_suffix(".jsonl").write_text("\n".join(lines))
    project.prepare(data_path="data/data.jsonl", kind="byte", vocab_limit=300)
    said = "Note: 20 documents have no text and are left out, the first in data/data.jsonl, line 61"
    assert said in project.notes
    project.run.tokens_path.unlink()
    tokenized(3)
    assert said in project.notes


def test_tokens_that_still_match_are_opened_by_all_ranks_and_not_made_again(project, tokenized):
    project.prepare()
    before = project.snapshot()

    def forbid(ranks):
        gpt.encode._encode_range = lambda *_: pytest.fail("the text is encoded a second time")

    encode_range = gpt.encode._encode_range
    try:
        corpus, *others = tokenized(3, forbid)
    finally:
        gpt.encode._encode_range = encode_range
    assert [each[0] for each in others] == [corpus.tokens[:].tolist()[:1000]] * 2
    assert project.snapshot() == before


def test_no_rank_but_the_first_learns(project, tokenized):
    def forbid(ranks):
        if not ranks.is_first:
            Tokenizer.train_bpe = lambda *_: pytest.fail("another rank learns")

    corpus, *others = tokenized(3, forbid)
    assert [each[2] for each in others] == [corpus.tokenizer.vocab_size] * 2


@pytest.mark.parametrize("place", [0.05, 0.4, 0.95])
def test_a_byte_that_is_not_utf8_is_named_with_its_offset_in_the_file(project, tokenized, place, monkeypatch):
    data = bytearray(TEXT.encode())
    offset = data.index(b" ", int(place * len(data)))
    data[offset : offset + 1] = b"\xe2\x80 "  # an unfinished character, before white space
    project.prepare()
    project.run.tokens_path.unlink()
    project.run.tokens_info_path.unlink()
    before = project.snapshot()
    project.text.write_bytes(data)
    complaint = f"data/data.txt is not UTF-8: byte {offset} (0xe2)"
    # The first rank's look at the first block would find the byte before the ranks begin
    monkeypatch.setattr(Sources, "raise_if_unreadable", lambda text: None)
    results = tokenized(3)
    messages = [str(result) for result in results]
    assert sum(complaint in message for message in messages) == 1
    assert project.snapshot() == before
    assert not project.run.staged_path.exists()


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("end", ["full disk", "kill"])
def test_a_rank_that_ends_leaves_the_old_files_and_the_next_start_tokenizes(project, tokenized, end, reset, rank):
    if reset:
        project.prepare(vocab_limit=50)
    before = project.snapshot()

    def fail(ranks):
        def encode_blocks(self, blocks):
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")
            yield

        if ranks.rank == rank:
            Tokenizer.encode_blocks = encode_blocks

    results = tokenized(3, fail, reset=reset)
    assert isinstance(results[0], OtherRankEndedError)
    if end == "kill":
        assert results[rank] == -signal.SIGKILL
    else:
        assert "No space left on device" in results[rank]
        assert f"checkpoints/r/tokens.{rank}.bin" in results[rank]
    assert project.snapshot() == before
    (project.run.staged_path / "tokens.2.bin").write_bytes(b"what a slow rank still writes")
    corpus, *_ = tokenized(2, reset=reset)
    assert "learned from this text before" in project.notes[0]
    assert corpus.tokens[:].tolist() == corpus.tokenizer.encode(TEXT)
    assert not project.run.staged_path.exists()
    assert project.snapshot().keys() == {path.name for path in project.files}


def test_a_first_rank_that_is_killed_leaves_parts_that_the_next_start_removes(project, tokenized):
    project.run.path.mkdir(parents=True)

    def work(ranks):
        ranks.size = 3
        if ranks.is_first:
            with project.run.lock():
                return gpt.prepare.prepare(project.run, report=lambda line: None, ranks=ranks)
        return gpt.prepare.prepare(project.run, ranks=ranks).info

    def kill(*_):
        until(lambda: parts <= set(os.listdir(project.run.staged_path)))
        os.kill(os.getpid(), signal.SIGKILL)

    parts = {"tokens.bin", "tokens.1.bin", "tokens.2.bin"}

    def killed():
        gpt.encode.move_to_end = kill
        on_ranks(3, work)

    assert status_of_first_rank(killed) == -signal.SIGKILL
    assert parts <= set(os.listdir(project.run.staged_path))
    project.prepare()
    assert not project.run.staged_path.exists()
    assert project.run.tokens_path.stat().st_size == 2 * project.info()["count"]


def test_ranks_go_on_behind_the_last_piece_that_a_killed_first_rank_has_appended(project, tokenized, many_pieces):
    project.prepare(vocab_limit=50)
    alone, info = project.snapshot(), project.info()
    project.run.tokens_path.unlink()
    move, calls = gpt.encode.move_to_end, []

    def kill(*arguments):
        calls.append(None)
        if len(calls) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(*arguments)

    def killed():
        gpt.encode.move_to_end = kill
        tokenized(3)

    assert status_of_first_rank(killed) == -signal.SIGKILL
    tokenized(2)
    assert "were there from an interrupted command" in project.notes[1]
    assert project.snapshot()["tokens.bin"] == alone["tokens.bin"]
    assert described(project.info()) == described(info)
    assert not project.run.staged_path.exists()


@pytest.mark.parametrize("change", ["grows", "is another one for rank 1"])
def test_a_text_that_changes_while_ranks_read_it_is_refused(project, tokenized, change):
    project.prepare(vocab_limit=50)
    before = project.snapshot()
    other = project.text.with_name("other.txt")
    other.write_text(TEXT.replace("dog", "cow"), encoding="utf-8")

    def change_it(ranks):
        encode_range = gpt.encode._encode_range

        def changing(text, *arguments):
            if change == "grows":
                with open(project.text, "a") as file:
                    file.write("more")
            return encode_range(text if change == "grows" else find([str(other)]).sources, *arguments)

        if ranks.rank == 1:
            gpt.encode._encode_range = changing

    results = tokenized(2, change_it, reset=True)
    assert isinstance(results[0], UserError)
    assert "data/data.txt" in str(results[0])
    assert "try again when nothing writes to it" in str(results[0])
    assert project.snapshot() == before
    assert not project.run.staged_path.exists()


def test_a_rank_that_does_not_see_the_first_ones_files_says_so(project, tokenized, tmp_path):
    def elsewhere(ranks):
        if ranks.rank == 1:
            os.chdir(tmp_path / "data")

    results = tokenized(2, elsewhere)
    assert isinstance(results[0], OtherRankEndedError)
    assert results[1].startswith("UserError: checkpoints/r/.tokenizing, which the first rank has made, is not there")
    assert "file system that all ranks share" in results[1]


def test_ranks_read_the_same_ready_made_tokens_and_one_with_another_file_ends(project, tokenized):
    Tokenizer(kind="byte").save("tokenizer.json")
    np.arange(200, dtype="<u2").tofile("train.bin")
    corpus, *others = tokenized(2, tokens="train.bin", kind="tokenizer.json")
    assert others == [[list(range(200)), corpus.info, 257]]
    assert not project.run.tokens_path.exists()
    recorded = project.info()
    recorded["token_files"]["sources"][0] |= {"sha256": "0" * 64, "mtime_ns": 0}

    def sees_another(ranks):
        if not ranks.is_first:
            ranks.share = lambda *_: {"made": recorded}

    _, other = tokenized(2, sees_another)
    assert "train.bin is not the first rank's (sha256 000000000000… then" in other
