"""Adapters beside a model that stays as it is: their gradients, the run that trains them, and what becomes of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gpt import checkpoint, plan, pretrained
from gpt.batches import Batches, token_order
from gpt.chat_template import JINJA
from gpt.cli import main
from gpt.config import LORA, ModelConfig, TrainConfig
from gpt.distributed.ranks import ALONE
from gpt.errors import UserError
from gpt.export import export, export_adapters
from gpt.generate import load_model
from gpt.initialization import initial_weights
from gpt.lora import adapter_names, adapter_shapes, initial_adapters, trained_count
from gpt.model import KVCache, TrainableGPT
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.optim import Optimizer
from gpt.parameters import OF_VOCAB, matrix_names
from gpt.plan import space
from gpt.pretrained import import_into
from gpt.run import Run
from gpt.system.tensors import open_file
from gpt.tokenizer import Tokenizer
from gpt.trainer import TrainStep
from tests.support.differences import both_ways
from tests.support.pretrained import TEXT, saved_run
from tests.support.ranks import on_ranks
from tests.support.runs import files

MODEL = ModelConfig(vocab_size=37, max_seq_len=9, embed_dim=24, num_heads=2, ff_hidden_dim=40, num_layers=2)
LARGE = ModelConfig(
    vocab_size=50_257, max_seq_len=1024, embed_dim=1280, num_heads=20, ff_hidden_dim=5120, num_layers=36
)
BATCH, RANK, SEED = 3, 4, 2
# As in test_model_on_devices.py, with 28 roundings per layer in place of 12: the inner sums and the totals of four
# adapters are rounded in each direction too. sqrt(2 · 28) · 2^-8 = 2.9 %, and twice that because errors are amplified.
BF16_GRADIENT = 0.06


def noise(shapes, size=0.3):
    """Tensors with which every path carries a significant gradient."""
    draw = np.random.default_rng(4)
    return {name: (size * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def build(ops=None, lora=RANK, config=MODEL, recompute=False, adapters=None):
    model = TrainableGPT(config, ops or CpuOps(threads=1, dtype="float64"), BATCH, recompute, lora)
    model.initialize(SEED)
    for name, tensor in (adapters or noise(adapter_shapes(config, lora)) if lora else {}).items():
        model.ops.copy(tensor, out=model.adapters.named[name])
    model.ops.copy(np.array([8, 1], np.uint32), out=model.dropout_key)
    return model


def tokens(number=0):
    drawn = np.random.default_rng(number).integers(0, MODEL.vocab_size, (BATCH, MODEL.max_seq_len + 1))
    return tuple(np.ascontiguousarray(part, np.int32) for part in (drawn[:, :-1], drawn[:, 1:]))


def loss_and_gradients(model, number=0):
    ops, (ids, labels) = model.ops, tokens(number)
    ops.clear(model.gradients.flat)
    ops.clear(model.metrics)
    arrays = [ops.from_host(x) for x in (ids, labels, token_order(ids, model.sequences))]
    model.loss_and_gradients(*arrays, ops.from_host(np.full(1, 1 / ids.size, np.float32)))
    return ops.to_host(model.metrics)[0] / ids.size


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_gradients_are_the_slopes_of_the_loss(activation, dropout):
    """The bound is that of test_model.py; 1 / 27 is rounded to float32, which is off by 2e-8 of a slope of about 1."""
    config = ModelConfig(**{**MODEL.to_json(), "dropout": dropout, "activation": activation})
    model = build(config=config, recompute=True)
    loss_and_gradients(model)
    gradients = {name: view.copy() for name, view in model.gradients.named.items()}
    rng, h = np.random.default_rng(2), 1e-5
    for name, view in model.adapters.named.items():
        direction, along, against = both_ways(view, rng, h, lambda: loss_and_gradients(model))
        assert np.sum(gradients[name] * direction) == pytest.approx((along - against) / (2 * h), abs=3e-7), name
        assert np.linalg.norm(gradients[name]) > 1e-4, "a gradient that is worth comparing"


def test_gradients_are_those_of_the_merged_weights_contracted():
    """d loss / d a = b^T (d loss / d W)^T and d loss / d b = (d loss / d W)^T a^T, if W + a^T b^T takes the place of W.
    In float64 all sums are of some hundred terms."""
    model, whole = build(), build(lora=None)
    for name in matrix_names(MODEL):
        a, b = (model.adapters.named[each] for each in adapter_names(name))
        whole.weights.named[name] += a.T @ b.T
    assert loss_and_gradients(model) == pytest.approx(loss_and_gradients(whole), rel=1e-13)
    for name in matrix_names(MODEL):
        (a, b), dw = adapter_names(name), whole.gradients.named[name]
        for mine, contracted in (
            (a, model.adapters.named[b].T @ dw.T),
            (b, dw.T @ model.adapters.named[a].T),
        ):
            size = np.linalg.norm(contracted)
            assert np.linalg.norm(model.gradients.named[mine] - contracted) <= 1e-12 * size, mine


def test_blocks_that_are_computed_again_give_the_same_bits():
    kept, again = (build(CpuOps(threads=1), recompute=recompute) for recompute in (False, True))
    assert loss_and_gradients(kept) == loss_and_gradients(again)
    assert kept.gradients.flat.any()
    assert np.array_equal(kept.gradients.flat, again.gradients.flat)


def test_gradients_that_begin_anew_forget_what_was_there():
    model, (ids, labels) = build(CpuOps(threads=1)), tokens()
    loss_and_gradients(model)
    once = model.gradients.flat.copy()
    for view in model.gradients.named.values():
        view[...] = np.nan
    model.loss_and_gradients(ids, labels, token_order(ids), np.full(1, 1 / ids.size, np.float32), fresh=True)
    assert np.array_equal(model.gradients.flat, once)


def test_a_model_begins_with_the_loss_of_its_base_to_the_bit():
    ids, labels = tokens()
    model = build(CpuOps(threads=1), adapters=dict(initial_adapters(MODEL, RANK, seed=5)))
    base = build(CpuOps(threads=1), lora=None)
    for each in (model, base):
        each.loss(ids, labels)
    assert model.metrics.tolist() == base.metrics.tolist()
    assert np.array_equal(model.logits(ids), base.logits(ids))


def test_first_adapters_are_pefts_and_follow_from_the_seed():
    first, again, other = (dict(initial_adapters(MODEL, RANK, seed)) for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert np.array_equal(tensor, again[name])
        if name.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert not np.array_equal(tensor, other[name])
            assert 0.8 * bound < np.abs(tensor).max() <= bound  # of 96 numbers or more


def test_a_text_is_decoded_with_the_adapters():
    """Products in another order: some hundred roundings of 2^-24."""
    model, ids = build(CpuOps(threads=1)), tokens()[0][:1]
    whole, cache = model.logits(ids)[0], KVCache.allocate(MODEL, model.ops, *np.zeros((2, 1), np.int32))
    model.read(ids[:, :4], cache)
    for position in range(4, MODEL.max_seq_len):
        cache.start[...] = position
        found = model.decode(ids[:, position], cache)[0, : MODEL.vocab_size]
        np.testing.assert_allclose(found, whole[position], atol=1e-5 * np.abs(whole).max())
    assert not np.allclose(whole, build(CpuOps(threads=1), lora=None).logits(ids)[0], atol=0.01)


def test_a_step_on_every_device_follows_the_cpus(ops):
    """As in test_model_on_devices.py. The base does not move. Rank 1 makes matrices that are their own transposes."""
    lora, results = RANK if ops.low_precision else 1, []
    for device in (ops, CpuOps(threads=1)):
        model = build(device, lora)
        optimizer = Optimizer(model, TrainConfig(lora=lora))
        optimizer.initialize(noise(adapter_shapes(MODEL, lora)).items())
        before, first = device.to_host(model.weights.flat).copy(), loss_and_gradients(model)
        gradients = {name: device.to_host(view).copy() for name, view in model.gradients.named.items()}
        optimizer.step(device.from_host(np.full(1, 1e-2, np.float32)))
        assert np.array_equal(device.to_host(model.weights.flat), before)
        copies = {name: device.to_host(view).copy() for name, view in model.adapters.named.items()}
        results.append((first, loss_and_gradients(model), gradients, copies, optimizer.weights_on_host()))
    (*losses, gradients, copies, exact), (*expected, reference, _, _) = results
    bound = BF16_GRADIENT if ops.low_precision else 1e-3
    np.testing.assert_allclose(losses, expected, rtol=bound)
    for name, gradient in reference.items():
        assert np.linalg.norm(gradients[name] - gradient) <= bound * np.linalg.norm(gradient), name
        np.testing.assert_allclose(copies[name], exact[name], rtol=2**-8 if ops.low_precision else 0)


def test_a_text_is_decoded_with_the_adapters_on_every_device(ops):
    """As in test_model_on_devices.py, with the roundings of an adapter."""
    model, ids = build(ops), tokens()[0][:1, :4].copy()
    expected = model.logits(ops.from_host(ids))[0, -1]
    cache = KVCache.allocate(MODEL, ops, ops.from_host(np.full(1, 3, np.int32)), ops.zeros(1, "int32"))
    model.read(ops.from_host(ids[:, :3].copy()), cache)
    found = ops.to_host(model.decode(ops.from_host(ids[:, 3].copy()), cache))[0, : MODEL.vocab_size]
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=size * (28 * 2**-8 if ops.low_precision else 1e-5))


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_train_the_adapters_as_one_does(sharded):
    """Gradients are the same sums of four batches in another order: a few roundings of 2^-24 of the largest."""
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, 400).astype(np.uint16)

    def train(ranks):
        config = TrainConfig(batch_size=2, accumulate=4, lora=RANK, total_steps=3, learning_rate=1e-3)
        data = Batches(ids, 2, MODEL.max_seq_len, sampling="shuffled", seed=1, val_fraction=0)
        step = TrainStep(MODEL, config, data, CpuOps(threads=1), ranks)
        step.model.initialize(SEED)
        step.optimizer.initialize(noise(adapter_shapes(MODEL, RANK)).items())
        step.run(1)
        return float(step.optimizer.norm[0]), step.optimizer.weights_on_host(), step.optimizer.tensors_on_host()

    (one,), (two, _) = on_ranks(1, train), on_ranks(2, train, sharded)
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    for mine, theirs in zip(two[1:], one[1:], strict=True):
        assert mine.keys() == theirs.keys()
    for name, moment in one[2].items():  # after one step the first moment is a multiple of the gradient
        np.testing.assert_allclose(two[2][name], moment, rtol=1e-4, atol=1e-5 * np.abs(moment).max(), err_msg=name)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "recompute"), [(1, False), (4, True)])
def test_774_million_parameters_are_tuned_on_8_gib(batch, recompute):
    """The weights alone take 4 times 2.9 GiB if all are trained."""
    ops = GpuOps(NotingDevice("gfx1100", 32, True), "bf16")
    needed = {
        lora: space._memory_needed(LARGE, TrainConfig(batch_size=batch, recompute=recompute, lora=lora), ops, ALONE)
        for lora in (None, 16)
    }
    assert needed[16] < 8e9 < 14e9 < needed[None]
    assert trained_count(LARGE, 16) == 36 * 16 * 16 * 1280


# ---- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, request):
    """A run `r` to start from, and a text. The parameter, if there is one, has further settings of the model."""
    found = saved_run(tmp_path / "checkpoints", dropout=0.1, ff_hidden_dim=48, **getattr(request, "param", {}))
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    return found


@pytest.fixture
def tune(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        usual = {
            "--from": "r", "--data-path": "text.txt", "--device": "cpu", "--batch": 2, "--log-every": 1, "--steps": 4,
            "--run-name": "tuned", "--lora": 3, "--eval-every": 2, "--lr": 0.01, "--sample-every": 4,
        }  # fmt: skip
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        chosen = [str(each) for pair in (usual | given).items() if pair[1] is not None for each in pair if each != ""]
        result = CliRunner().invoke(main, ["train", *chosen])
        assert result.exit_code == status, result.output
        return result.output

    return run


def saved(name="tuned", **which):
    return checkpoint.load(Run(name, Path("checkpoints")), **which)


def test_a_run_with_adapters_is_complete_resumes_to_the_bit_and_says_what_it_is(tune, source):
    said, weights = tune("--ckpt-every", 2), dict(source.weights())
    assert "LoRA:   adapters of rank 3, 1,152 parameters, beside a model that stays as it is\n" in said
    assert "Disk:   the model takes" in said
    shutil.rmtree("checkpoints/r")
    tune("--from", None, "--resume", "", "--ckpt", "checkpoints/tuned/tuned_step2.safetensors", "--run-name", "cut",
         "--data-path", None, "--steps", None)  # fmt: skip
    assert files("cut", 4) == files("tuned", 4)
    assert all(np.array_equal(tensor, weights[name]) for name, tensor in saved("cut").base().items())
    shown = CliRunner().invoke(main, ["show", "tuned"]).output
    assert (
        "LoRA:        adapters of rank 3, 1,152 parameters, beside a model that stays as it is: checkpoints/r" in shown
    )


def test_the_merged_model_is_the_trained_one(tune):
    """In float32 W + a^T b^T is rounded once, and products are summed up in another order."""
    tune()
    last, ids = saved(), np.arange(24, dtype=np.int32)[None]
    adapters = dict(last.trained())
    assert any(tensor.any() for name, tensor in adapters.items() if name.endswith("lora_B.weight"))
    model = TrainableGPT(last.model_config, CpuOps(threads=1), lora=3)
    model.load(last.base().items())
    Optimizer(model, last.train_config).initialize(adapters.items())
    expected, base = (
        model.logits(ids),
        load_model(checkpoint.load(Run("r", Path("checkpoints"))), model.ops).logits(ids),
    )
    merged = load_model(last, CpuOps(threads=1)).logits(ids)
    np.testing.assert_allclose(merged, expected, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(merged, base, atol=1e-3)
    export(last, Path("hf"))
    found = pretrained.of_directory(Path("hf"))
    assert all(np.array_equal(tensor, found.weights[name]) for name, tensor in last.weights().items())


def test_the_best_checkpoint_and_a_run_that_begins_with_it_have_merged_weights(tune):
    tune()
    best = saved(best=True)
    tune("--from", "checkpoints/tuned/best_checkpoint.safetensors", "--run-name", "again", "--lora", None, "--steps", 1,
         "--lr", 1e-30, "--min-lr", 0, "--weight-decay", 0)  # fmt: skip
    again = saved("again")
    assert all(np.array_equal(tensor, again.weights()[name]) for name, tensor in best.weights().items())
    assert not again.run.base_path.exists()


def test_the_base_that_a_run_left_when_it_was_killed_early_goes_when_the_run_begins_anew(tune):
    base = Path("checkpoints/tuned/base.safetensors")
    base.parent.mkdir()
    base.write_bytes(b"the base of adapters that were never saved")
    tune("--lora", None)
    assert not base.exists()


def test_adapters_are_exported_in_pefts_names(tune):
    tune()
    paths = export_adapters(saved(), Path("adapters"))
    assert [path.name for path in paths] == ["adapter_config.json", "adapter_model.safetensors"]
    assert paths[1].read_bytes() == saved().path.read_bytes()
    config = json.loads(paths[0].read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 3, "checkpoints/r, step 3")
    layout = open_file(paths[1], "").layout
    assert layout["base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"] == ("F32", (3, 12))
    assert layout["base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"] == ("F32", (48, 3))
    assert len(layout) == 2 * 4 * 2


@pytest.mark.parametrize("origin", ["hf", "hf/config.json", "run"])
def test_adapters_name_the_directory_of_the_model_wherever_it_was_tuned(tune, origin):
    export(checkpoint.load(Run("r", Path("checkpoints"))), Path("hf"))
    if origin == "run":
        import_into(Run("run", Path("checkpoints")), Path("hf"))
    tune("--from", origin)
    config, _ = export_adapters(saved(), Path("adapters"))
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(Path("hf").absolute())


@pytest.mark.peers
def test_peft_finds_the_model_of_the_adapters(tune):
    peft, transformers, torch = map(pytest.importorskip, ("peft", "transformers", "torch"))
    export(checkpoint.load(Run("r", Path("checkpoints"))), Path("hf"))
    import_into(Run("run", Path("checkpoints")), Path("hf"))
    tune("--from", "run")
    export_adapters(saved(), Path("adapters"))
    ids = np.arange(24, dtype=np.int32)[None]
    expected = load_model(saved(), CpuOps(threads=1)).logits(ids)
    model = peft.AutoPeftModelForCausalLM.from_pretrained("adapters").eval()
    with torch.no_grad():
        found = model(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def on_conversations(tune):
    """Tunes the model `r` on conversations, for whose markers its vocabulary grows."""
    line = json.dumps({"prompt": "the cat", "completion": "sat on the mat"})
    Path("chat.jsonl").write_text((line + "\n") * 40)
    tune("--data-path", "chat.jsonl")


@pytest.mark.parametrize("source", [{}, {"tie_embeddings": False}], ids=["tied", "untied"], indirect=True)
def test_adapters_for_conversations_come_with_the_embeddings_of_the_markers_and_the_tokenizer(tune, source):
    on_conversations(tune)
    paths = export_adapters(saved(), Path("adapters"))
    assert [path.name for path in paths] == [
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    found, base = open_file(paths[1], ""), saved().base()
    embeddings = [name for name in OF_VOCAB if name in base]
    assert len(embeddings) == 2 - source.model_config.tie_embeddings
    assert all(np.array_equal(found[f"base_model.model.{name}"], base[name]) for name in embeddings)
    assert len(found.layout) == 2 * 4 * 2 + len(embeddings)
    assert "<|assistant|>" in Tokenizer.load(paths[2]).special_tokens
    assert json.loads(paths[3].read_text())["chat_template"] == JINJA


def test_a_run_without_adapters_has_none_to_export(source, tmp_path):
    with pytest.raises(UserError, match="run r has no adapters, as it was trained without --lora: use --format hf"):
        export_adapters(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.peers
def test_peft_loads_the_adapters_and_computes_the_same(tune):
    """Both in float32: logits of a model of two layers, of sums of 48 terms at most."""
    peft, transformers, torch = map(pytest.importorskip, ("peft", "transformers", "torch"))
    tune()
    export(checkpoint.load(Run("r", Path("checkpoints"))), Path("base"))
    export_adapters(saved(), Path("adapters"))
    ids = np.arange(24, dtype=np.int32)[None]
    expected = load_model(saved(), CpuOps(threads=1)).logits(ids)
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    model = peft.PeftModel.from_pretrained(base, "adapters").eval()
    with torch.no_grad():
        found = model(torch.from_numpy(ids).long()).logits.numpy()
        merged = model.merge_and_unload()(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(merged, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.peers
@pytest.mark.parametrize("source", [{}, {"tie_embeddings": False}], ids=["tied", "untied"], indirect=True)
def test_peft_computes_the_same_once_the_model_has_as_many_embeddings_as_the_tokenizer(tune, source):
    peft, transformers, torch = map(pytest.importorskip, ("peft", "transformers", "torch"))
    on_conversations(tune)
    export(checkpoint.load(Run("r", Path("checkpoints"))), Path("base"))
    export_adapters(saved(), Path("adapters"))
    tokenizer = transformers.AutoTokenizer.from_pretrained("adapters")
    talk = [{"role": "user", "content": "the cat"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
    expected = load_model(saved(), CpuOps(threads=1)).logits(np.array([ids], np.int32))
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    base.resize_token_embeddings(len(tokenizer))
    model = peft.PeftModel.from_pretrained(base, "adapters").eval()
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--from", None), "--lora 3 trains adapters beside a trained model: name that model with --from"),
        (("--lora", 0), "--lora is 0, but must be at least 1"),
        (("--lora", 13), "--lora 13 is more than 12, the smallest dimension of the matrices of checkpoints/r, step 3"),
        (("--optimizer", "muon"), "--optimizer muon moves whole matrices, but --lora 3 trains adapters, which adamw"),
        (("--from", None, "--resume", "", "--run-name", "r"), "--lora 3 contradicts the checkpoint, which has no adap"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tune, arguments, complaint):
    said = tune(*arguments, status=2)
    assert complaint in said
    assert said.count("\n") <= 2  # the device may be named before
    assert [path.name for path in Path("checkpoints").iterdir()] == ["r"]


def test_another_rank_or_optimizer_than_the_runs_is_refused(tune):
    tune()
    resumed = {"--from": None, "--resume": "", "--data-path": None, "--steps": 9}
    flat = [each for pair in resumed.items() for each in pair]
    assert "--lora 4 contradicts the checkpoint, which has adapters of rank 3" in tune(*flat, "--lora", 4, status=2)
    said = tune(*flat, "--lora", None, "--optimizer", "muon", status=2)
    assert "--optimizer muon cannot go on from a checkpoint of adamw" in said


def test_a_run_whose_base_is_missing_says_so(tune):
    tune()
    saved().run.base_path.unlink()
    with pytest.raises(UserError, match=r"base.safetensors is missing: restore it, or name another checkpoint"):
        load_model(saved(), CpuOps(threads=1))


def test_the_rate_is_that_of_adapters(source, tmp_path):
    origin = pretrained.find("r", tmp_path / "checkpoints")
    _, train = plan.settle({"lora": 3}, None, None, resume=False, origin=origin)
    assert (train.optimizer, train.peak_lr) == ("adamw", LORA["learning_rate"])
    assert dict(initial_weights(source.model_config, 0)).keys() == source.weights().keys()
