"""`--tokens`: tokens that another program has made are read where they lie."""

import gzip
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import gpt.prepare.readymade
import gpt.provenance.files
from gpt.batches import Batches
from gpt.corpus.sources import find
from gpt.corpus.token_files import recognized
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer

IDS = np.arange(300) % 257


def raw(path, ids, dtype="<u2"):
    np.asarray(ids, dtype).tofile(path)


def shard(path, ids, magic=20240520, version=1, dtype="<u2", count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())


def npy(ids):
    """The content of a file .npy."""
    file = io.BytesIO()
    np.save(file, ids)
    return file.getvalue()


@pytest.fixture
def files(project):
    """The project with a tokenizer in tokenizer.json, and the folder `data` for token files."""
    Tokenizer(kind="byte").save("tokenizer.json")
    project.text.unlink()
    return project


@pytest.fixture
def made(files):
    """A run that reads data/train.bin and holds out data/val.bin."""
    raw("data/train.bin", IDS)
    raw("data/val.bin", IDS[:40])
    files.prepare(tokens="data/train.bin", val_tokens="data/val.bin", kind="tokenizer.json")
    return files


def test_nanogpts_raw_ids_are_mapped_where_they_lie(files):
    raw("data/train.bin", IDS)
    corpus = files.prepare(tokens="data/train.bin", kind="tokenizer.json")
    assert corpus.tokens[:].tolist() == IDS.tolist()
    assert isinstance(corpus.tokens[:].base.base, np.memmap)
    assert not files.run.tokens_path.exists()
    assert files.run.tokenizer_path.read_bytes() == Path("tokenizer.json").read_bytes()
    assert corpus.val_fraction is None
    assert files.prepare().tokens[:].tolist() == IDS.tolist()
    assert files.notes == []


def test_shards_with_a_header_are_read_in_the_order_of_their_paths(files):
    data = files.text.parent
    shard(data / "b_2.bin", IDS[100:160], 20240801, 7, "<u4")
    shard(data / "b_1.bin", IDS[:100])
    raw(data / "c.bin", IDS[160:])
    for names in ("data/*.bin", "data", ("data/b_*.bin", "data/c.bin")):
        corpus = files.prepare(tokens=names, kind="tokenizer.json", reset=True)
        assert corpus.tokens[:].tolist() == IDS.tolist()
    assert corpus.info["token_files"]["paths"] == ["../../data/b_*.bin", "../../data/c.bin"]


def test_the_held_out_tokens_are_the_last_ones(made):
    corpus = made.prepare()
    batches = Batches(corpus.tokens, 2, 8, sampling="shuffled", seed=0, val_fraction=corpus.val_fraction)
    assert (batches.train_tokens, batches.val_tokens) == (300, 40)
    assert corpus.tokens[300:].tolist() == IDS[:40].tolist()


