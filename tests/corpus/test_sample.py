"""`--sample`: a tokenizer learns from stretches that are evenly spread over a text."""

import gzip
from dataclasses import replace

import pytest

import gpt.corpus.sources
from gpt.config import DataConfig
from gpt.corpus.sources import find
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer
from tests.support.project import TEXT

WORDS = "".join(f"word{number:05} " for number in range(20_000))  # 200,000 bytes, in which each word tells its place


@pytest.fixture
def stretches(monkeypatch):
    """Stretches of 1,000 bytes."""
    monkeypatch.setattr(gpt.corpus.sources, "_STRETCH", 1000)


def sampled(names, size):
    """The text of a sample, and the bytes that were read for it."""
    sources, seen = find([str(name) for name in names]).sources, []
    sources = replace(sources, sample=size)
    return "".join(sources.learned_blocks(seen.append)), sum(map(len, seen))


def test_a_sample_of_a_file_is_evenly_spread_over_it(tmp_path, stretches):
    (tmp_path / "text.txt").write_text(WORDS)
    text, read = sampled([tmp_path / "text.txt"], 10_000)
    assert len(text) == pytest.approx(10_000, abs=10 * 20)  # each stretch ends at the next seam
    assert read == len(text)
    numbers = [int(word[4:]) for word in text.split()]
    assert sorted(set(numbers)) == numbers
    assert [number for number, before in zip(numbers[1:], numbers, strict=False) if number > before + 1] == [
        pytest.approx(place, abs=2) for place in range(2000, 20_000, 2000)
    ]
    assert sampled([tmp_path / "text.txt"], 10_000)[0] == text


def test_a_sample_of_files_takes_from_each_by_its_size(tmp_path, stretches):
    for name, part in (("a.txt", WORDS[:50_000]), ("b.txt", WORDS[50_000:50_300]), ("c.jsonl", None)):
        (tmp_path / name).write_text(part or '{"text": "in a line of its own"}\n' * 4000)
    text, _ = sampled([tmp_path], 18_000)
    assert text.count("word") == pytest.approx(5000 * 18 / 18.23 / 10 * 0.98, rel=0.2)
    assert text.count("line") > 200


def test_a_compressed_file_gives_its_beginning(tmp_path, stretches):
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(WORDS.encode()))
    text, _ = sampled([path], path.stat().st_size // 4)
    assert WORDS.startswith(text)
    assert 0 < len(text) < len(WORDS)


@pytest.mark.parametrize("size", [len(TEXT.encode()), 10**12])
def test_a_sample_as_large_as_the_text_is_the_text(tmp_path, size):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert sampled([tmp_path / "text.txt"], size)[0] == TEXT


def test_a_run_records_its_sample_and_encodes_the_whole_text(project, stretches):
    project.text.write_text(TEXT + "zebra " * 900)
    corpus = project.prepare(kind="byte", vocab_limit=280, sample=1000)
    assert project.info()["tokenizer"]["sample"] == 1000
    assert corpus.tokenizer.decode(corpus.tokens[:].tolist()) == project.text.read_text()
    assert not any("zebra" in corpus.tokenizer.piece(id) for id in range(corpus.tokenizer.vocab_size))
    project.prepare()
    project.prepare(sample=1000)
    assert project.notes == []
    assert "--sample is 900, but the run's tokenizer was not learned from it, but from a sample of 1000" in (
        project.refused(sample=900)
    )
    project.run.tokens_path.unlink()
    project.prepare()
    assert project.info()["tokenizer"]["sample"] == 1000
    project.prepare(reset=True)
    assert project.info()["tokenizer"]["sample"] == 1000


def test_a_sample_that_is_of_no_use_is_refused(project):
    Tokenizer(kind="byte").save("tokenizer.json")
    project.run.path.mkdir(parents=True)
    assert "--sample 5 goes with a tokenizer that is learned" in project.refused(sample=5, kind="tokenizer.json")
    with pytest.raises(UserError, match="--sample is 0, but must be at least 1"):
        DataConfig(sample=0)
