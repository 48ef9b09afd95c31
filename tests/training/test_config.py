"""What a model and a run may be."""

import json

import pytest

from gpt.config import PRESETS, ModelConfig, TrainConfig
from gpt.errors import UserError


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"embed_dim": 100, "num_heads": 3}, "--dim 100 is not a multiple of --heads 3"),
        ({"embed_dim": 0}, "--dim is 0, but must be at least 1"),
        ({"num_heads": 0}, "--heads is 0, but must be at least 1"),
        ({"ff_hidden_dim": 0}, "--ff is 0, but must be at least 1"),
        ({"num_layers": -1}, "--layers is -1, but must be at least 1"),
        ({"max_seq_len": 0}, "--seq is 0, but must be at least 1"),
        ({"dropout": 1.0}, "--dropout is 1.0, but must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "--dropout is nan, but must be at least 0 and below 1"),
        ({"activation": "selu"}, "--activation is selu, but must be one of gelu, relu"),
    ],
)
def test_a_model_that_cannot_be_is_refused(change, complaint):
    with pytest.raises(UserError, match=f"^{complaint}$"):
        ModelConfig(vocab_size=10, **change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch_size": 0}, "--batch is 0"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"total_steps": 0}, "--steps is 0"),
        ({"log_every": 0}, "--log-every is 0"),
        ({"eval_every": -1}, "--eval-every is -1"),
        ({"patience": -1}, "--patience is -1"),
        ({"patience": 3, "eval_every": 0}, "--patience is 3, but nothing is evaluated"),
        ({"patience": 3, "val_fraction": 0.0}, "--patience is 3, but nothing is evaluated"),
        ({"sample_every": -1}, "--sample-every is -1"),
        ({"keep_last": 0}, "--keep-last is 0"),
        ({"ckpt_every": -1}, "--ckpt-every is -1"),
        ({"warmup_steps": -1}, "--warmup-steps is -1"),
        ({"learning_rate": 0.0}, "--lr is 0.0"),
        ({"learning_rate": -1e-3}, "--lr is -0.001"),
        ({"learning_rate": float("nan")}, "--lr is nan"),
        ({"learning_rate": float("inf")}, "--lr is inf"),
        ({"min_lr": 1.0}, "--min-lr is 1.0, but must be between 0 and --lr 0.0003"),
        ({"weight_decay": -0.1}, "--weight-decay is -0.1"),
        ({"grad_clip": float("nan")}, "--grad-clip is nan"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"schedule": "linear"}, "--schedule is linear, but must be one of cosine, trapezoid, constant"),
        ({"sampling": "shuffle"}, "--sampling is shuffle, but must be one of shuffled, sequential, random"),
    ],
)
def test_a_training_that_cannot_be_is_refused(change, complaint):
    with pytest.raises(UserError, match=f"^{complaint}"):
        TrainConfig(**change)


@pytest.mark.parametrize(("steps", "warmup"), [(50, 1), (1000, 20), (50_000, 1000), (1_000_000, 2000)])
def test_the_warmup_is_2_percent_of_the_steps_and_at_most_2000(steps, warmup):
    assert TrainConfig(total_steps=steps).warmup_steps == warmup


def test_the_least_learning_rate_is_a_tenth_of_the_peak():
    assert TrainConfig(learning_rate=0.5).min_lr == pytest.approx(0.05)


def test_configs_come_back_from_json_and_unknown_keys_are_ignored():
    model, train = ModelConfig(vocab_size=7, activation="relu"), TrainConfig(seed=3, total_steps=100)
    section = json.loads(json.dumps({**train.to_json(), "steps": 12}))
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model
    assert TrainConfig.from_json(section) == train


@pytest.mark.parametrize("change", [{"embed_dim": 6.0}, {"num_layers": "2"}, {"tie_embeddings": 1}, {"dropout": None}])
def test_a_value_of_the_wrong_type_is_refused(change):
    with pytest.raises(UserError, match="but must be of type"):
        ModelConfig.from_json({"vocab_size": 7, **change})


def test_a_whole_number_serves_where_a_fraction_may_stand():
    assert ModelConfig(vocab_size=7, dropout=0).dropout == 0
    assert TrainConfig(learning_rate=1, min_lr=0).min_lr == 0


def test_every_preset_makes_a_model_and_a_training():
    for preset in PRESETS.values():
        keys = {key: value for key, value in preset.items() if key != "tokenizer"}
        model = {key: value for key, value in keys.items() if hasattr(ModelConfig, key) or key == "vocab_size"}
        train = {key: value for key, value in keys.items() if hasattr(TrainConfig, key)}
        assert len(model) + len(train) == len(keys)
        ModelConfig(**model)
        TrainConfig(**train)
