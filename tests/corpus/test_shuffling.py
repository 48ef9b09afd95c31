"""`--shuffle-documents`: the tokens are those of the same documents, in an order that the seed alone decides."""

import json
import os
import signal

import numpy as np
import pytest

import gpt.corpus.shuffling
import gpt.prepare.making
from gpt.corpus.shuffling import shuffle_documents
from tests.support.project import sha256


@pytest.fixture
def records(project):
    """The project, with 200 documents of the form `cat N dog`, and a text to hold out."""
    lines = (json.dumps({"text": f"the cat {number} sat on the mat"}) for number in range(200))
    project.text.with_name("texts.jsonl").write_text("\n".join(lines))
    project.text.with_name("held.txt").write_text("the cat 5 sat on the mat " * 9)
    return project


def documents(corpus, until=None):
    return corpus.tokenizer.decode(corpus.tokens[:until].tolist()).split("<|endoftext|>")


NAMED = {"data_path": "data/texts.jsonl", "kind": "byte", "vocab_limit": 300}


def test_the_documents_are_the_same_in_another_order(records):
    in_order = records.prepare(**NAMED)
    before = documents(in_order)
    shuffled = records.prepare(**NAMED, shuffle_documents=1, reset=True)
    assert sorted(documents(shuffled)) == sorted(before)
    neighbors = sum(a == b for a, b in zip(documents(shuffled), before, strict=True))
    assert neighbors < 20  # one document in 200 stays at its place by chance, and the last string is always empty
    assert records.info()["tokens"]["sha256"] == sha256(records.run.tokens_path)


def test_the_seed_may_be_named_again_beside_a_text_that_is_held_out(records):
    """That text is never shuffled, so the seed does not belong to it."""
    named = {**NAMED, "shuffle_documents": 1, "val_path": "data/held.txt"}
    first = records.prepare(**named).tokens[:].tolist()
    assert records.prepare(**named).tokens[:].tolist() == first
    assert records.notes == []


def test_the_seed_decides_the_order_and_is_remembered(records):
    first = records.prepare(**NAMED, shuffle_documents=1).tokens[:].tolist()
    assert records.prepare(shuffle_documents=1).tokens[:].tolist() == first
    assert records.notes == []
    assert "--shuffle-documents is 2, but the tokens of run r were made with 1: leave it out" in records.refused(
        shuffle_documents=2
    )
    records.run.tokens_path.unlink()
    assert records.prepare().tokens[:].tolist() == first
    assert records.prepare(reset=True).tokens[:].tolist() == first
    assert records.prepare(**NAMED, shuffle_documents=2, reset=True).tokens[:].tolist() != first
    assert records.prepare(**NAMED, shuffle_documents=0, reset=True).info["corpus"]["shuffle_documents"] == 0


def test_the_held_out_text_stays_behind_the_others_in_its_order(records):
    plain = records.prepare(**NAMED, val_path="data/held.txt")
    count = plain.info["held_out"]["count"]
    held = plain.tokens[-count:].tolist()
    shuffled = records.prepare(**NAMED, val_path="data/held.txt", shuffle_documents=3, reset=True)
    assert shuffled.tokens[-count:].tolist() == held
    assert sorted(documents(shuffled, -count)) == sorted(documents(plain, -count))


def test_one_plain_text_has_no_documents_to_shuffle(records):
    assert "--shuffle-documents is 1, but data/data.txt is one plain text" in records.refused(shuffle_documents=1)


def test_a_kill_while_documents_are_shuffled_loses_nothing(records, monkeypatch):
    whole = records.prepare(**NAMED, shuffle_documents=4).tokens[:].tolist()
    records.run.tokens_path.unlink()
    if (child := os.fork()) == 0:
        monkeypatch.setattr(gpt.prepare.making, "shuffle_documents", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        records.prepare()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert records.prepare().tokens[:].tolist() == whole
    assert not records.run.staged_path.exists()


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_the_order_does_not_depend_on_how_much_is_read_at_a_time(tmp_path, monkeypatch, at_once, count):
    texts = [[number + 1] * (number % 5) + [0] for number in range(count)]
    np.array(sum(texts, []), "<u4").tofile(tmp_path / "tokens")
    shuffle_documents(tmp_path / "tokens", tmp_path / "whole", np.dtype("<u4"), 0, 9)
    monkeypatch.setattr(gpt.corpus.shuffling, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(gpt.corpus.shuffling, "_DOCUMENTS_AT_ONCE", at_once)
    shuffle_documents(tmp_path / "tokens", tmp_path / "parts", np.dtype("<u4"), 0, 9)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["parts", "tokens", "whole"]
