"""The checks of machine code that AMD's compilers make find every fault that they look for.

The faults are spills, private memory, moves between accumulation and vector registers in loops, workgroups of another
size than was asked for, and too few waves to hide the latency of memory. `python -m tests.support.amd.table` checks
every kernel for every target, which takes minutes.
"""

import re
import subprocess
from functools import cache

import pytest

from gpt.ops.gpu.sources import expanded
from gpt.ops.gpu.targets import has_bf16, unsupported, warp_size
from tests.support.amd import compile as amd

HEADERS = expanded("tile_float.h")
NO_CLANG, NO_HIPRTC = amd.missing("clang"), amd.missing("hiprtc")
needs_clang = pytest.mark.skipif(bool(NO_CLANG), reason=str(NO_CLANG))
TARGETS = [
    pytest.param(target, marks=pytest.mark.skipif(bool(reason := amd.missing("clang", target)), reason=str(reason)))
    for target in amd.TARGETS["clang"]
]
CDNA = [target for target in TARGETS if target.values[0] in ("gfx90a", "gfx942", "gfx950")]


def only_kernel(source, target="gfx1100", compiler="clang"):
    """The single kernel of a little source, and the complaints about it."""
    source = HEADERS + source
    (kernel,) = amd.compile_kernels(source, compiler, target)
    return kernel, kernel.complaints(amd.asked_threads(source, amd.PROCESSORS[target].wave)[kernel.name])


@pytest.mark.parametrize("target", TARGETS)
def test_a_modest_kernel_has_no_complaints(target):
    kernel, complaints = only_kernel("KERNEL(2 * WARP) copy(const float* x, float* y) { y[block_x()] = *x; }", target)
    assert complaints == []
    assert kernel.threads == 2 * amd.PROCESSORS[target].wave
    assert [argument.kind for argument in kernel.arguments] == ["global_buffer", "global_buffer"]


@pytest.mark.parametrize("target", TARGETS)
def test_code_that_is_not_linked_has_the_notes_of_linked_code(target):
    source = HEADERS + "KERNEL(WARP) k(const float* x, float* y) { y[thread_id()] = warp_sum(x[thread_id()]); }"
    linked = amd.read_kernels(amd.compile_source(source, "clang", target))
    assert amd.compile_kernels(source, "clang", target) == linked


@needs_clang
def test_a_spill_is_found():
    """With 1024 threads each has 96 registers, for 120 values that are all live at once."""
    source = """
      KERNEL(1024) spill(const float* x, float* y) {
        float v[120];
        UNROLL for (int i = 0; i < 120; i++) v[i] = x[i * 1024 + thread_id()];
        sync();
        UNROLL for (int i = 0; i < 120; i++) y[i * 1024 + thread_id()] = v[119 - i] * v[i];
      }"""
    kernel, complaints = only_kernel(source)
    assert kernel.spills > 0
    assert f"{kernel.spills} registers spilled" in complaints


@needs_clang
def test_an_array_in_private_memory_is_found():
    source = """
      KERNEL(64) chosen(const float* x, const int* at, float* y) {
        float v[100];
        for (int i = 0; i < 100; i++) v[at[i]] = x[i];
        y[thread_id()] = v[at[thread_id()]];
      }"""
    kernel, complaints = only_kernel(source)
    assert kernel.private >= 400
    assert complaints == [f"{kernel.private} bytes of private memory a thread"]


@needs_clang
def test_only_slow_kernels_are_tolerated_for_a_gpu_with_few_registers():
    many = 'KERNEL(64) many(float* y) { asm volatile("" ::: "v199"); y[thread_id()] = 0; }'
    kernel, complaints = only_kernel(many, "gfx906")
    assert kernel.slowness == ["1 waves per SIMD, under 2"]
    assert complaints == []
    assert kernel.complaints(128) == ["compiled for workgroups of 64 threads, not of 128"]
    assert only_kernel(many, "gfx942")[0].slowness == []


@pytest.mark.parametrize("target", CDNA)
def test_moves_between_accumulation_and_vector_registers_are_found_in_loops_alone(target):
    source = """
      KERNEL(64) moving(const float* x, float* y, int n) {
        float v = x[thread_id()];
        asm volatile("v_accvgpr_write_b32 a1, %0" : : "v"(v) : "a1");
        NO_UNROLL for (int i = 0; i < n; i++) {
          asm volatile("v_accvgpr_write_b32 a0, %0\\nv_accvgpr_read_b32 %0, a0" : "+v"(v) : : "a0");
        }
        asm volatile("v_accvgpr_read_b32 %0, a1" : "=v"(y[0]));
        y[thread_id()] = v;
      }"""
    kernel, complaints = only_kernel(source, target)
    assert kernel.agprs == 2
    assert complaints == ["2 moves between accumulation and vector registers in loops"]


@needs_clang
def test_an_ignored_workgroup_size_is_found():
    """If clang does not know __launch_bounds__, it ignores the size without a warning."""
    source = "#undef BLOCK_OF\n#define BLOCK_OF(n)\nKERNEL(64) k(float* y) { y[thread_id()] = 0; }"
    (kernel,) = amd.compile_kernels(HEADERS + source, "clang", "gfx942")
    assert kernel.complaints(64) == ["compiled for workgroups of 1024 threads, not of 64"]


