"""`hipgpt export --format gguf` writes a file in which the package gguf finds the same model and vocabulary."""

import doctest

import numpy as np
import pytest
from click.testing import CliRunner

import gpt.gguf
from gpt.chat_template import JINJA, MARKERS
from gpt.cli import main
from gpt.errors import UserError
from gpt.gguf import export_gguf, tensor_name
from tests.support.pretrained import saved_run, tokenizer

gguf = pytest.importorskip("gguf")
WIDE = {"embed_dim": 32, "num_heads": 4, "ff_hidden_dim": 128}


@pytest.fixture
def save(tmp_path):
    return lambda kind="byte", **changes: saved_run(tmp_path / "checkpoints", kind, **(WIDE | changes))


def values(reader, key: str):
    """The value of a key: a number, a text, or a list of them."""
    return reader.fields[key].contents()


def turned(name: str, tensor: np.ndarray) -> np.ndarray:
    """A parameter as llama.cpp has it: matrices of the blocks are [out, in] there."""
    return tensor.T if tensor.ndim == 2 and ".h." in name else tensor


@pytest.mark.parametrize("tie", [True, False])
def test_a_file_in_float32_has_every_bit_and_every_number_of_the_shape(save, tmp_path, tie):
    saved = save(tie_embeddings=tie)
    reader = gguf.GGUFReader(export_gguf(saved, tmp_path / "m.gguf"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == set(map(tensor_name, saved.weights()))
    assert ("output.weight" in tensors) != tie
    for name, ours in saved.weights().items():
        assert np.array_equal(tensors[tensor_name(name)].data, turned(name, ours)), name
    shape = {"block_count": 2, "context_length": 24, "embedding_length": 32, "feed_forward_length": 128}
    assert {key: values(reader, f"gpt2.{key}") for key in shape} == shape
    assert values(reader, "gpt2.attention.head_count") == 4
    assert values(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    assert (values(reader, "general.architecture"), values(reader, "general.file_type")) == ("gpt2", 0)


def test_the_vocabulary_and_its_merges_are_those_of_the_tokenizer(save, tmp_path):
    saved = save()
    reader, ours = gguf.GGUFReader(export_gguf(saved, tmp_path / "m.gguf")), tokenizer()
    pieces = values(reader, "tokenizer.ggml.tokens")
    assert pieces == [ours.piece(id) for id in range(ours.vocab_size)]
    assert [left + right for left, right in map(str.split, values(reader, "tokenizer.ggml.merges"))] == pieces[257:]
    assert values(reader, "tokenizer.ggml.token_type") == [3] + [1] * (len(pieces) - 1)
    assert (values(reader, "tokenizer.ggml.model"), values(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    assert values(reader, "tokenizer.ggml.eos_token_id") == ours.end_of_text == 0
    assert values(reader, "tokenizer.ggml.add_bos_token") is False


def test_a_model_of_conversations_brings_their_template_and_the_end_of_an_answer(save, tmp_path):
    reader = gguf.GGUFReader(export_gguf(save(special_tokens=[*MARKERS.values()]), tmp_path / "m.gguf"))
    assert values(reader, "tokenizer.chat_template") == JINJA
    assert values(reader, "tokenizer.ggml.tokens")[values(reader, "tokenizer.ggml.eot_token_id")] == "<|user|>"
    assert values(reader, "tokenizer.ggml.token_type")[:5] == [3, 3, 3, 3, 1]
    plain = gguf.GGUFReader(export_gguf(save(name="s"), tmp_path / "s.gguf"))
    assert not {"tokenizer.chat_template", "tokenizer.ggml.eot_token_id"} & set(plain.fields)


@pytest.mark.parametrize(
    ("type_name", "number", "error"),
    # f16 rounds to 11 bits. q8_0 rounds to whole multiples of a 127th of the largest of 32 numbers, and rounds that
    # scale to 11 bits.
    [("f16", 1, lambda x: 2.0**-11 * np.abs(x)),
     ("q8_0", 7, lambda x: np.abs(x).reshape(len(x), -1, 32).max(-1).repeat(32, -1) * (0.5 / 127 + 2.0**-11) * 1.001)],
)  # fmt: skip
def test_a_smaller_type_rounds_the_matrices_alone(save, tmp_path, type_name, number, error):
    saved = save()
    reader = gguf.GGUFReader(export_gguf(saved, tmp_path / "m.gguf", type_name))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, weights in saved.weights().items():
        ours, found = turned(name, weights), tensors[tensor_name(name)]
        exact = ours.ndim == 1 or name == "transformer.wpe.weight"
        assert (found.tensor_type.name == "F32") == exact
        read = gguf.quants.dequantize(found.data, found.tensor_type).reshape(ours.shape)
        assert np.all(np.abs(read - ours) <= (0 if exact else error(ours) + 2.0**-24)), name
    assert values(reader, "general.file_type") == number


@pytest.mark.parametrize(
    ("changes", "type_name", "complaint"),
    [
        ({"kind": "word"}, "f32", "is a word tokenizer, and llama.cpp has none"),
        ({"ff_hidden_dim": 64}, "f32", "feed-forward width is 64, but llama.cpp's GPT-2 has 4 times its width of 32"),
        ({"activation": "relu"}, "f32", "activation is relu, but llama.cpp's GPT-2 has gelu"),
        ({"embed_dim": 12, "ff_hidden_dim": 48}, "q8_0", "needs a width that is a multiple of 32, but .* 12"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused_with_the_reason(save, tmp_path, changes, type_name, complaint):
    with pytest.raises(UserError, match=complaint):
        export_gguf(save(**changes), tmp_path / "m.gguf", type_name)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_numbers_beyond_float16_are_refused_and_leave_nothing(save, tmp_path, monkeypatch):
    saved = save()
    large = {name: tensor * np.float32(1e6) for name, tensor in saved.weights().items()}
    monkeypatch.setattr(type(saved), "weights", lambda _: large)
    with pytest.raises(UserError, match="--type f16 cannot hold transformer.wte.weight"):
        export_gguf(saved, tmp_path / "m.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.fixture
def export_run(save, tmp_path):
    """The command `hipgpt export` for a saved run: export_run(out, "--format", "gguf")."""
    save()
    usual = ["export", "--run-name", "r", "--runs-dir", str(tmp_path / "checkpoints"), "--out"]
    return lambda out, *options: CliRunner().invoke(main, [*usual, str(out), *options])


def test_the_command_writes_a_file_and_refuses_one_that_exists(export_run, tmp_path):
    out = tmp_path / "deep" / "m.gguf"
    done = export_run(out, "--format", "gguf", "--type", "f16")
    assert (done.exit_code, done.output) == (0, f"{out}\n")
    before = out.read_bytes()
    again = export_run(out, "--format", "gguf")
    assert (again.exit_code, again.output.count("\n")) == (2, 1)
    assert "exists already" in again.output
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["m.gguf"]


def test_a_type_is_for_gguf_alone(export_run, tmp_path):
    assert "--type f16 is for --format gguf" in export_run(tmp_path / "hf", "--type", "f16").output


def test_a_name_that_ends_in_gguf_is_refused_without_its_format(export_run, tmp_path):
    forgotten = export_run(tmp_path / "forgotten.gguf")
    assert "forgotten.gguf would be a directory, as --format is hf: give --format gguf" in forgotten.output
    assert not (tmp_path / "forgotten.gguf").exists()


def test_the_example_in_the_docstring_gives_the_result_that_stands_there():
    assert doctest.testmod(gpt.gguf) == (0, 1)
