"""The first weights: GPT-2's distribution, and the same values for a seed however many threads draw them."""

import math

import numpy as np
import pytest

from gpt import initialization
from gpt.config import ModelConfig
from gpt.initialization import initial_weights
from gpt.parameters import parameter_shapes

CONFIG = ModelConfig(vocab_size=300, max_seq_len=40, embed_dim=64, num_heads=2, ff_hidden_dim=256, num_layers=3)


def drawn(threads, monkeypatch, seed=5):
    monkeypatch.setattr(initialization, "available_threads", lambda: threads)
    return dict(initial_weights(CONFIG, seed))


def test_a_seed_gives_the_same_weights_with_any_number_of_threads(monkeypatch):
    alone, many = drawn(1, monkeypatch), drawn(7, monkeypatch)
    assert list(alone) == list(many) == list(parameter_shapes(CONFIG))
    for name, tensor in alone.items():
        assert np.array_equal(tensor, many[name]), name


def test_seeds_and_tensors_have_numbers_of_their_own(monkeypatch):
    weights, others = drawn(2, monkeypatch), drawn(2, monkeypatch, seed=6)
    matrices = [name for name, shape in parameter_shapes(CONFIG).items() if len(shape) == 2]
    firsts = [tensor[name][0, 0] / tensor[name].std() for tensor in (weights, others) for name in matrices]
    assert len(np.unique(np.round(firsts, 6))) == 2 * len(matrices)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.mlp.c_proj.weight"])
def test_matrices_are_normal_with_gpt2s_spread(name, monkeypatch):
    """The standard error of a spread measured on n numbers is 1 / √(2n) of it; five of them are one in 1.7 million."""
    tensor = drawn(2, monkeypatch)[name]
    std = 0.02 / math.sqrt(2 * CONFIG.num_layers) if "c_proj" in name else 0.02
    assert tensor.dtype == np.float32
    assert abs(tensor.std() / std - 1) < 5 / math.sqrt(2 * tensor.size)
    assert abs(tensor.mean()) < 5 * std / math.sqrt(tensor.size)


def test_biases_begin_at_zero_and_norms_at_one(monkeypatch):
    weights = drawn(2, monkeypatch)
    assert not weights["transformer.h.0.attn.c_attn.bias"].any()
    assert not weights["transformer.h.0.ln_1.bias"].any()
    assert (weights["transformer.ln_f.weight"] == 1).all()


def test_whoever_takes_only_some_of_the_weights_is_not_kept_waiting(monkeypatch):
    monkeypatch.setattr(initialization, "available_threads", lambda: 2)
    weights = initial_weights(CONFIG, 0)
    name, tensor = next(weights)
    assert (name, tensor.shape) == ("transformer.wte.weight", (300, 64))
    weights.close()