def test_a_run_of_them_in_a_folder_of_texts_is_passed_over_before_its_first_checkpoint_too(made):
    (made.run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\n')
    Path("a.txt").write_text("the cat sat")
    assert [str(source.path) for source in find(["a.txt", "checkpoints"]).sources.files] == ["a.txt"]


def test_raw_ids_of_a_large_vocabulary_have_four_bytes(files):
    raw("data/train.bin", IDS + 70_000, "<u4")
    path = Path("data/train.bin")
    assert recognized(path, vocab_size=80_000).mapped().tolist() == (IDS + 70_000).tolist()
    assert len(recognized(path, vocab_size=1 << 16).mapped()) == 600


def test_raw_ids_of_32_bits_are_told_by_their_zeros_whatever_the_vocabulary(tmp_path):
    """Read as uint16, every second id would be 0, and nothing would say so."""
    path = tmp_path / "train.bin"
    raw(path, IDS, "<u4")
    assert recognized(path, vocab_size=257).mapped().tolist() == IDS.tolist()
    for few in ([5, 0] * 15, [0, 0] * 400, [0] * 31 + [5] * 300):
        raw(path, few)
        assert recognized(path, vocab_size=257).mapped().tolist() == few


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_file_of_numpys_is_mapped_behind_its_header(files, dtype):
    (files.text.parent / "train.npy").write_bytes(npy(IDS.astype(dtype)))
    corpus = files.prepare(tokens="data/train.npy", kind="tokenizer.json")
    assert corpus.tokens[:].tolist() == IDS.tolist()
    assert corpus.tokens[:].dtype == dtype
    assert files.prepare().tokens[:].tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x01\x02\x03", "data/train.bin has 3 bytes, which are no uint16 ids: give a file of tokens as nanoGPT or"),
        (b"", "data/train.bin is empty: leave it out"),
        (IDS.astype("<i8").tobytes(), "data/train.bin has ids of 64 bits, but known are 16 and 32: write it anew"),
        (gzip.compress(IDS.astype("<u2").tobytes()), "data/train.bin is compressed: unpack it"),
        (b"MMIDIDX\0\0" + bytes(31), "data/train.bin is the index of a file of Megatron's: name the file .bin beside"),
        (b"PAR1" + bytes(32), "data/train.bin is a parquet file: write the ids in it as uint16"),
        (npy(IDS.astype("<i8")), "data/train.bin has int64 [300], which are no ids in a row: write one row of uint16"),
        (npy(IDS.astype("<u2").reshape(2, 150)), "data/train.bin has uint16 [2, 150], which are no ids in a row"),
        (npy(IDS.astype("<u2"))[:-2], "data/train.bin should have 300 ids in 598 bytes: get it again, or leave it"),
        (npy(IDS[:0].astype("<u2")), "data/train.bin should have 0 ids in 0 bytes: get it again, or leave it out"),
        (npy(IDS.astype("<u2"))[:50], "data/train.bin has a damaged header"),
        (b"some words\n" * 9, "data/train.bin is a text, not a file of tokens: name it with --data-path"),
        ({"magic": 20240522}, "data/train.bin has the questions of a test (llm.c's format 20240522), not a text"),
        ({"magic": 20250101}, "begins with a header of the format 20250101, but known are 20240520 and 20240801"),
        ({"version": 2}, "has version 2 of the format 20240520, but known is version 1"),
        ({"count": 299}, "data/train.bin has 300 ids, but its header says 299: get it again"),
        ({"count": -1}, "data/train.bin has 300 ids, but its header says -1"),
        ({"magic": 20240801, "version": 7}, "data/train.bin has 150 ids, but its header says 300"),
        ({"dtype": "<u1"}, "data/train.bin has 150 ids, but its header says 300"),
        ([5, 256, 257, 3], "data/train.bin has the id 257 at place 2, but the tokenizer has 257 tokens: name the one"),
    ],
)
def test_a_file_that_is_no_file_of_tokens_is_refused(files, content, message):
    path = files.text.parent / "train.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, list):
        raw(path, content)
    else:
        shard(path, IDS % 256, **content)
    assert message in files.refused(tokens="data/train.bin", kind="tokenizer.json")


