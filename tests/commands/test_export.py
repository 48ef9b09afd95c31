"""`hipgpt export` writes a directory from which transformers reads the same model and the same tokenizer."""

import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open

from gpt import checkpoint
from gpt.chat_template import JINJA, MARKERS, messages_of, rendered
from gpt.cli import main
from gpt.config import SamplingConfig
from gpt.errors import UserError
from gpt.export import export, model_card
from gpt.generate import draw, load_model
from gpt.ops.cpu.operations import CpuOps
from gpt.pretrained import import_into
from gpt.run import Run
from gpt.tokenizer import Tokenizer
from tests.support.pretrained import TEXT, saved_run

FILES = [
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Save an untrained model's checkpoint: saved(kind="byte", tie_embeddings=False, …)."""

    def save(kind="word", **changes) -> checkpoint.Checkpoint:
        return saved_run(tmp_path / "checkpoints", kind, **changes)

    return save


@pytest.fixture
def exported(saved, tmp_path):
    """The directory of an exported model with ReLU and a head of its own, and the model's checkpoint."""
    found = saved(activation="relu", tie_embeddings=False)
    out = tmp_path / "deep" / "hf"
    assert [path.name for path in export(found, out)] == FILES
    return out, found


def read(path):
    return json.loads(path.read_text())


def test_an_export_is_six_files_with_the_same_permissions(exported):
    out, _ = exported
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "who may read one file may read all"


def test_an_exported_config_describes_the_model(exported):
    config = read(exported[0] / "config.json")
    assert (config["n_embd"], config["n_layer"], config["n_head"], config["n_inner"]) == (12, 2, 3, 20)
    assert (config["activation_function"], config["tie_word_embeddings"]) == ("relu", False)
    assert (config["n_positions"], config["n_ctx"]) == (24, 24)


def test_an_exported_model_ends_texts_with_its_mark(exported):
    out, _ = exported
    end = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    assert end.items() <= read(out / "config.json").items()
    assert read(out / "generation_config.json") == end
    described = read(out / "tokenizer_config.json")
    assert {described[f"{which}_token"] for which in ("bos", "eos", "pad")} == {"<|endoftext|>"}


def test_exported_weights_have_a_head_of_their_own_if_the_model_has_one(exported):
    out, found = exported
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("lm_head.weight").get_shape() == [found.model_config.vocab_size, 12]


def test_an_exported_tokenizer_encodes_as_the_runs(exported):
    out, found = exported
    described = read(out / "tokenizer_config.json")
    assert described["model_input_names"] == ["input_ids", "attention_mask"]
    assert (described["model_max_length"], described["clean_up_tokenization_spaces"]) == (24, False)
    ours = Tokenizer.load(found.run.tokenizer_path)
    assert Tokenizer.load(out / "tokenizer.json").encode(TEXT) == ours.encode(TEXT)


def test_a_model_of_conversations_brings_their_template_and_the_ends_of_an_answer(saved, tmp_path):
    export(saved(special_tokens=[*MARKERS.values(), "<other>"]), tmp_path / "hf")
    assert json.loads((tmp_path / "hf/tokenizer_config.json").read_text())["chat_template"] == JINJA
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"] == [0, 1, 2, 3]
    export(saved(name="s"), tmp_path / "other")
    assert "chat_template" not in json.loads((tmp_path / "other/tokenizer_config.json").read_text())


def test_the_model_card_has_the_numbers_of_the_run(saved, tmp_path):
    found = saved()
    log = [{"step": 1, "loss": 4.0}, {"step": 2, "val_loss": 3.5, "val_fraction": 0.05}, {"step": 3, "loss": 3.25}]
    log.append({"step": 4, "loss": 9.0})  # behind the checkpoint
    found.run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in log))
    card = model_card(found)
    for row in (
        "| Layers x width | 2 x 12, 3 heads |", "| Context | 24 tokens |", "| Training loss | 3.2500 at step 3 |",
        "| Validation loss | 3.5000 at step 2, in nats per token |",
        "| Steps | 3 of 768 tokens, adamw, peak rate 0.0003 |",
    ):  # fmt: skip
        assert row in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "nan" not in card
    export(found, tmp_path / "hf")
    imported = import_into(Run("other", tmp_path / "checkpoints"), tmp_path / "hf")
    assert "that was imported by hipgpt" in model_card(imported)
    assert "Steps" not in model_card(imported)


