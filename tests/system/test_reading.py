"""Files with arbitrary contents: reading one gives checked values or a message of one line, and never hangs."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from gpt import checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError, shown, told
from gpt.optim import COUNTERS, optimizer_shapes
from gpt.parameters import parameter_shapes
from gpt.run import Run
from gpt.system.reading import COUNT, NUMBER, PATH, TEXT, optional, parse, read_json, schema_of
from gpt.tokenizer import Tokenizer

MODEL = ModelConfig(vocab_size=11, max_seq_len=4, embed_dim=6, num_heads=2, ff_hidden_dim=8, num_layers=2)
LONGEST = 1000  # the most characters of a message, without its paths


@pytest.fixture
def saved(tmp_path):
    """A run that has a checkpoint of step 5."""
    run = Run("r", tmp_path)
    run.path.mkdir()
    weights = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(MODEL).items()}
    moments = {name: np.ones(shape, np.float32) for name, shape in optimizer_shapes(MODEL, "adamw").items()}
    checkpoint.save(run, 5, MODEL, TrainConfig(), weights, moments, dict.fromkeys(COUNTERS, 1))
    return run


def refused(action, *names):
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < LONGEST
    assert all(name in message for name in names), message
    return message


# JSON


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands more than once"),
        ('{"a": NaN}', "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "'1e999' is beyond the largest float"),
        ("[" + "9" * 5000 + "]", "digits"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_json_is_read_strictly(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_a_value_that_is_not_of_its_kind_is_named_with_file_and_key(tmp_path):
    path = tmp_path / "a.json"
    schema = {"inner": {"count": COUNT, "rate": optional(NUMBER), "name": TEXT, "where": PATH}}
    good = {"count": 1, "rate": 0.5, "name": "n", "where": "a/b"}

    def read(**changes):
        path.write_text(json.dumps({"inner": {**good, **changes}}))
        return read_json(path, schema, "a note", "write it again")

    assert read(more=[]) == {"inner": {**good, "more": []}}
    for key, value in [
        ("count", True), ("count", -1), ("count", 1.0), ("count", "1"), ("count", None), ("count", 1 << 63),
        ("rate", "0.5"), ("rate", False), ("rate", [0.5]), ("rate", 10**400),
        ("name", 5), ("name", "\ud800"), ("name", {}), ("where", ""), ("where", "a\0b"), ("where", "\ud800"),
    ]:  # fmt: skip
        message = refused(lambda key=key, value=value: read(**{key: value}), f"{path} is not a note: inner.{key} is ")
        assert message.endswith(": write it again")
    assert read(where="caf\udce9")["inner"]["where"] == "caf\udce9", "a path need not be Unicode"
    path.write_text('{"inner": {"count": 1}}')
    refused(lambda: read_json(path, schema, "a note", "write it again"), "it has no inner.name")
    path.write_text('{"inner": 5}')
    refused(lambda: read_json(path, schema, "a note", "write it again"), "inner is 5, but must be an object")


def test_the_fields_of_a_dataclass_are_its_schema():
    schema = schema_of(TrainConfig)
    assert schema["min_lr"].holds(None)
    assert not schema["batch_size"].holds(None)
    assert not schema["seed"].required
    assert schema_of(ModelConfig)["vocab_size"].required


# Pipes, devices and directories


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
@pytest.mark.parametrize("name", ["config", "weights", "optimizer"])
def test_only_regular_files_are_read(saved, kind, name):
    path = {"config": saved.config_path, "weights": saved.weights_path, "optimizer": saved.optimizer_path}[name](5)
    path.unlink()
    {"pipe": os.mkfifo, "directory": os.mkdir, "device": lambda link: os.symlink("/dev/zero", link)}[kind](path)
    what = refused(lambda: checkpoint.load(saved).optimizer())
    assert f"is a {kind}, but must be a regular file" in what


def test_a_file_that_is_far_too_large_is_refused_unread(saved):
    os.truncate(saved.config_path(5), 1 << 40)
    refused(lambda: checkpoint.load(saved), "is larger than")


# safetensors


def header(path, change):
    """Change the header of a safetensors file, as parsed or as bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tensors, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    written = change(tensors)
    written = written if isinstance(written, bytes) else json.dumps(tensors).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data)


DTYPES = ("F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL", "I8", "", "x" * 70_000, None, 5, [], "\ud800")
SHAPES = ([], [6, 0], [-6], [6.0], ["6"], None, 6, [2**63], [10**400], [1] * 70_000)
OFFSETS = ([], [0], [-1, 24], [24, 0], [0, 2**64], [0.5, 1], None, "ab")


