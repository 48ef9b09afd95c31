"""The quality of a model: bits per byte, the loss of guessing, and samples that leave training as it is."""

import math
from collections import Counter

import numpy as np
import pytest

from gpt import evaluation
from gpt.batches import Batches
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.evaluation import HeldOut, Metrics, Samples, printable
from gpt.generate import generate
from gpt.model import GPT, TrainableGPT
from gpt.ops.cpu.operations import CpuOps
from gpt.tokenizer import Tokenizer
from gpt.tokens import Tokens

TEXT = "the cat  sat\non the mat , déjà vu .\n\n<|endoftext|>\nthe dog\tsat on the log ; 猫 .\n" * 30
SEQ = 8


@pytest.fixture(scope="module", params=["word", "byte"])
def tokenizer(request):
    tokenizer = Tokenizer(300, request.param)
    tokenizer.train_bpe(TEXT)
    return tokenizer


@pytest.fixture
def parts(tokenizer):
    """An untrained model, the batches of TEXT, and the ids of TEXT."""
    ids = np.array(tokenizer.encode(TEXT), np.uint16)
    batches = Batches(ids, 3, SEQ, sampling="sequential", seed=0, val_fraction=0.3)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=SEQ, embed_dim=8, num_heads=2, ff_hidden_dim=16, num_layers=2
    )
    model = TrainableGPT(config, CpuOps(threads=1), batch=3)
    model.initialize(1)
    return model, batches, ids


def predicted(batches):
    return np.concatenate([labels.ravel() for _, labels in batches.validation()]).tolist()


# ---- bits per byte ------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_texts_tokens_are_its_own_with_one_space_between_words_for_word(tokenizer):
    text = TEXT if tokenizer.kind == "byte" else "".join(
        word if word == "<|endoftext|>" else word + " " for word in TEXT.split()
    )  # fmt: skip
    assert tokenizer.byte_lengths()[tokenizer.encode(TEXT)].sum() == len(text.encode())


def test_bits_per_byte_are_of_the_bytes_that_the_predicted_tokens_stand_for(parts, tokenizer):
    model, batches, _ = parts
    metrics = HeldOut(model, batches, tokenizer).evaluate(stopped=lambda: False)
    labels = predicted(batches)
    text_bytes = sum(tokenizer.byte_lengths()[id] for id in labels)
    assert metrics.bits_per_byte == pytest.approx(metrics.loss * len(labels) / math.log(2) / text_bytes, rel=1e-12)
    assert metrics.loss == pytest.approx(math.log(tokenizer.vocab_size), rel=0.02), "a fresh model knows nothing"


def test_tokens_that_do_not_count_are_not_in_the_mean(parts, tokenizer):
    model, batches, ids = parts
    counted = (np.arange(len(ids)) % 3 == 0).astype(np.uint8)
    some = Batches(ids, 3, SEQ, sampling="sequential", seed=0, val_fraction=0.3, counted=counted)
    model.metrics[...] = 0
    labels = []
    for inputs, wanted in some.validation():
        model.loss(inputs, wanted)
        labels += wanted[wanted >= 0].tolist()
    metrics = HeldOut(model, some, tokenizer).evaluate(stopped=lambda: False)
    assert 0 < len(labels) < len(predicted(batches))
    assert metrics.loss == pytest.approx(model.metrics[0] / len(labels), rel=1e-12)
    text_bytes = sum(tokenizer.byte_lengths()[id] for id in labels)
    assert metrics.bits_per_byte == pytest.approx(metrics.loss * len(labels) / math.log(2) / text_bytes, rel=1e-12)


def test_forty_tokens_of_a_hundred_bytes():
    assert Metrics.of(np.array([80.0, 10.0]), 40, 100).bits_per_byte == pytest.approx(1.154, abs=5e-4)


def test_the_validation_line_keeps_its_beginning_and_gains_bits_per_byte_at_its_end():
    beginning = "Loss: 1.0847 | Perplexity: 2.96 | Accuracy: 74.46%"
    assert str(Metrics(1.0847, 0.7446)) == beginning
    assert str(Metrics(1.0847, 0.7446, 1.234)) == beginning + " | Bits/byte: 1.234"


def test_an_evaluation_that_is_stopped_has_no_result(parts, tokenizer):
    model, batches, _ = parts
    asked = iter([False, True])
    assert HeldOut(model, batches, tokenizer).evaluate(stopped=lambda: next(asked)) is None


def test_without_held_out_text_there_is_no_evaluation(parts, tokenizer):
    model, _, ids = parts
    batches = Batches(ids, 3, SEQ, sampling="sequential", seed=0, val_fraction=0)
    assert HeldOut(model, batches, tokenizer).evaluate(stopped=lambda: False) is None