@needs_clang
@pytest.mark.parametrize(("target", "waves"), [("gfx942", 1), ("gfx1100", 3)])
def test_too_few_waves_are_found(target, waves):
    """A workgroup of 4 waves takes 40 KiB, which fits once into CDNA's 64 KiB and three times into RDNA's 128 KiB.

    clang itself refuses a kernel that asks for two waves, so this one does not.
    """
    source = """
      #undef TWO_WAVES
      #define TWO_WAVES
      KERNEL(4 * WARP) hog(float* y) {
        SHARED(float, s, 10240);
        s[thread_id()] = 0;
        sync();
        y[thread_id()] = s[thread_id() ^ 1];
      }"""
    kernel, complaints = only_kernel(source, target)
    assert kernel.lds == 40960
    assert kernel.waves == waves
    assert complaints == ([] if waves >= 2 else ["1 waves per SIMD, under 2"])


@needs_clang
def test_a_compilers_message_is_kept():
    with pytest.raises(amd.CompileError, match="use of undeclared identifier 'nonsense'"):
        amd.compile_source(HEADERS + "KERNEL(64) k(float* y) { y[0] = nonsense; }", "clang", "gfx942")


@pytest.mark.skipif(bool(NO_HIPRTC), reason=str(NO_HIPRTC))
@pytest.mark.parametrize("target", amd.TARGETS["hiprtc"])
def test_hiprtc_compiles_common_h_beside_its_own_header(target):
    source = "KERNEL(64) k(const float* x, float* y) { y[thread_id()] = warp_sum(exp2_fast(x[thread_id()])); }"
    assert only_kernel(source, target, "hiprtc")[1] == []


@pytest.mark.parametrize("target", TARGETS)
def test_registers_allow_as_many_waves_as_clang_says(target):
    processor, registers = amd.PROCESSORS[target], (40, 72, 97, 120, 168, 193, 256)
    waves = [processor.waves_per_simd(vgprs, sgprs=16, lds=0, threads=processor.wave) for vgprs in registers]
    assert waves == occupancy(target, *registers)


@needs_clang
@pytest.mark.parametrize(
    ("target", "sister"), [(x, sister) for x, sisters in amd.SISTERS.items() for sister in sisters]
)
def test_a_gpu_that_is_not_in_the_table_has_the_registers_of_its_sister(target, sister):
    """With 120 registers a wave, 1,536 give 12 waves and 1,024 give 8."""
    assert occupancy(sister, 120) == occupancy(target, 120)


@cache
def occupancy(target, *registers):
    """How many waves of a kernel that takes so many vector registers each SIMD can hold at once, by clang."""
    kernels = (
        f'KERNEL(WARP) k{vgprs}(float* y) {{ asm volatile("" ::: "v{vgprs - 1}"); y[thread_id()] = 0; }}'
        for vgprs in registers
    )
    source = "\n".join((expanded("common.h"), *kernels))
    remark = "-Rpass-analysis=kernel-resource-usage"
    command = [*amd.clang_command(target), remark, "-c", "-o", "/dev/null", "-"]
    said = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stderr
    assert [int(vgprs) for vgprs in re.findall(r"Function Name: k(\d+)", said)] == list(registers)
    return [int(waves) for waves in re.findall(r"Occupancy \[waves/SIMD\]: (\d+)", said)]


# ---- which GPUs there are kernels for --------------------------------------------------------------------------------


def known(clang):
    """The names of the AMD GPUs that a clang knows."""
    command = [clang, "--target=amdgcn-amd-amdhsa", "-nogpulib", "--print-supported-cpus"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(set(re.findall(r"^\s*(gfx[0-9a-f]+)$", said.stdout + said.stderr, re.MULTILINE)))


def described(target):
    """The width of a warp on a target, and whether there is a tile for bf16, by common.h."""
    command = [*amd.clang_command(target), "-E", "-P", "-"]
    text = subprocess.run(command, input=f"{HEADERS}\nWARP LAYOUT", capture_output=True, text=True, check=True).stdout
    warp, layout = map(int, text.splitlines()[-1].split())
    return warp, layout != 0


@needs_clang
def test_common_h_and_targets_py_agree_on_every_gpu():
    supported = [target for target in known(amd.tool("clang")) if not unsupported(target)]
    assert {"gfx900", "gfx90c", "gfx1010", "gfx1036", "gfx1152", "gfx1200"} < set(supported)
    for target in [*supported, *(target for target in amd.NEWER_LLVM if not amd.missing("clang", target))]:
        assert described(target) == (warp_size(target), has_bf16(target)), target


@needs_clang
def test_only_gpus_older_than_gcn_5_are_refused_of_those_that_clang_knows():
    assert {target[:-2] for target in known(amd.tool("clang")) if unsupported(target)} == {"gfx6", "gfx7", "gfx8"}
