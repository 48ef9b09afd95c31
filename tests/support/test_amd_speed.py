"""Tests of the estimate of speed on AMD GPUs, with kernels whose clocks can be derived by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gpt.config import ModelConfig
from tests.support.amd import emulator
from tests.support.amd.compile import compile_source
from tests.support.amd.speed import banks, steps, triton_peer
from tests.support.amd.speed.chips import CHIPS
from tests.support.amd.speed.estimate import estimate
from tests.support.amd.speed.instructions import VCC, Unit, Waits, disassembled, parsed
from tests.support.amd.speed.launches import products, training_step, written_tokens
from tests.support.amd.speed.schedule import schedule
from tests.support.amd.speed.trace import STEP, Trace, trace
from tests.support.executor import compiler

needs_compiler = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
needs_emulator = pytest.mark.skipif(bool(emulator.unavailable()), reason=str(emulator.unavailable()))
TINY = ModelConfig(vocab_size=40, max_seq_len=64, num_layers=1, embed_dim=32, num_heads=2, ff_hidden_dim=64)
END = ("s_endpgm", "")


def clocks(target, *listing, waves=1, resident=1, total=1, lds=0, new_bytes=0):
    """Clocks of a workgroup whose waves all execute `listing`, pairs of a name and operands; 1 line per access."""
    instructions = [parsed(name, operands, 4 * n, target) for n, (name, operands) in enumerate([*listing, END])]
    wave = np.array([(n, lds, 1, new_bytes) for n in range(len(instructions))], STEP)
    work = Trace([wave] * waves, 0)
    return schedule(CHIPS[target], instructions, [work], resident, total, from_memory=True).clocks


# ---- instructions ----------------------------------------------------------------------------------------------------


def test_a_matrix_product_has_its_clocks_and_registers():
    product = parsed("v_mfma_f32_16x16x16_bf16", "v[0:3], v[4:5], v[6:7], v[0:3]", 0, "gfx942")
    assert (product.unit, product.clocks, product.flops) == (Unit.MATRIX, 16, 2 * 16**3)
    assert product.writes == (0, 1, 2, 3)
    assert product.reads == (4, 5, 6, 7, 0, 1, 2, 3)
    assert parsed("v_mfma_f32_16x16x16bf16_1k", "a[0:3], v[4:5], v[6:7], a[0:3]", 0, "gfx90a").clocks == 32


def test_a_product_of_unknown_shape_is_an_error_and_not_a_guess():
    with pytest.raises(KeyError):
        parsed("v_mfma_f32_4x4x4_16b_bf16", "v[0:3], v[4:5], v[6:7], v[0:3]", 0, "gfx942")


@pytest.mark.parametrize(("target", "name", "clocks"), [
    ("gfx942", "v_add_f32_e32", 4), ("gfx1100", "v_add_f32_e32", 1),
    ("gfx942", "v_exp_f32_e32", 16), ("gfx1100", "v_exp_f32_e32", 4),
    ("gfx1201", "v_mul_lo_u32", 4), ("gfx942", "v_accvgpr_read_b32", 4),
])  # fmt: skip
def test_vector_instructions_take_as_many_clocks_as_lanes_need(target, name, clocks):
    assert parsed(name, "v0, v1, v2", 0, target).clocks == clocks


def test_an_instruction_that_adds_to_its_target_reads_it():
    assert parsed("v_fmac_f32_e32", "v0, v1, s2", 0, "gfx942").reads == (1, 514, 0)
    both = parsed("v_dual_fmac_f32", "v0, v1, v2 :: v_dual_mul_f32 v3, v4, v5", 0, "gfx1100")
    assert both.writes == (0, 3)
    assert both.reads == (1, 2, 0, 4, 5)


def test_accesses_know_their_bytes_and_write_only_if_they_load():
    load = parsed("global_load_dwordx4", "v[0:3], v[4:5], off offset:16", 0, "gfx942")
    assert (load.unit, load.bytes, load.modifiers, load.writes) == (Unit.LOAD, 16, "offset:16", (0, 1, 2, 3))
    store = parsed("global_store_b32", "v0, v1, s[2:3]", 0, "gfx1201")
    assert (store.unit, store.bytes, store.writes, store.reads) == (Unit.STORE, 4, (), (0, 1, 514, 515))
    pair = parsed("ds_read2_b64", "v[0:3], v4 offset1:1", 0, "gfx942")
    assert (pair.unit, pair.bytes, pair.pair) == (Unit.LDS, 8, True)
    assert parsed("global_load_u16", "v0, v1, s[2:3]", 0, "gfx1100").bytes == 2
    assert parsed("ds_bpermute_b32", "v0, v1, v2", 0, "gfx942").bytes == 4


def test_waits_say_how_many_operations_may_be_under_way():
    assert parsed("s_waitcnt", "vmcnt(3) lgkmcnt(0)", 0, "gfx1100").waits == Waits(loads=3, lds=0, constants=0)
    assert parsed("s_wait_loadcnt_dscnt", "0x103", 0, "gfx1201").waits == Waits(loads=1, lds=3)
    assert parsed("s_waitcnt_vscnt", "null, 0x0", 0, "gfx1100").waits == Waits(stores=0)
    assert parsed("s_wait_alu", "0xfffe", 0, "gfx1201").unit == Unit.NONE


def test_a_comparison_writes_vcc():
    assert parsed("v_cmp_gt_f32_e32", "vcc, v0, v1", 0, "gfx942").writes == (VCC, VCC + 1)


# ---- shared memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "width", "lanes", "clocks"), [
    (4, 4, 32, 1), (8, 4, 32, 2), (128, 4, 32, 32), (0, 4, 32, 1),
    (8, 8, 32, 2), (16, 16, 32, 4), (16, 16, 64, 8), (4, 4, 64, 2),
])  # fmt: skip
def test_a_bank_serves_one_word_per_clock(stride, width, lanes, clocks):
    everyone = np.ones(lanes, bool)
    assert banks.clocks(np.arange(lanes) * stride, everyone, width, is_write=True) == clocks


def test_lanes_that_are_switched_off_cause_no_conflict():
    assert banks.clocks(np.arange(32) * 128, np.arange(32) < 2, 4, is_write=False) == 2


# ---- schedule --------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_chain_of_vector_instructions_takes_its_latency_and_independent_ones_do_not():
    chain = [("v_add_f32_e32", "v0, v0, v1")] * 10
    independent = [("v_add_f32_e32", f"v{n}, v{n}, v20") for n in range(10)]
    # RDNA: results after 5 clocks, an instruction each clock. CDNA: a wave's turn comes every 4 clocks anyway.
    assert clocks("gfx1100", *chain) == pytest.approx(50, abs=5)
    assert clocks("gfx1100", *independent) == pytest.approx(10, abs=1)
    assert clocks("gfx942", *chain) == clocks("gfx942", *independent) == pytest.approx(40, abs=4)


@needs_compiler
def test_products_keep_the_matrix_unit_busy_and_the_vector_unit_only_on_rdna():
    mixed = [("v_mfma_f32_16x16x16_bf16", "v[0:3], v[4:5], v[6:7], v[0:3]"), ("v_add_f32_e32", "v20, v21, v22")] * 10
    assert clocks("gfx942", *mixed) == pytest.approx(160, abs=8)
    mixed = [("v_wmma_f32_16x16x16_bf16", "v[0:7], v[8:15], v[16:23], v[0:7]"), ("v_add_f32_e32", "v30, v31, v32")] * 10
    assert clocks("gfx1100", *mixed) == pytest.approx(10 * (32 + 1), abs=33)


@needs_compiler
def test_waves_of_one_simd_share_it_and_those_of_several_do_not():
    work = [("v_add_f32_e32", f"v{n}, v{n}, v40") for n in range(32)]
    assert clocks("gfx1100", *work, waves=4) == pytest.approx(32, abs=4)
    assert clocks("gfx1100", *work, waves=8) == pytest.approx(64, abs=8)


@needs_compiler
def test_a_wait_lasts_until_the_load_is_there():
    load = ("global_load_dword", "v0, v1, s[2:3]"), ("s_waitcnt", "vmcnt(0)")
    assert clocks("gfx1100", *load, new_bytes=64) == pytest.approx(CHIPS["gfx1100"].memory_latency, rel=0.05)
    assert clocks("gfx1100", *load) == pytest.approx(CHIPS["gfx1100"].cached_latency, rel=0.05)


@needs_compiler
def test_a_barrier_holds_all_waves():
    work = [("v_add_f32_e32", "v0, v0, v1")] * 100
    both = [*work, ("s_barrier", ""), *work]
    assert clocks("gfx1100", *both, waves=4) == pytest.approx(1000, abs=30)


@needs_compiler
def test_conflicts_keep_the_shared_memory_busy():
    reads = [("ds_read_b32", f"v{n}, v40") for n in range(20)] + [("s_waitcnt", "lgkmcnt(0)")]
    assert clocks("gfx942", *reads, lds=32) == pytest.approx(20 * 32 + 40, abs=40)


@needs_compiler
@pytest.mark.parametrize("target", CHIPS)
def test_a_stream_takes_as_long_as_its_bytes(target):
    chip = CHIPS[target]
    loads = [("global_load_dwordx4", f"v[{4 * n}:{4 * n + 3}], v40, s[2:3]") for n in range(8)]
    loads += [("s_waitcnt", "vmcnt(0)")]
    # 8 accesses of 4 waves of 8 workgroups bring 16 lines each; 32 workgroups are measured of 48
    time = clocks(target, *loads, waves=4, resident=8, total=48, new_bytes=16 * chip.line)
    assert time == pytest.approx(32 * 4 * 8 * 16 * chip.line / chip.memory_bytes, rel=0.02)


# ---- launches --------------------------------------------------------------------------------------------------------


def test_the_launches_of_a_step_come_with_their_needed_operations():
    launches = {launch.name: launch for launch in training_step("gfx1100", TINY, 3)}
    assert {"embedding", "attention", "attention_backward_keys", "matmul", "adamw", "cross_entropy"} <= launches.keys()
    pairs = 3 * 2 * 64 * 65 // 2  # of a query and an earlier key, for 3 sequences of 2 heads
    assert launches["attention"].flops == 2 * 2 * 16 * pairs
    assert launches["attention_backward_keys"].flops == 2 * 4 * 16 * pairs
    assert launches["adamw"].flops == 0
    head = max(launch.flops for launch in training_step("gfx1100", TINY, 3) if launch.name == "matmul")
    assert head == 2 * (3 * 64) * 128 * 32  # logits for 128 ids, to which 40 are rounded up


def test_no_launch_changes_the_plan_of_another_ones_step():
    """Or an estimate of AdamW would find a plan that an estimate before it had made of arrays full of zeros."""
    launches = {launch.name: launch for launch in training_step("gfx1100", TINY, 2)}
    launches["plan_update"].arguments[4][:] = 1
    assert not launches["adamw"].arguments[5].any()


@pytest.mark.parametrize("sequences", [1, 3])
def test_the_launches_of_tokens_have_a_row_for_each_sequence(sequences):
    launches = {launch.name: launch for launch in written_tokens("gfx1100", TINY, sequences)}
    assert {"attention_cached", "norm_linear", "sample"} <= launches.keys()
    assert launches["attention_cached"].grid == (sequences, 2)
    assert launches["sample"].grid == (sequences,)


def test_the_launches_of_products_are_of_all_transposes():
    launches = products("gfx942", 256)
    defines = [dict(launch.instance.defines) for launch in launches]
    assert [each["A_TRANSPOSED"] + each["B_TRANSPOSED"] for each in defines] == ["00", "01", "10", "11"]
    assert {launch.flops for launch in launches} == {2 * 256**3}


def test_a_step_adds_up_its_launches_and_takes_products_from_the_vendor(monkeypatch):
    everything = training_step("gfx942", TINY, 8)
    launches = [launch for launch in everything if not launch.adds_parts]
    assert len(everything) - len(launches) == 5  # the gradients of four matrices of a layer and of the embedding
    monkeypatch.setitem(steps.MODELS, "tiny", (TINY, 8))
    monkeypatch.setattr(steps, "estimate", lambda launch, target: SimpleNamespace(microseconds=500))
    step = steps.step("tiny", "gfx942")
    products = [launch.flops for launch in launches if launch.name == "matmul"]
    assert step.tokens == 8 * 64
    assert step.products == pytest.approx(sum(products) / 548e12 * 1e3)
    assert step.attention == 3 * 0.5  # one layer: forward, queries, keys
    assert step.rest == (len(launches) - len(products) - 3) * 0.5
    assert step.least == pytest.approx(step.products + step.attention + 1.1 * step.rest + len(launches) / 1e3)
    assert step.most == pytest.approx(
        1.5 * step.products + 2.2 * step.attention + 1.5 * step.rest + 6 * len(launches) / 1e3
    )


# ---- trace -----------------------------------------------------------------------------------------------------------

REVERSE = """
#define GLOBAL __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(1, 128)))
extern "C" GLOBAL void reverse(const float* x, float* out, int stride) {
  __attribute__((shared)) static float row[128 * 8];
  int i = __builtin_amdgcn_workitem_id_x(), first = 128 * __builtin_amdgcn_workgroup_id_x();
  row[i * stride] = x[first + i];
  __builtin_amdgcn_s_barrier();
  out[first + i] = row[(127 - i) * stride];
}
"""


@needs_emulator
@pytest.mark.amd
@pytest.mark.parametrize("target", ["gfx942", "gfx1151", "gfx1201"])
def test_a_trace_has_each_wave_with_its_conflicts_and_lines(target):
    binary = compile_source(REVERSE, "clang", target)
    code, instructions = emulator.CodeObject(binary), disassembled(binary, target)["reverse"]
    x, out, chip = np.arange(512, dtype=np.float32), np.zeros(512, np.float32), CHIPS[target]
    noted = trace(code, "reverse", instructions, (2, 0), (128,), (x, out, np.int32(8)))
    assert np.array_equal(out[256:384], x[256:384][::-1])  # workgroup 2 ran, and no other
    assert not out[:256].any()
    assert not out[384:].any()
    assert noted.needed_bytes == 2 * 4 * 128
    lanes = 64 if chip.is_cdna else 32
    assert len(noted.waves) == 128 // lanes
    for wave in noted.waves:
        units = [instructions[place].unit for place in wave["instruction"]]
        assert units[-1] == Unit.END
        for unit in (Unit.LOAD, Unit.STORE):
            (access,) = wave[[each == unit for each in units]]
            first = access["lines"] - lanes * 4 // chip.line  # 1 if NumPy's array does not begin with a line
            assert first in (0, 1)
        for access in wave[[each == Unit.LDS for each in units]]:
            assert access["lds"] == lanes * 8 // 32  # every eighth word: 4 banks, so 32 lanes take 8 clocks


@needs_compiler
@needs_emulator
@pytest.mark.amd
@pytest.mark.parametrize("target", ["gfx942", "gfx1201"])
def test_an_estimate_respects_what_the_gpu_can_do(target):
    launches = {launch.name: launch for launch in training_step(target, TINY, 3)}
    adamw = estimate(launches["adamw"], target)
    assert adamw.of_matrix_peak == adamw.busy.matrix == 0
    assert adamw.fetched == pytest.approx(1, abs=0.2)  # lines are read and written once, as wholes but for the ends
    elements = launches["adamw"].arguments[0].size  # each reads 16 bytes and writes 14, the copy for products included
    assert adamw.of_bandwidth == pytest.approx(
        30 * elements / (adamw.microseconds * 1e-6) / (CHIPS[target].bandwidth * 1e9), rel=0.05
    )
    attention = estimate(launches["attention"], target)
    assert 0 < attention.of_matrix_peak < attention.busy.matrix <= 1


@needs_compiler
@needs_emulator
@pytest.mark.amd
def test_workgroups_that_run_at_once_share_the_bandwidth_whatever_units_they_run_on():
    """Of 312 workgroups, 8 units of 304 have two, whose bytes do not take twice the time of those of 304 workgroups."""
    units = CHIPS["gfx942"].units
    config = replace(TINY, max_seq_len=units + 8, embed_dim=1024, num_heads=16)
    launches = {launch.name: launch for launch in training_step("gfx942", config, 8)}
    launch = launches["embedding_backward_positions"]
    even, uneven = (estimate(launch._replace(grid=(count,)), "gfx942") for count in (units, units + 8))
    memory = even.microseconds * even.of_bandwidth  # the time of the bytes of 304 workgroups
    assert uneven.microseconds - even.microseconds < memory / 2


# ---- Triton ----------------------------------------------------------------------------------------------------------


def rows(heads, seq, dim, seed):
    """Random numbers in bf16: their bits uint16 [heads, seq, dim], and they themselves in float64."""
    bits = np.random.default_rng(seed).standard_normal((heads, seq, dim), np.float32).view(np.uint32) & 0xFFFF0000
    return (bits >> 16).astype(np.uint16), bits.view(np.float32).astype(np.float64)


@needs_emulator
@pytest.mark.amd
@pytest.mark.skipif(not triton_peer.is_installed(), reason="Triton is absent (pip install triton)")
def test_tritons_kernels_compute_attention_and_its_gradients():
    shape = heads, seq, dim = 1, 128, 32
    given, numbers = zip(*(rows(*shape, seed) for seed in range(4)), strict=True)
    arrays = dict(zip(("q", "k", "v", "dout"), given, strict=True))
    for name in triton_peer.PRODUCTS:
        launch, names = triton_peer.attention(name, "gfx942", shape), triton_peer.kernel(name).arg_names
        for each, array in zip(names, launch.arguments, strict=False):
            arrays.setdefault(each, array)
        code = emulator.CodeObject(launch.code, launch.shared_bytes)
        own = [arrays[each] for each in names[: names.index("seq")]]
        code.launch(name, launch.grid, launch.block, (*own, *launch.arguments[len(own) :]))
    lower = np.tri(seq, dtype=bool)
    scores = np.where(lower, numbers[0] @ numbers[1].transpose(0, 2, 1) / np.sqrt(dim), -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    weights = np.exp(scores - lse[..., None])

    def results(query, key, value, gradient, sign):
        """The other results in float64. For absolute values and a delta of sign 1, the sizes of all terms in them."""
        out = weights @ value
        delta = (out * gradient).sum(-1)
        change = weights * (gradient @ value.transpose(0, 2, 1) + sign * delta[..., None]) / np.sqrt(dim)
        turned, changes = weights.transpose(0, 2, 1), change.transpose(0, 2, 1)
        dq, dk, dv = change @ key, changes @ query, turned @ gradient
        return {"out": out, "delta": delta, "dq": dq, "dk": dk, "dv": dv}

    right, absolute = results(*numbers, -1), [np.abs(array) for array in numbers]
    sizes = results(*absolute, 1)
    # In float32 a number is off by 2^-24 of itself after each operation. No score and no lse exceeds `largest`.
    # A score has dim products, and then a factor and a difference. A lse has a score and a sum of seq weights, and a
    # weight has a score, a lse and an exponential. `single` is one more score, for the gradients' sums over dim, and
    # two more sums over seq, for those of the softmax's other blocks and of the products with weights.
    largest = (absolute[0] @ absolute[1].transpose(0, 2, 1)).max() / np.sqrt(dim) + np.log(seq)
    score = (dim + 8) * 2**-24 * largest
    single = 4 * score + 3 * seq * 2**-24
    assert np.abs(arrays["lse"] * np.log(2) - lse).max() <= single
    # bf16 rounds by 2^-8 at most. Of each term of a result, so many factors or sums are rounded to bf16: for out, the
    # weight and out itself; for delta, both of these; for dq and dk, both, the change of a score, and the result; for
    # dv, the weight and dv. Here the emulator is to be trusted only because `_mend` lets DPP read before it writes:
    # half of delta is a sum by v_add_f32_dpp in place, and was off by 14 bounds, dq and dk by 2.
    roundings = {"out": 2, "delta": 2, "dq": 4, "dk": 4, "dv": 2}
    for name, times in roundings.items():
        found = arrays[name] if name == "delta" else (arrays[name].astype(np.uint32) << 16).view(np.float32)
        bound = (((1 + 2**-8) * (1 + single)) ** times - 1) * sizes[name]
        assert (np.abs(found - right[name]) <= bound).all(), name
