"""What `hipgpt export` writes, and that transformers reads the same model and the same tokenizer from it."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from gpt import checkpoint
from gpt.config import ModelConfig, TrainConfig
from gpt.errors import UserError
from gpt.export import export
from gpt.generate import load_model
from gpt.model import GPT
from gpt.ops.cpu import CpuOps
from gpt.optim import optimizer_shapes
from gpt.run import Run
from gpt.tokenizer import Tokenizer

TEXT = "the cat sat on the mat and the dog sat on the log . naïve 日本語 ends here .\n" * 3
NOISE = 0.4  # enough for the two forms of GELU to differ by more than the tolerance
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def saved(tmp_path):
    """Save an untrained model's checkpoint: saved(kind="byte", tie_embeddings=False, …)."""

    def save(kind="word", **changes) -> checkpoint.Checkpoint:
        run = Run("r", tmp_path / "checkpoints")
        run.path.mkdir(parents=True)
        tokenizer = Tokenizer(300, kind)
        tokenizer.train_bpe(TEXT)
        tokenizer.save(run.tokenizer_path)
        shape = {"max_seq_len": 24, "embed_dim": 12, "num_heads": 3, "ff_hidden_dim": 20, "num_layers": 2}
        model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape, **changes), CpuOps(threads=1))
        model.initialize(seed=1)
        named = model.weights.named
        for view in named.values():
            view += NOISE * np.random.default_rng(2).standard_normal(view.shape)  # no bias stays 0, no norm stays 1
        counters = {"adam_step": 0, "skipped": 0, "skipped_in_a_row": 0}
        shapes = optimizer_shapes(model.config, "adamw")
        optimizer = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        return checkpoint.save(run, 3, model.config, TrainConfig(), named, optimizer, counters)

    return save


def test_an_export_is_four_files_that_describe_the_model(saved, tmp_path):
    found = saved(activation="relu", tie_embeddings=False)
    out = tmp_path / "deep" / "hf"
    assert [path.name for path in export(found, out)] == FILES == sorted(path.name for path in out.iterdir())
    config = json.loads((out / "config.json").read_text())
    assert (config["n_embd"], config["n_layer"], config["n_head"], config["n_inner"]) == (12, 2, 3, 20)
    assert (config["activation_function"], config["tie_word_embeddings"]) == ("relu", False)
    assert config["n_positions"] == 24
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("lm_head.weight").get_shape() == [found.model.vocab_size, 12]
    described = json.loads((out / "tokenizer_config.json").read_text())
    assert (described["bos_token"], described["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert (described["model_max_length"], described["clean_up_tokenization_spaces"]) == (24, False)
    ours = Tokenizer.load(found.run.tokenizer_path)
    assert Tokenizer.load(out / "tokenizer.json").encode(TEXT) == ours.encode(TEXT)
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "who may read one file may read all"


def test_an_empty_directory_is_used_and_any_other_is_refused(saved, tmp_path):
    found = saved()
    out = tmp_path / "hf"
    out.mkdir()
    export(found, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        export(found, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="exists already"):
        export(found, out / "config.json")


def test_a_failing_export_leaves_nothing_behind(saved, tmp_path, monkeypatch):
    found = saved()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt.export.write_tensors", full)
    with pytest.raises(UserError, match=r"^cannot write .*hf: No space left on device$"):
        export(found, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing_behind(saved, tmp_path):
    resource = pytest.importorskip("resource")
    found = saved()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write [^\n]*hf: [^\n]*too large[^\n]*$"):
            export(found, tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_tokenizer_that_is_missing_or_not_the_models_is_refused(saved, tmp_path):
    found = saved()
    other = Tokenizer(100)
    other.train_bpe("something else entirely")
    other.save(found.run.tokenizer_path)
    with pytest.raises(UserError, match=r"tokens, but the model"):
        export(found, tmp_path / "hf")
    found.run.tokenizer_path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        export(found, tmp_path / "hf")


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte"])
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"activation": "relu"}, {"dropout": 0.2}])
def test_transformers_gives_our_logits_and_ids_from_the_directory_alone(saved, tmp_path, kind, changes):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    found = saved(kind, **changes)
    export(found, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = Tokenizer.load(found.run.tokenizer_path)
    for text in (TEXT, "the cat<|endoftext|>sat", " two  spaces\n", "日本"):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert isinstance(peer, transformers.GPT2LMHeadModel)
    peer.eval()
    ids = np.array([ours.encode(TEXT)[:24]], np.int32)
    with torch.no_grad():
        logits = peer(torch.from_numpy(ids).long()).logits.numpy()
    assert np.abs(logits - load_model(found, CpuOps()).logits(ids)).max() < 1e-4
