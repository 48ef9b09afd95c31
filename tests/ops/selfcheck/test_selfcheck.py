"""The check of the vendor's matrix products finds a library that is wrong, fails or refuses, and misses no product."""

import math

import numpy as np
import pytest

from gpt.batches import token_order
from gpt.config import OPTIMIZERS, ModelConfig, TrainConfig
from gpt.model import TrainableGPT
from gpt.ops.gpu import selfcheck
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.optim import Optimizer, stacks_here
from tests.ops.selfcheck.card import ADDED, BATCH, BIAS, DGELU, GELU, MODEL, PLAIN, Card, checked, let

# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True])
def test_a_library_that_is_right_is_used_without_a_note(library, cache, precision, training):
    ops = checked(Card(library, cache), precision, training)
    assert ops.has_vendor_blas
    assert ops.notes == []
    assert ops.device.products() >= (20 if training else 4)


@pytest.mark.parametrize("error", [0.125, -0.125, math.nan, math.inf])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (PLAIN, "[16, 48] [48, 16]ᵀ"),
        (BIAS, "[16, 16] [16, 48] with bias"),
        (GELU, "[16, 16] [16, 32] with gelu"),
        (DGELU, "[16, 16] [16, 32]ᵀ with dgelu"),
        (ADDED, "[16, 16]ᵀ [16, 48] with addition"),
    ],
)
def test_one_wrong_element_in_one_epilogue_is_found_and_named(library, cache, wrong, named, error):
    let(library, wrong=wrong, deviation=error)
    ops = checked(Card(library, cache))
    assert not ops.has_vendor_blas
    (note,) = ops.notes
    assert f" in {named}; matrix products run on hipgpt's own, slower kernel" in note
    assert "row 15, column" in note
    assert "--blas vendor insists" in note
    assert ("nan" in note) == math.isnan(error)


@pytest.mark.parametrize("wrong", [PLAIN, BIAS, ADDED])
def test_the_smallest_error_in_float32_is_found(library, cache, wrong):
    """Sums are exact, so that an error of 2^-16 shows, although some numbers are above 4 and have steps of 2^-21."""
    let(library, wrong=wrong, deviation=2.0**-16)
    assert not checked(Card(library, cache), "fp32").has_vendor_blas


def test_a_product_of_muon_is_checked_too(library, cache):
    """AdamW's training adds to single matrices only, and no prompt multiplies by transposed ones."""
    let(library, wrong=ADDED)
    ops = GpuOps(Card(library, cache), "bf16")
    ops.check_products(MODEL, BATCH, training=False, stacks=[(3, 16, 48), (3, 48, 16)])
    assert not ops.has_vendor_blas
    cases = list(selfcheck.muon_cases([(3, 16, 48), (3, 48, 16)]))
    assert [str(case) for case in cases] == [
        "3 x [16, 48] [48, 16]ᵀ",
        "3 x [16, 16] [16, 48] with addition",
        "3 x [16, 48]ᵀ [48, 16]",
        "3 x [48, 16] [16, 16] with addition",
        "6 x [16, 16] [16, 16] with addition",
    ]


def test_of_a_large_result_the_first_the_middle_and_the_last_rows_are_compared(library, cache, monkeypatch):
    monkeypatch.setattr(selfcheck, "COMPARED", 3 * 16)
    assert checked(Card(library, cache)).has_vendor_blas
    let(library, wrong=BIAS)
    device = Card(library, cache, card="gfx1200")
    checked(device)
    assert "row 15, column 47, in [16, 16] [16, 48] with bias" in device.notes[0]


def test_a_library_that_fails_is_given_up_and_asked_again_at_the_next_start(library, cache):
    let(library, failure=14)
    device = Card(library, cache)
    checked(device)
    assert device.blas is None
    assert "hipBLASLt fails on this GPU: hipblasLtMatmul failed with status 14 in [16, 16] [16, 48]" in device.notes[0]
    let(library, failure=0)
    assert checked(Card(library, cache)).has_vendor_blas


def test_a_library_without_kernels_for_the_gpu_is_given_up_with_a_note(library, cache):
    let(library, refuse=-1)
    device = Card(library, cache)
    checked(device)
    assert device.blas is None
    assert device.notes[0].startswith("Note: hipBLASLt has no kernels for executor-wmma12; matrix products run on")


def test_a_library_without_an_epilogue_is_checked_on_the_product_that_takes_its_place(library, cache):
    let(library, refuse=BIAS)
    assert checked(Card(library, cache), training=False).has_vendor_blas
    let(library, wrong=PLAIN)
    device = Card(library, cache, card="gfx1200")
    checked(device, training=False)
    assert "in [16, 16] [16, 48]; matrix products" in device.notes[0]


# ---- the products ----------------------------------------------------------------------------------------------------


class Asked:
    """In a library's place: notes the products, and computes none."""

    def __init__(self, accepts):
        self.accepts, self.products = accepts, set()

    def product(self, a, b, out, *, stream, epilogue, into, tf32=False):
        strides = a.strides, b.strides
        key = (a.shape, b.shape, strides, out.dtype.name, epilogue.name, into.addend is None, into.addend is out)
        self.products.add(key)
        return self.accepts(epilogue.name)


@pytest.mark.parametrize("accepts", [lambda name: True, lambda name: name in ("none", "bias"), lambda name: False])
@pytest.mark.parametrize(("optimizer", "lora"), [*((optimizer, None) for optimizer in OPTIMIZERS), ("adamw", 4)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head_rows", [8192, 16, 12])
@pytest.mark.parametrize("tied", [False, True])
def test_every_product_of_training_is_checked(accepts, optimizer, lora, precision, head_rows, tied, cache, monkeypatch):
    """Checks the list of products against those that the model and the optimizer ask for.

    The head takes all 16 rows at once, or 12 and then 4.
    """
    monkeypatch.setattr(GpuOps, "head_rows", head_rows)
    config = ModelConfig(
        vocab_size=40, max_seq_len=8, num_layers=2, embed_dim=32, num_heads=2, ff_hidden_dim=64, tie_embeddings=tied
    )
    device = NotingDevice("gfx1201", 32, True)
    device.blas_card, device.cache = "gfx1201", str(cache)
    ops = GpuOps(device, precision)
    train = TrainConfig(optimizer=optimizer, lora=lora)
    device.blas = check = Asked(accepts)
    monkeypatch.setattr(selfcheck, "_worst", lambda *_: "")
    ops.check_products(config, BATCH, training=True, stacks=stacks_here(config, train, ops), lora=lora)
    device.blas = training = Asked(accepts)
    model = TrainableGPT(config, ops, BATCH, lora=lora)
    ids = np.zeros((BATCH, 8), np.int32)
    model.loss_and_gradients(ids, ids, token_order(ids), np.ones(1))
    Optimizer(model, train).step(np.full(1, 1e-3, np.float32))
    assert len(training.products) > 10
    assert training.products <= check.products