@pytest.mark.parametrize(
    "change",
    [
        *(lambda t, name, dtype=dtype: t[name].update(dtype=dtype) for dtype in DTYPES),
        *(lambda t, name, shape=shape: t[name].update(shape=shape) for shape in SHAPES),
        *(lambda t, name, offsets=offsets: t[name].update(data_offsets=offsets) for offsets in OFFSETS),
        lambda t, name: t.update({"x" * 70_000: t[name]}),
        lambda t, name: t.update({name: None}),
        lambda t, name: t[name].clear(),
        lambda t, name: b"[" * 100_000,
        lambda t, name: b"5",
        lambda t, name: b"",
        lambda t, name: b'{"a": {}, "a": {}}',
    ],
)
@pytest.mark.parametrize("name", ["weights", "optimizer"])
def test_an_odd_header_is_refused_in_one_short_line(saved, change, name):
    path = saved.weights_path(5) if name == "weights" else saved.optimizer_path(5)
    tensor = "transformer.ln_f.bias" if name == "weights" else "exp_avg.transformer.ln_f.bias"
    header(path, lambda tensors: change(tensors, tensor))
    refused(lambda: [checkpoint.load(saved).weights(), checkpoint.load(saved).optimizer()], str(path))


def test_a_header_that_claims_to_be_endless_is_refused(saved):
    path = saved.weights_path(5)
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(lambda: checkpoint.load(saved), "its header is cut off")


@pytest.mark.parametrize("count", [-1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("counter", COUNTERS)
def test_a_counter_that_no_run_reaches_is_refused(saved, counter, count):
    path = saved.optimizer_path(5)
    moments = {name: np.ones(shape, np.float32) for name, shape in optimizer_shapes(MODEL, "adamw").items()}
    save_file({**moments, **{name: np.array(count if name == counter else 1) for name in COUNTERS}}, path)
    refused(checkpoint.load(saved).optimizer, f"{path} is damaged: {counter} is {count}")


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [(3, "does not fit its config"), (10_000, "does not fit its config"), (2**31 - 1, "--layers is 2147483647")],
)
def test_a_config_with_more_layers_than_there_are_tensors_costs_no_memory(saved, layers, complaint):
    config = json.loads(saved.config_path(5).read_text())
    config["model"]["num_layers"] = layers
    saved.config_path(5).write_text(json.dumps(config))
    refused(lambda: checkpoint.load(saved), complaint)


# tokenizer.json


def trained(text):
    tokenizer = Tokenizer(300, "byte")
    tokenizer.train_bpe(text)
    return tokenizer


def test_merges_that_double_again_and_again_cost_no_memory(tmp_path):
    path = tmp_path / "tokenizer.json"
    trained("aa " * 9).save(path)
    document = json.loads(path.read_bytes())
    pieces = {piece: id for id, piece in enumerate([*list(document["model"]["vocab"])[:257], *map(str, range(60))])}
    document["model"]["vocab"] = pieces
    document["model"]["merges"] = [["a", "a"], *([str(i), str(i)] for i in range(59))]
    path.write_text(json.dumps(document))
    refused(lambda: Tokenizer.load(path), "it has a merge of '10', which is neither a byte nor made by a merge")


def test_a_tokenizer_that_hugging_face_made_is_refused_by_the_name_of_what_is_amiss(tmp_path):
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE())
    foreign.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False)
    foreign.train_from_iterator(["the cat sat on the mat"], trainer)
    foreign.save(str(tmp_path / "tokenizer.json"))
    refused(lambda: Tokenizer.load(tmp_path / "tokenizer.json"), "it has the decoder None instead of ByteLevel")


# Random contents


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_load_or_are_refused_in_one_line(saved, seed):
    draw = random.Random(seed)
    originals = {path: path.read_bytes() for path in (saved.config_path(5), saved.weights_path(5))}
    loaded = 0
    for _ in range(300):
        path, content = draw.choice(list(originals.items()))
        data = bytearray(content)
        for _ in range(draw.choice([1, 1, 3])):
            at = draw.randrange(min(len(data), 2000))
            odd = draw.choice([b"", b"9" * 30, b"null", b"[", b'"', b"-", b"1e999", b"NaN", draw.randbytes(1)])
            data[at : at + draw.choice([0, 1, 4])] = odd
        path.write_bytes(data)
        message = ""
        try:
            checkpoint.load(saved).weights()
            loaded += 1
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < LONGEST
        path.write_bytes(content)
    assert loaded < 290, "most mutations do harm"
    checkpoint.load(saved).weights()


# Messages


def test_long_values_are_cut_in_messages():
    assert shown("a") == "'a'"
    assert len(shown("a" * 70_000)) < 100
    assert "too long" in shown(10**10_000)
    assert told("x/..tokenizer.json.6gky8ct9.tmp.r9mkokv2.tmp") == "x/tokenizer.json"
    assert told(".hidden") == ".hidden"


def test_importing_reads_no_slow_module():
    code = "import sys, gpt.system.reading; print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