# ---- guessing by frequency ----------------------------------------------------------------------------------------


def test_guessing_takes_the_training_parts_frequencies_plus_one(parts, tokenizer):
    model, batches, ids = parts
    counts = Counter(ids[: batches.train_tokens].tolist())
    total = batches.train_tokens + tokenizer.vocab_size
    labels = predicted(batches)
    wanted = sum(-math.log((counts[id] + 1) / total) for id in labels) / len(labels)
    loss, bits = HeldOut(model, batches, tokenizer).guess()
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert bits == pytest.approx(wanted * len(labels) / math.log(2) / tokenizer.byte_lengths()[labels].sum(), rel=1e-12)


def test_a_held_out_text_of_nothing_but_blank_lines_has_no_bits_per_byte():
    """The word tokenizer's line ends stand for no byte of their own: see `Tokenizer.byte_lengths`."""
    tokenizer = Tokenizer(300, "word", keep_newlines=True)
    tokenizer.train_bpe("the cat sat\non the mat\n" * 20)
    ids = np.array(tokenizer.encode("the cat sat on the mat\n" * 20 + "\n" * 200), np.uint16)
    batches = Batches(ids, 3, SEQ, sampling="sequential", seed=0, val_fraction=0.3)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=SEQ, embed_dim=8, num_heads=2, ff_hidden_dim=16, num_layers=1
    )
    held_out = HeldOut(GPT(config, CpuOps(threads=1), batch=3), batches, tokenizer)
    assert held_out.evaluate(stopped=lambda: False).bits_per_byte is None
    assert held_out.guess()[1] is None


def test_a_long_text_is_counted_in_blocks_and_a_very_long_one_by_evenly_spread_blocks(monkeypatch):
    monkeypatch.setattr(evaluation, "_BLOCK", 10)
    tokens = np.arange(95, dtype=np.uint16) // 10  # one block per id
    monkeypatch.setattr(evaluation, "_MOST_BLOCKS", 10)
    assert evaluation._frequencies(Tokens([tokens]), 95, 12).tolist() == [10] * 9 + [5, 0, 0]
    assert evaluation._frequencies(Tokens([tokens]), 41, 12).tolist() == [10] * 4 + [1] + [0] * 7
    monkeypatch.setattr(evaluation, "_MOST_BLOCKS", 3)
    assert np.flatnonzero(evaluation._frequencies(Tokens([tokens]), 95, 12)).tolist() == [0, 3, 6]


def test_guessing_reads_a_block_at_a_time_however_many_files_the_tokens_are_in(parts, tokenizer, monkeypatch):
    model, batches, ids = parts
    wanted = HeldOut(model, batches, tokenizer).guess()
    monkeypatch.setattr(evaluation, "_BLOCK", 100)
    files = Tokens(np.array_split(ids, 7))
    read = []
    monkeypatch.setattr(files, "at", lambda places: read.append(places.size) or Tokens.at(files, places))
    split = Batches(files, 3, SEQ, sampling="sequential", seed=0, val_fraction=0.3)
    assert HeldOut(model, split, tokenizer).guess() == pytest.approx(wanted, rel=1e-12)
    assert max(read) <= 100


# ---- samples ------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_text_that_generate_writes_from_the_same_weights(parts, tokenizer):
    model, batches, _ = parts
    samples = Samples(model, batches, tokenizer, TrainConfig(sample_every=1, sample_prompt="the cat", seed=5))
    alone = GPT(model.config, CpuOps(threads=1))
    alone.load(model.weights.named.items())
    wanted = "".join(generate(alone, tokenizer, "the cat", num_tokens=40, seed=5))
    assert [samples.text(), samples.text()] == ["the cat" + wanted] * 2


def test_without_a_prompt_a_sample_begins_as_the_held_out_text_does(parts, tokenizer):
    model, batches, ids = parts
    for fraction, first in ((0.3, batches.train_tokens), (0.0, 0)):
        some = Batches(ids, 3, SEQ, sampling="sequential", seed=0, val_fraction=fraction)
        text = Samples(model, some, tokenizer, TrainConfig(sample_every=1)).text()
        assert text.startswith(tokenizer.decode(ids[first : first + 8].tolist()))


@pytest.mark.parametrize("prompt", ["", "\udcff"])
def test_a_prompt_without_tokens_is_refused_by_the_name_of_its_flag(parts, tokenizer, prompt):
    model, batches, _ = parts
    with pytest.raises(UserError, match="^--sample-prompt "):
        Samples(model, batches, tokenizer, TrainConfig(sample_every=1, sample_prompt=prompt))


def test_control_characters_are_shown_as_dots_and_lines_stay_lines():
    assert printable("a\tb\x1b[31m\r\nc\x07\u202e é猫") == "a   b·[31m·\nc·· é猫"
