"""Settings: ranges and types, computed values, presets."""

import json
from dataclasses import dataclass
from types import NoneType

import pytest

from gpt.config import PRESETS, ModelConfig, TokenizerConfig, TrainConfig, pick, types_of
from gpt.errors import UserError


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"embed_dim": 100, "num_heads": 3}, "--dim 100 is not a multiple of --heads 3: change one of them"),
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
def test_an_impossible_model_is_refused(change, complaint):
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
def test_impossible_training_settings_are_refused(change, complaint):
    with pytest.raises(UserError, match=f"^{complaint}"):
        TrainConfig(**change)


@pytest.mark.parametrize(("steps", "warmup"), [(50, 1), (1000, 20), (50_000, 1000), (1_000_000, 2000)])
def test_the_warmup_is_2_percent_of_the_steps_and_at_most_2000(steps, warmup):
    assert TrainConfig(total_steps=steps).warmup == warmup


def test_the_least_learning_rate_is_a_tenth_of_the_peak():
    assert TrainConfig(learning_rate=0.5).final_lr == pytest.approx(0.05)


def test_configs_come_back_from_json_and_unknown_keys_are_ignored():
    model, train = ModelConfig(vocab_size=7, activation="relu"), TrainConfig(seed=3, total_steps=100)
    section = json.loads(json.dumps({**train.to_json(), "steps": 12}))
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model
    assert TrainConfig.from_json(section) == train.resolved()


@pytest.mark.parametrize("change", [{"embed_dim": 6.0}, {"num_layers": "2"}, {"tie_embeddings": 1}, {"dropout": None}])
def test_a_value_of_the_wrong_type_is_refused(change):
    with pytest.raises(UserError, match="but must be of type"):
        ModelConfig.from_json({"vocab_size": 7, **change})


def test_a_whole_number_is_accepted_as_a_fraction():
    assert ModelConfig(vocab_size=7, dropout=0).dropout == 0
    assert TrainConfig(learning_rate=1, min_lr=0).final_lr == 0


def test_every_preset_makes_a_model_a_training_and_a_tokenizer():
    for name, preset in PRESETS.items():
        parts = [pick(cls, preset) for cls in (ModelConfig, TrainConfig, TokenizerConfig)]
        assert {key: value for part in parts for key, value in part.items()} == preset
        tokenizer = TokenizerConfig(**parts[2])
        assert tokenizer == TokenizerConfig.of(name)
        ModelConfig(vocab_size=tokenizer.vocab_limit, **parts[0])
        TrainConfig(**parts[1])


def test_computed_values_are_written_down_and_named():
    config = TrainConfig(total_steps=100, learning_rate=1e-3).resolved()
    assert (config.min_lr, config.warmup_steps, config.unseen_fraction) == (pytest.approx(1e-4), 2, 0.05)
    assert config.computed == ("precision", "warmup_steps", "min_lr")
    assert config.resolved() == config


def test_a_computed_final_rate_follows_another_peak_and_a_given_one_stays():
    computed = TrainConfig(learning_rate=1e-3).resolved().changed(learning_rate=1e-5)
    assert computed.final_lr == pytest.approx(1e-6)
    assert "min_lr" in computed.computed
    given = TrainConfig(learning_rate=1e-3, min_lr=1e-4).resolved().changed(learning_rate=1e-2)
    assert given.final_lr == 1e-4


def test_a_computed_warmup_follows_another_start_of_the_schedule_but_not_another_end():
    before = TrainConfig(total_steps=1000).resolved()
    assert before.changed(total_steps=5000).warmup == 20
    assert before.changed(total_steps=1500, schedule_start=1000).warmup == 10


def test_types_do_not_depend_on_how_a_file_writes_its_annotations():
    """With `from __future__ import annotations` a field's own type is a string."""
    names = {"dataclass": dataclass}
    fields = "    rate: float | None\n    names: tuple[str, ...]"
    exec(f"from __future__ import annotations\n@dataclass\nclass Later:\n{fields}", names)
    assert types_of(names["Later"]) == {"rate": (float, NoneType), "names": (tuple,)}


def test_llama_3_cuts_words_as_gpt_4_does():
    assert TokenizerConfig(kind="byte", split="llama3") == TokenizerConfig(kind="byte", split="gpt4")
