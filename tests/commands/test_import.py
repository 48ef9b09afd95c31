"""`hipgpt import` makes a run of a Hugging Face directory, with the same weights, logits and texts."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import gpt
from gpt import checkpoint, huggingface
from gpt.chat_template import JINJA
from gpt.cli import main
from gpt.config import SamplingConfig
from gpt.errors import UserError
from gpt.export import export
from gpt.generate import draw, load_model
from gpt.ops.cpu.operations import CpuOps
from gpt.pretrained import find, import_into
from gpt.run import Run
from gpt.system.tensors import TensorFile
from gpt.tokenizer import Tokenizer
from tests.support.pretrained import SHAPE, TEXT, saved_run, tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory with a small model."""
    export(saved_run(tmp_path / "first"), tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def run(tmp_path):
    return Run("new", tmp_path / "checkpoints")


def change(directory: Path, **values) -> None:
    """Set keys of config.json; a value of ... removes the key."""
    path = directory / "config.json"
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def rewrite(directory: Path, edit) -> None:
    """Save model.safetensors with other tensors: those of `edit`, a function of the tensors by name."""
    save_file(edit(load_file(directory / WEIGHTS)), directory / WEIGHTS)


def shard(directory: Path) -> list[Path]:
    """Spread model.safetensors over two files, with an index."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names, files = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, file in enumerate(files):
        save_file({name: tensors[name] for name in names[number::2]}, directory / file)
    weight_map = {name: files[place % 2] for place, name in enumerate(names)}
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return [directory / file for file in files]


def refused(run: Run, directory: Path) -> str:
    """The one line of the error with which an import ends. Asserts that it leaves no run."""
    with pytest.raises(UserError) as error:
        import_into(run, directory)
    assert "\n" not in str(error.value)
    assert not run.path.exists()
    return str(error.value)


def weights_of(run: Run) -> dict[str, np.ndarray]:
    return dict(checkpoint.load(run).weights())


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "activation": "relu"}])
def test_an_import_that_is_exported_again_has_the_same_bits(tmp_path, run, changes):
    export(saved_run(tmp_path / "first", **changes), tmp_path / "hf")
    export(import_into(run, tmp_path / "hf"), tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "hf" / WEIGHTS).read_bytes()
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((tmp_path / "hf" / name).read_text())


def test_the_command_makes_a_run_that_generates_at_once(directory, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, [*map(str, arguments), "--runs-dir", str(tmp_path / "runs")])

    result = call("import", directory, "--run-name", "x")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Imported ")
    assert f"hipgpt train --from x --runs-dir {tmp_path / 'runs'} --data-path" in result.output
    written = call("generate", "--run-name", "x", "--prompt", "the cat", "--device", "cpu", "--num-tokens", 5)
    assert written.output.startswith("the cat")
    assert " imported " in CliRunner().invoke(main, ["runs", "--runs-dir", str(tmp_path / "runs")]).output


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_that_is_not_ours_is_named(tmp_path, directory, file):
    def imported(template, name):
        (directory / file).write_text(json.dumps({"chat_template": template}) if file.endswith("json") else template)
        return CliRunner().invoke(main, ["import", str(directory), "--run-name", name, "--runs-dir", str(tmp_path)])

    other = imported("{% for message in messages %}[INST] {{ message['content'] }}{% endfor %}", "x")
    assert other.output.startswith(f"Note: {directory / file} has a chat template, which is not imported: hipgpt has")
    assert imported(JINJA, "y").output.startswith("Imported ")


def test_names_without_the_prefix_and_stored_masks_are_read_too(directory, run):
    before = load_file(directory / WEIGHTS)
    mask = {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.uint8), "h.1.attn.masked_bias": np.zeros((), np.float32)}
    rewrite(directory, lambda tensors: {k.removeprefix("transformer."): v for k, v in tensors.items()} | mask)
    import_into(run, directory)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in weights_of(run).items())


def test_a_tensor_under_two_names_is_refused(directory, run):
    """One of them would be left out without a word."""
    rewrite(directory, lambda tensors: tensors | {"wte.weight": tensors["transformer.wte.weight"] + 1})
    assert "has transformer.wte.weight and wte.weight, which are one tensor" in refused(run, directory)


def test_shards_are_read_by_their_index(directory, run):
    before = load_file(directory / WEIGHTS)
    shard(directory)
    import_into(run, directory)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in weights_of(run).items())


def test_half_precision_becomes_the_same_numbers_in_float32(directory, run):
    rewrite(directory, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    halves = load_file(directory / WEIGHTS)
    import_into(run, directory)
    assert all(np.array_equal(tensor, halves[name]) for name, tensor in weights_of(run).items())


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 0.0, 3.0e38, 1e-40], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    save_file({"x": upper}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes().replace(b'"U16"', b'"BF16"')  # one byte longer; a space follows
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length + 1]
    padded = header.rstrip().ljust(-(-len(header.rstrip()) // 8) * 8)
    (tmp_path / "file").write_bytes(len(padded).to_bytes(8, "little") + padded + upper.tobytes())
    found = TensorFile(tmp_path / "file", []).float32("x")
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), values.view(np.uint32) & 0xFFFF0000)


def pad(directory: Path, size: int) -> None:
    """Give the model `size` embeddings of tokens, more than its tokenizer has."""
    wte = "transformer.wte.weight"

    def longer(tensors):
        found = tensors[wte]
        return tensors | {wte: np.concatenate([found, np.full((size - len(found), found.shape[1]), 0.5, np.float32)])}

    rewrite(directory, longer)
    change(directory, vocab_size=size)


@pytest.mark.parametrize("multiple", [8, 64])  # as transformers resizes, with pad_to_multiple_of, and as nanoGPT has it
def test_embeddings_that_pad_a_vocabulary_get_special_tokens_and_keep_their_bits(directory, run, tmp_path, multiple):
    before = Tokenizer.load(directory / "tokenizer.json")
    size = (before.vocab_size // multiple + 1) * multiple
    pad(directory, size)
    notes = []
    made = import_into(run, directory, notes.append)
    first, unused = f"<|unused{before.vocab_size}|>", size - before.vocab_size
    assert notes == [
        f"Note: {unused} of the model's {size} embeddings have no token in {directory}: they get special tokens, from "
        f"{first} on"
    ]
    after = Tokenizer.load(run.tokenizer_path)
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.encode(first) == [before.vocab_size]
    export(made, tmp_path / "again")
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert all(np.array_equal(tensor, again[name]) for name, tensor in load_file(directory / WEIGHTS).items())


@pytest.mark.parametrize("more", [1, 64 * 20])
def test_a_tokenizer_with_too_few_tokens_is_refused_if_the_others_are_no_padding(directory, run, more):
    has = Tokenizer.load(directory / "tokenizer.json").vocab_size
    size = -(-has // 64) * 64 + more
    pad(directory, size)
    assert f"has {has} tokens, but the model {size}: put back the tokenizer" in refused(run, directory)


def test_keys_that_a_config_leaves_out_have_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    config = huggingface.read_config(tmp_path / "config.json")
    assert (config.vocab_size, config.max_seq_len, config.embed_dim, config.num_layers) == (50257, 1024, 768, 12)
    assert (config.num_heads, config.ff_hidden_dim, config.activation) == (12, 3072, "gelu")
    assert (config.tie_embeddings, config.dropout) == (True, 0.1)


def test_memory_stays_at_one_tensor(directory, run, monkeypatch):
    """`write_tensors` asks for each tensor when its bytes are due."""
    held = []
    read = TensorFile.float32
    monkeypatch.setattr(TensorFile, "float32", lambda file, name: held.append(name) or read(file, name))
    found = huggingface.Weights(directory, huggingface.read_config(directory / "config.json"))
    assert held == []
    assert found["transformer.wpe.weight"].shape == (24, 12)
    assert held == ["transformer.wpe.weight"]


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"model_type": "llama"}, "has model_type 'llama', but .* 'gpt2'"),
        ({"model_type": ...}, "it has no model_type"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, r"architectures \['GPT2DoubleHeadsModel'\]"),
        ({"activation_function": "gelu"}, "activation_function 'gelu', but .* 'gelu_new' or .* 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06, but .* 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads \{'0': \[1\]\}"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* have none"),
        ({"attn_pdrop": 0.3}, "embd_pdrop 0, attn_pdrop 0.3, resid_pdrop 0, but hipgpt has one dropout"),
        ({"n_head": 5}, "--dim 12 is not a multiple of --heads 5"),
        ({"n_head": "3"}, "n_head is '3', but must be an integer"),
        ({"n_inner": 24}, r"c_fc.weight is F32 \[12, 20\], but must be F32 or F16 or BF16 \[12, 24\]"),
        ({"n_layer": 1}, r"has the tensor transformer.h.1.\S+, which is not part of a GPT-2"),
        ({"n_layer": 3}, "has no tensor transformer.h.2.ln_1.weight"),
        ({"tie_word_embeddings": False}, "has no tensor lm_head.weight"),
        ({"vocab_size": 7}, r"wte.weight is F32 \[\d+, 12\], but must be .* \[7, 12\]"),
    ],
)
def test_a_model_that_is_not_ours_is_refused_by_the_name_of_what_differs(directory, run, values, complaint):
    change(directory, **values)
    pytest.raises(UserError, huggingface.read_directory, directory).match(complaint)
    refused(run, directory)


def test_a_tokenizer_of_another_size_is_refused(directory, run):
    other = Tokenizer(260, "byte")
    other.train_bpe(TEXT)
    other.save(directory / "tokenizer.json")
    assert "has 260 tokens, but the model" in refused(run, directory)
    (directory / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(run, directory)


def test_a_head_that_is_not_tied_though_the_config_says_so_is_refused(directory, run):
    head = load_file(directory / WEIGHTS)["transformer.wte.weight"]
    rewrite(directory, lambda tensors: tensors | {"lm_head.weight": head + 1})
    assert "lm_head.weight of its own" in refused(run, directory)
    rewrite(directory, lambda tensors: tensors | {"lm_head.weight": head})
    import_into(run, directory)


def test_a_damaged_file_is_refused_in_one_line(directory, run):
    whole = (directory / WEIGHTS).read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], b"\xff" * 100, whole + b"0"):
        (directory / WEIGHTS).write_bytes(damaged)
        assert "model.safetensors is damaged" in refused(run, directory)
    (directory / WEIGHTS).unlink()
    assert "model.safetensors is missing" in refused(run, directory)
    (directory / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refused(run, directory)
    assert "does not exist" in refused(run, directory / "nowhere")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_written(directory, run, value):
    def edit(tensors):
        tensors["transformer.h.1.mlp.c_fc.bias"][3] = value
        return tensors

    rewrite(directory, edit)
    assert "transformer.h.1.mlp.c_fc.bias has values that are not finite" in refused(run, directory)


def test_a_shard_that_is_missing_or_lacks_a_tensor_is_named(directory, run):
    first, second = shard(directory)
    content = second.read_bytes()
    second.unlink()
    assert "model-00002-of-00002.safetensors is missing" in refused(run, directory)
    shutil.copy(first, second)
    assert "lacks the tensor" in refused(run, directory)
    second.write_bytes(content)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["transformer.wte.weight"] = "../elsewhere.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    assert "no safetensors file beside it" in refused(run, directory)


@pytest.mark.parametrize("name", ["", "model.safetensors", "config.json"])
def test_a_directory_in_place_of_a_run_is_told_how_to_become_one(directory, name):
    with pytest.raises(UserError, match=re.escape(f"hipgpt import {directory} --run-name NAME")):
        gpt.load(directory / name, device="cpu")
    result = CliRunner().invoke(main, ["eval", "--run-name", "hf", "--runs-dir", str(directory.parent)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert f"{directory} has a model of Hugging Face's, not a checkpoint: make a run of it with" in result.output


def test_adapters_without_their_model_are_named(directory, run):
    (directory / "config.json").rename(directory / "adapter_config.json")
    assert f"{directory} has the adapters of a model alone: merge them with it" in refused(run, directory)
    with pytest.raises(UserError, match="has the adapters of a model alone"):
        find(str(directory), run.path.parent)


def test_a_file_beside_the_weights_does_not_stand_for_them(directory, run):
    """Someone who names the TensorFlow file, or other weights, wants that model, which may be another one."""
    for name in ("tf_model.h5", "model.gguf", "consolidated.safetensors", "README.md"):
        shutil.copy(directory / WEIGHTS, directory / name)
        assert f"{name} is not read: name model.safetensors, or the directory with" in refused(run, directory / name)
    import_into(run, directory / "config.json")


def test_a_model_in_hugging_faces_cache_is_read_and_the_folder_above_it_names_it(directory, run, tmp_path):
    """There the files of a snapshot are links to blobs."""
    entry = tmp_path / "models--openai-community--gpt2"
    snapshot = entry / "snapshots" / "607a30d7"
    snapshot.mkdir(parents=True)
    directory.rename(entry / "blobs")
    for file in (entry / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert f"{entry} is where Hugging Face's cache has a model: name {snapshot}" in refused(run, entry)
    import_into(run, snapshot)


@pytest.mark.parametrize(("dtype", "bits"), [("F64", 64), ("F8_E4M3", 8), ("F8_E8M0", 8), ("I8", 8), ("F4", 4)])
def test_numbers_of_another_kind_are_named_with_a_way_out(directory, run, dtype, bits):
    """A file of 8-bit numbers, say, is neither damaged nor better the next time."""
    content = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][0])
    start = header[last]["data_offsets"][0]
    end = start + bits * math.prod(header[last]["shape"]) // 8
    header[last] |= {"dtype": dtype, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    body = content[8 + length :][:start] + bytes(end - start)
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + body)
    said = refused(run, directory)
    assert f"model.safetensors has {dtype} in {last}, but hipgpt reads F32, F16, BF16: convert the model with" in said


def test_a_pickle_is_never_opened(directory, run):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    for path in (directory, directory / "pytorch_model.bin"):
        assert "pytorch_model.bin is a pickle" in refused(run, path)
        assert "save_pretrained" in refused(run, path)


def test_a_run_that_exists_is_refused_and_stays_as_it_was(directory, run):
    import_into(run, directory)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(UserError, match="run new exists already"):
        import_into(run, directory)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_a_full_disk_leaves_no_run(directory, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt.checkpoint.writing.write_tensors", full)
    assert "cannot save" in refused(run, directory)
    monkeypatch.undo()
    monkeypatch.setattr("gpt.checkpoint.writing.commit", full)
    assert "No space left on device" in refused(run, directory)


def test_a_kill_before_the_last_rename_leaves_nothing_and_one_after_it_leaves_the_run(directory, run, monkeypatch):
    """A kill runs no handler. An exception that is not caught stands for it: the files are looked at in its place."""
    seen = []

    def stop(staged, committed):
        seen.append(sorted(path.name for path in staged.iterdir()))
        seen.append(sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gpt.checkpoint.writing.commit", stop)
        pytest.raises(KeyboardInterrupt, import_into, run, directory)
    assert seen == [["new_step0.safetensors", "new_step0_config.json", "tokenizer.json"], []]
    with monkeypatch.context() as patch:
        patch.setattr("gpt.checkpoint.writing._point_latest_at", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pytest.raises(KeyboardInterrupt, import_into, run, directory)
    assert checkpoint.load(run).step == 0


def test_training_cannot_go_on_from_an_import_and_says_how_to_start(directory, run):
    import_into(run, directory)
    runs = ["--runs-dir", str(run.path.parent)]
    for go_on in (["--resume", "--run-name", "new"], ["--ckpt", str(run.latest_weights_path), "--steps", "3"]):
        result = CliRunner().invoke(main, ["train", *go_on, *runs])
        assert result.exit_code == 2
        assert f"--from new --runs-dir {run.path.parent}\n" in result.output


# ---- beside transformers -------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, {}),
        ({"n_head": 1, "n_inner": 20}, {}),
        ({"activation_function": "relu", "tie_word_embeddings": False}, {}),
        ({"activation_function": "gelu_pytorch_tanh", "reorder_and_upcast_attn": True}, {}),
        ({"n_layer": 3}, {"dtype": "bfloat16", "max_shard_size": "6KB"}),
    ],
)
def test_logits_and_greedy_texts_are_those_of_transformers(tmp_path, run, changes, how):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    made = tokenizer()
    shape = {"vocab_size": made.vocab_size, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3}
    config = transformers.GPT2Config(**(shape | changes), initializer_range=0.4, bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    theirs = theirs.to(getattr(torch, how.get("dtype", "float32")))
    theirs.save_pretrained(tmp_path / "hf", max_shard_size=how.get("max_shard_size", "5GB"))
    assert (tmp_path / "hf" / INDEX).exists() == ("max_shard_size" in how)
    made.save(tmp_path / "hf" / "tokenizer.json")
    theirs = theirs.float()

    found = import_into(run, tmp_path / "hf")
    model, ids = load_model(found, CpuOps()), made.encode(TEXT)[: SHAPE["max_seq_len"]]
    logits = theirs(torch.tensor([ids])).logits[0].detach().numpy()
    assert np.abs(logits - model.logits(np.array([ids], np.int32))[0]).max() < 1e-4
    prompt = ids[:5]
    written = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0, attention_mask=torch.ones(1, 5)
    )
    ours = list(draw(model, prompt, 12, SamplingConfig(temperature=0), 0, 0, 24))
    assert written[0].tolist()[5 : 5 + len(ours)] == ours
    assert not any(written[0].tolist()[5 + len(ours) :])