@pytest.mark.parametrize("has_matplotlib", [True, False])
def test_the_model_card_shows_the_curves_of_the_training_if_matplotlib_can_draw_them(
    saved, tmp_path, monkeypatch, has_matplotlib
):
    if has_matplotlib:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found, out = saved(), tmp_path / "hf"
    found.run.metrics_path.write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "loss": 3.5}\n')
    options = ["export", "--run-name", "r", "--runs-dir", str(found.run.path.parent), "--out", str(out)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert ("![Curves of the training](curves.png)" in (out / "README.md").read_text()) == has_matplotlib
    if has_matplotlib:
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "curves.png").exists() == has_matplotlib
    assert sorted(result.output.split()) == sorted(map(str, out.iterdir()))


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|end_of_text|>", None])
def test_the_token_that_ends_a_text_is_the_tokenizers_wherever_its_id_is(saved, tmp_path, end):
    found = saved("byte")
    document = json.loads(found.run.tokenizer_path.read_text(encoding="utf-8"))
    vocab, (mark,) = document["model"]["vocab"], document["added_tokens"]
    del document["model"]["vocab_limit"]
    last = len(vocab) - 1
    vocab = {piece: id - 1 for piece, id in vocab.items() if id}  # the mark moves from the first id to the last
    mark["id"], mark["content"] = last, end or "<|user|>"
    document["model"]["vocab"] = {**vocab, mark["content"]: last}
    found.run.tokenizer_path.write_text(json.dumps(document), encoding="utf-8")
    export(found, tmp_path / "hf")
    id = None if end is None else last
    config, generation, described = (
        json.loads((tmp_path / "hf" / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    for which in ("bos", "eos", "pad"):
        assert config[f"{which}_token_id"] == generation[f"{which}_token_id"] == id
        assert described[f"{which}_token"] == end


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


@pytest.mark.parametrize("name", [".", "{here}"])
def test_the_directory_in_which_the_command_runs_is_refused_because_it_would_be_replaced(
    saved, tmp_path, monkeypatch, name
):
    found, here = saved(), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match=r"^--out \S+ is the directory in which this command runs: name another one$"):
        export(found, Path(name.format(here=here)))
    assert not any(here.iterdir())


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


@pytest.fixture
def peer(saved, tmp_path):
    """Export a model, and load it as a user of transformers does: peer(kind="byte") → ours, their tokenizer, model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)

    def load(kind, **changes):
        found = saved(kind, **changes)
        export(found, tmp_path / "hf")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        assert isinstance(model, transformers.GPT2LMHeadModel)
        return found, theirs, model

    return load


def our_logits(found, ids) -> np.ndarray:
    return load_model(found, CpuOps()).logits(np.array([ids], np.int32))[0]


def our_continuation(found, ids, count) -> list[int]:
    """The likeliest `count` ids behind `ids`, or fewer if `<|endoftext|>` comes first."""
    sampling = SamplingConfig(temperature=0)
    return list(draw(load_model(found, CpuOps()), ids, count, sampling, 0, 0, found.model_config.max_seq_len))


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte"])
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"activation": "relu"}, {"dropout": 0.2}])
def test_transformers_gives_our_ids_and_logits_from_the_directory_alone(peer, kind, changes):
    found, theirs, model = peer(kind, **changes)
    ours = Tokenizer.load(found.run.tokenizer_path)
    for text in (TEXT, "the cat<|endoftext|>sat", " two  spaces\n", "日本"):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    inputs = theirs(TEXT, return_tensors="pt", truncation=True)  # as many tokens as the model's context holds
    assert inputs["input_ids"].shape == (1, 24)
    logits = model(**inputs).logits[0].detach().numpy()
    assert np.abs(logits - our_logits(found, ours.encode(TEXT)[:24])).max() < 1e-4


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte", "char"])
def test_the_chat_template_gives_the_ids_on_which_the_model_was_trained(peer, kind):
    found, theirs, _ = peer(kind, special_tokens=[*MARKERS.values()])
    ours = Tokenizer.load(found.run.tokenizer_path)
    talk = [("system", "the mat .\n"), ("user", " the dog <b> {{ 1 }} "), ("assistant", ""), ("user", "sat\n\non 日本")]
    messages = [{"role": role, "content": content} for role, content in talk]
    for answer in (False, True):
        said = theirs.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)
        assert said == rendered(messages_of(messages), answer)
        ids = theirs.apply_chat_template(messages, add_generation_prompt=answer, return_dict=False)
        assert ids == ours.encode(said)
    with pytest.raises(Exception, match="system, user or assistant, not boss"):
        theirs.apply_chat_template([{"role": "boss", "content": "the cat"}])


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte"])
def test_their_model_continues_the_ids_of_their_tokenizer_as_ours_does(peer, kind):
    found, theirs, model = peer(kind)
    for text in ("the cat sat", "the dog", "日本"):
        inputs = theirs(text, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
        expected = ids + our_continuation(found, ids, 8)
        assert written == expected or written == [*expected, 0], "generate keeps the end-of-text that it stops at"


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["word", "byte"])
def test_prompts_of_several_lengths_are_padded_and_change_nothing_for_one_another(peer, kind):
    found, theirs, model = peer(kind)
    texts = ["the cat sat on the mat", "the dog"]
    apart = [theirs(text)["input_ids"] for text in texts]
    padded = theirs(texts, return_tensors="pt", padding=True)
    logits = model(**padded).logits.detach().numpy()
    for row, ids in zip(logits, apart, strict=True):
        assert np.abs(row[: len(ids)] - our_logits(found, ids)).max() < 1e-4
    theirs.padding_side = "left"  # transformers wants this for generating
    padded = theirs(texts, return_tensors="pt", padding=True)
    written = model.generate(**padded, max_new_tokens=8, do_sample=False).tolist()
    for row, ids in zip(written, apart, strict=True):
        continuation = row[padded["input_ids"].shape[1] :]
        expected = our_continuation(found, ids, 8)
        assert continuation[: len(expected)] == expected
        assert not any(continuation[len(expected) :])


@pytest.mark.peers
def test_a_pipeline_writes_prompts_and_their_continuations(peer):
    transformers = pytest.importorskip("transformers")
    found, theirs, model = peer("byte")
    ours = Tokenizer.load(found.run.tokenizer_path)
    texts = ["the cat sat on the mat", "the dog"]
    theirs.padding_side = "left"  # transformers 5 sets this by itself
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=theirs, batch_size=2)
    written = [each[0]["generated_text"] for each in pipeline(texts, max_new_tokens=8, do_sample=False)]
    prompts = [ours.encode(text) for text in texts]
    assert written == [ours.decode(ids + our_continuation(found, ids, 8)) for ids in prompts]


@pytest.mark.peers
def test_a_pipeline_of_the_directory_works_without_a_warning(saved, tmp_path):
    transformers, said = pytest.importorskip("transformers"), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    logging.getLogger("transformers").addHandler(handler)
    export(saved("byte"), tmp_path / "hf")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            write = transformers.pipeline("text-generation", model=str(tmp_path / "hf"))
            (written,) = write("the cat", max_new_tokens=4, do_sample=False)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert written["generated_text"].startswith("the cat")
    messages = [record.getMessage() for record in said]
    assert [text for text in messages if not text.startswith("Device set to use")] == []  # some versions always say it
    assert [str(each.message) for each in warned if issubclass(each.category, (UserWarning, FutureWarning))] == []


@pytest.mark.peers
def test_words_stay_apart_in_a_pipeline_whose_prompt_ends_with_a_space(peer):
    transformers = pytest.importorskip("transformers")
    found, theirs, model = peer("word")
    ours = Tokenizer.load(found.run.tokenizer_path)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=theirs)
    (written,) = pipeline("the cat sat ", max_new_tokens=8, do_sample=False)
    ids = ours.encode("the cat sat ")
    expected = ours.decode(ids + our_continuation(found, ids, 8))
    assert written["generated_text"].split() == expected.split()  # transformers 4 adds a second space after ours


@pytest.mark.peers
def test_a_model_saved_again_by_transformers_is_the_same(peer, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, theirs, model = peer("byte")
    model.save_pretrained(tmp_path / "again")
    theirs.save_pretrained(tmp_path / "again")
    theirs_again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    model_again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    inputs = theirs("the cat sat", return_tensors="pt")
    assert theirs_again("the cat sat")["input_ids"] == inputs["input_ids"][0].tolist()
    assert model_again(**theirs_again("the cat sat", return_tensors="pt")).logits.equal(model(**inputs).logits)