def test_numbers_of_ids_are_said_exactly(tmp_path):
    path = tmp_path / "train.bin"
    shard(path, IDS % 256, count=1_234_568)
    os.truncate(path, 1024 + 2 * 1_234_567)
    with pytest.raises(UserError, match="has 1,234,567 ids, but its header says 1,234,568: get it again"):
        recognized(path, 257)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kind": None}, "--tokens needs --tokenizer PATH, the tokenizer that made them"),
        ({"kind": "byte"}, "--tokens needs --tokenizer PATH, the tokenizer that made them"),
        ({"kind": "gpt2"}, "--tokenizer gpt2 is not here yet: `hipgpt fetch gpt2-tokenizer` gets it"),
        ({"data_path": "text.txt"}, "--data-path goes with a text, but --tokens brings tokens: leave one of them out"),
        ({"shuffle_documents": 0}, "--shuffle-documents goes with a text, but --tokens brings tokens"),
        ({"encoding": "latin-1"}, "--encoding goes with a text, but --tokens brings tokens"),
        ({"tokens": "data/*.none"}, "--tokens data/*.none matches no file: give the path of a file"),
        ({"tokens": "none.bin"}, "none.bin does not exist: give the path of a file of tokens"),
        ({"tokens": ["data/train.bin", "data"]}, "--tokens data names data/train.bin a second time"),
        ({"tokens": "checkpoints"}, "--tokens checkpoints is a folder without files"),
        ({"val_tokens": "data"}, "data/train.bin is a part of both --tokens and --val-tokens"),
        ({"tokens": (), "val_tokens": "data"}, "--val-tokens is data, but goes with --tokens: give that too"),
        ({"vocab_limit": 300}, "--vocab-size goes with a tokenizer that is learned"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(files, flags, message):
    files.run.path.mkdir(parents=True)
    raw("data/train.bin", IDS)
    assert message in files.refused(**{"tokens": "data/train.bin", "kind": "tokenizer.json", **flags})


def test_gpt2_is_the_tokenizer_that_was_fetched(files):
    files.text.with_name("gpt2").mkdir()
    shutil.copy("tokenizer.json", "data/gpt2")
    raw("data/train.bin", IDS)
    assert files.prepare(tokens="data/train.bin", kind="gpt2").tokenizer == Tokenizer.load("tokenizer.json")


def test_a_start_after_the_first_reads_no_file_again(made, monkeypatch):
    monkeypatch.delattr(gpt.prepare.readymade, "checked")
    monkeypatch.delattr(gpt.prepare.readymade, "write_atomically")
    monkeypatch.delattr(gpt.provenance.files, "sha256")
    made.prepare()
    made.prepare(tokens="data/train.bin", val_tokens="data/val.bin", kind="tokenizer.json")
    assert made.notes == []


def test_changed_and_missing_files_are_named(made):
    raw("data/train.bin", IDS[::-1])
    assert "data/train.bin is not the file whose tokens run r was made from (sha256" in made.refused()
    raw("data/train.bin", IDS[:-1])
    assert "data/train.bin is not the file whose tokens run r was made from (600 bytes then, 598 now)" in made.refused()
    made.text.with_name("train.bin").unlink()
    assert "data/train.bin does not exist, and run r reads its tokens: put it back, or" in made.refused()


def test_other_files_than_the_runs_are_refused_and_the_same_elsewhere_are_taken(made):
    raw("data/other.bin", IDS + 1)
    assert "data/other.bin is not the file whose tokens run r was made from" in made.refused(tokens="data/other.bin")
    assert "--tokens names 3 files, but run r was made from 1" in made.refused(tokens="data")
    shutil.copy("data/train.bin", "moved.bin")
    assert made.prepare(tokens="moved.bin").info["token_files"]["paths"] == ["../../moved.bin"]
    made.text.with_name("train.bin").unlink()
    assert len(made.prepare().tokens) == 340


def test_new_files_of_a_pattern_are_reported(files):
    raw("data/a.bin", IDS)
    files.prepare(tokens="data/*.bin", kind="tokenizer.json")
    raw("data/b.bin", IDS)
    assert len(files.prepare().tokens) == 300
    assert files.notes == [
        "Note: --tokens names files that run r was not made from: data/b.bin; to take them in, make tokenizer and "
        "tokens anew with --reset"
    ]
    assert len(files.prepare(reset=True).tokens) == 600


def test_texts_and_tokens_do_not_replace_each_other_unasked(made):
    made.text.write_text("the cat sat on the mat . " * 20)
    error = made.refused(data_path="data/data.txt")
    assert "--data-path goes with a text, but run r reads the tokens in data/train.bin: leave it out, or" in error
    assert "--encoding goes with a text, but run r reads" in made.refused(encoding="latin-1", reset=True)
    made.prepare(data_path="data/data.txt", reset=True)
    assert made.run.tokens_path.exists()
    error = made.refused(tokens="data/train.bin")
    assert "--tokens brings tokens, but run r was made from data/data.txt: leave it out, or" in error
    made.prepare(tokens="data/train.bin", kind="tokenizer.json", reset=True)
    assert not made.run.tokens_path.exists()


def test_training_goes_on_and_is_evaluated_on_tokens_in_shards(hipgpt, tmp_path):
    Tokenizer(kind="byte").save(tmp_path / "tokenizer.json")
    (tmp_path / "shards").mkdir()
    for number in range(3):
        shard(tmp_path / "shards" / f"{number}.bin", IDS % 256)
    raw(tmp_path / "val.bin", IDS[:90])
    model = ("--dim", 8, "--heads", 2, "--ff", 8, "--layers", 1, "--seq", 8, "--batch", 2, "--device", "cpu")
    named = ("--tokens", "shards/*.bin", "--val-tokens", "val.bin", "--tokenizer", "tokenizer.json")
    out = hipgpt("train", *named, *model, "--steps", 2, "--eval-every", 1, "--run-name", "r").stdout
    assert "Data:   990 tokens, 90 of them held out" in out
    assert "990 tokens, 90 of them held out" in hipgpt("train", "--run-name", "r", "--resume", "--steps", 3).stdout
    assert "shards/*.bin: 990 tokens (byte tokenizer, vocabulary 257)" in hipgpt("show", "r").stdout
    assert "Text: held out, 90 tokens" in hipgpt("eval", "--run-name", "r", "--device", "cpu").stdout
    whole = hipgpt("train", *named, *model, "--steps", 3, "--run-name", "s", "--eval-every", 1).stdout
    assert whole.splitlines()[-2].startswith("[Step 3] Validation")
    refused = hipgpt("train", *named, "--val-fraction", 0.1, "--run-name", "t", status=2).stderr
    assert "--val-fraction and --val-tokens both say what is held out" in refused
    further = ("--ckpt", "checkpoints/r/latest_checkpoint.safetensors", "--run-name", "u", "--steps", 1)
    assert "990 tokens" in hipgpt("train", *further, "--device", "cpu").stdout
