"""The kernels of one GPU, and the numbers of their launches.

Kernels get these numbers as #defines. The comment above each kernel says its grid and its block in terms of them.
"""

import math
from typing import NamedTuple

from gpt.arithmetic import ceil_div, round_up
from gpt.ops.gpu.interface import Device, Kernel

THREADS = 256  # of a block, in all files that have no number of their own here
EMBEDDING_THREADS = 128
CACHED_THREADS = 512  # attention_cached.hip
SAMPLE_THREADS = 1024  # as many as a block may have, because a row has only one block
ADAMW_WIDTH = 4  # elements of a thread
CONVERT_WIDTH = 8  # elements of a thread
MUON_BLOCKS = 128  # most blocks that share the norm of a matrix, on every device: they set the order of the sum

# layernorm.hip: elements of a row per lane, more if a row has over 6,144, because backward has seven arrays of them in
# registers. With 24 in NVIDIA's backward pass, a multiprocessor would have registers for one block alone.
LANE_ELEMENTS, NVIDIA_BACKWARD_ELEMENTS = 24, 20

# norm.hip
NORM_BLOCKS = 1024  # most blocks, on every device: they set the order of the sum
NORM_WIDTH = 4  # elements that a thread takes at a time

# sums.hip
SUM_LANES = 32  # threads side by side along a row
PARTIAL_LANES = 8  # the same along one of many rows of partial sums on AMD, whose large GPUs want more blocks

# matmul.hip
TILE_SIDE = 64  # rows and columns of a block
TILE_WARPS = 4  # warps of a block
WIDE_SIDE = 128  # rows and columns of a block in large products on AMD's matrix units
DEEP = 2048  # least depth of a product on CDNA with no more than one wide block for each multiprocessor
PART_BLOCKS = 4  # most blocks for each multiprocessor that share the gradient of a weight, if it is computed in parts
PART_DEPTH = 256  # least rows of a batch in a part of a weight's gradient

# matvec.hip
MATVEC_LONGEST = 10_000  # elements of the longest row, which shared memory has to hold
MATVEC_THREADS = (256, 512, 1024)  # of a block: the first number with at most MATVEC_VECTORS vectors of weights each
MATVEC_VECTORS = 8
MATVEC_LANES = 2  # columns of a block, in vectors
MATVEC_ROWS = 4  # rows of a warp if weights are transposed
MATVEC_SEQUENCES = 8  # rows of x of a block
MATVEC_NORM_ROWS = 4  # the same if it normalizes them: RDNA has no registers for 8
MATVEC_NORMED = 6144  # elements of these rows: 24 KiB

# skinny.hip
SKINNY_THREADS = ((2048, 256), (8192, 512), (math.inf, 1024))  # (longest row, threads of a block for it)
SKINNY_SIDE = 16  # sequences of a tile
SKINNY_MOST = 64  # most sequences of a block
STREAM_PARTS = 4  # of the residual stream on CDNA, and blocks that share the rows of a weight

# softmax.hip: (bytes of a row of logits up to, threads of a block), the smallest block with which the rows of all
# resident blocks stay in a multiprocessor's cache (measured on an H100)
LOGITS_THREADS = ((12 * 1024, 128), (64 * 1024, 512), (math.inf, 768))

# attention.hip
ATTENTION_SIDE = 64  # rows of a block whose warps have 16 each
WGMMA_SLICE = 64  # rows of the other side that a block takes at a time with Hopper's instruction for four warps

FILE_DEFINES: dict[str, dict[str, object]] = {  # macros that all kernels of a file get, besides those of the launch
    "adamw.hip": {"WIDTH": ADAMW_WIDTH},
    "attention_cached.hip": {"THREADS": CACHED_THREADS},
    "convert.hip": {"WIDTH": CONVERT_WIDTH},
    "embedding.hip": {"THREADS": EMBEDDING_THREADS, "STREAM": "T", "PARTS": 1},
    "matvec.hip": {"ROW_THREADS": THREADS, "NORM_ROWS": MATVEC_NORM_ROWS, "NORMED": MATVEC_NORMED},
    "muon.hip": {"BLOCKS": MUON_BLOCKS},
    "norm.hip": {"BLOCKS": NORM_BLOCKS, "WIDTH": NORM_WIDTH},
    "sample.hip": {"THREADS": SAMPLE_THREADS},
    "skinny.hip": {"STREAM": "T", "PARTS": 1},
    "sums.hip": {"LANES": SUM_LANES, "FRESH": 0},
}


def norm_lanes(name: str, d: int, width: int, device: Device) -> tuple[int, int]:
    """How a kernel of layernorm.hip divides a row of d elements: its lanes, and the elements that each takes at a time.

    These are `width`, a vector, or half of it, if whole vectors would leave more of 64 lanes idle. For example, a lane
    takes 3 x 4 of 768 elements, not 2 x 8, which would be room for 1,024. That also saves registers, which NVIDIA's
    backward pass is short of.
    """
    nvidia_backward = name.endswith("backward") and device.has_tf32
    elements, lanes = NVIDIA_BACKWARD_ELEMENTS if nvidia_backward else LANE_ELEMENTS, device.warp
    while lanes < THREADS and lanes * elements < d:
        lanes *= 2
    may_halve = width > 1 and (device.warp == 64 or nvidia_backward)
    if may_halve and ceil_div(d, lanes * width // 2) < 2 * ceil_div(d, lanes * width):
        width //= 2
    return lanes, width


def attention_edge(name: str, head_dim: int, is_cdna: bool) -> int:
    """Rows of a warp of a kernel of attention.hip in bf16, which are the rows of its tiles.

    On CDNA an operand of 32 rows serves twice as many products. But attention_backward_keys has two sums, which take
    too many registers then if heads are large, and attention_backward_queries waits for the L2 if heads of 80 are
    padded to 96.
    """
    is_padded = name == "attention_backward_queries" and 64 < head_dim <= 80
    is_large = name == "attention_backward_keys" and head_dim > 64
    return 32 if is_cdna and not is_padded and not is_large else 16


class AttentionBlock(NamedTuple):
    """How a block of attention.hip divides its work: its rows, and rows of the other side that it takes at a time.

    If its own rows are in shared memory, too, its launch asks for `shared_bytes`. Otherwise the kernel chooses `slice`
    by itself, its arrays have fixed sizes, and both numbers are 0.
    """

    side: int
    slice: int = 0
    shared_bytes: int = 0


def attention_block(
    name: str, head_dim: int, matrix: str, dropout: bool, wgmma: bool, most_shared_bytes: int
) -> AttentionBlock:
    """The block of a kernel of attention.hip. `matrix` is the type that its products take.

    With Hopper's instruction a forward block of large heads waits for its slices, and two strips of 64 rows share them.
    In float32 a block has 64 rows, or as many as a multiprocessor has shared memory for: 48 in attention_backward_keys
    with heads of 128, if it has 99 KiB. It takes slices of 32 rows, but of 16 if heads are so large that registers have
    no room for the operands, or that a multiprocessor would have no room for two blocks of a kernel of backward.
    """
    if wgmma:
        side = 2 * ATTENTION_SIDE if name == "attention" and head_dim > 80 else ATTENTION_SIDE
        row_bytes, rows = round_up(head_dim, 16) * 2, WGMMA_SLICE
    elif matrix in ("tf32", "tf32x3"):
        side, rows, row_bytes = ATTENTION_SIDE, 32, (round_up(head_dim, 16) + 4) * 4
        two_fit = 2 * _attention_bytes(name, side, rows, row_bytes, dropout) <= most_shared_bytes
        if head_dim > 96 or head_dim > 64 and name != "attention" and not two_fit:
            rows = 16
    else:
        return AttentionBlock(2 * ATTENTION_SIDE if matrix == "wide_bf16" else ATTENTION_SIDE)
    while (size := _attention_bytes(name, side, rows, row_bytes, dropout)) > most_shared_bytes:
        side -= 16
    return AttentionBlock(side, rows, size)


def _attention_bytes(name: str, side: int, rows: int, row_bytes: int, dropout: bool) -> int:
    """Bytes of shared memory of a block of attention.hip with its own rows in it.

    They are two stages of two slices, and the block's own rows of one matrix, or of two in backward. For each row of a
    slice, attention_backward_keys also has lse, delta and, with dropout, a hash.
    """
    own = side if name == "attention" else 2 * side
    numbers = 0 if name != "attention_backward_keys" else 3 if dropout else 2
    return (4 * rows + own) * row_bytes + 2 * rows * numbers * 4


class MatvecBlock(NamedTuple):
    """How a block of matvec.hip divides its work. The product of threads and turns sets the order of sums."""

    threads: int
    turns: int
    sequences: int


def matvec_block(name: str, k: int, count: int) -> MatvecBlock:
    """The block of a kernel of matvec.hip for `count` rows of k elements.

    Up to MATVEC_SEQUENCES rows share the weights that a block reads. Their sums need registers: linear_add has them in
    a block of THREADS threads, which takes turns. With a norm, MATVEC_NORM_ROWS rows do at most, and fewer if they are
    long.
    """
    fitting = (each for each in MATVEC_THREADS if k * MATVEC_LANES <= each * MATVEC_VECTORS)
    threads, most = next(fitting, MATVEC_THREADS[-1]), MATVEC_SEQUENCES
    if count == 1:
        return MatvecBlock(threads, turns=1, sequences=1)
    if name == "linear_add":
        return MatvecBlock(THREADS, threads // THREADS, most)
    most = MATVEC_NORM_ROWS
    while most > 1 and (most * k > MATVEC_NORMED or most * threads > MATVEC_SEQUENCES * THREADS):
        most //= 2
    return MatvecBlock(threads, turns=1, sequences=most)


class SkinnyBlock(NamedTuple):
    """How a block of skinny.hip divides its work. The slots alone set the order of sums."""

    threads: int
    slots: int
    sequences: int


def skinny_block(k: int, count: int, blocks: int, device: Device) -> SkinnyBlock:
    """The block of a kernel of skinny.hip for `count` rows of k elements.

    `blocks` is the number of blocks that all columns need. Several rows need the registers of a small block, whose
    warps take the slots in turns. (AMD has registers for a tile of rows in every warp.) They are shared out to more
    blocks if there would be fewer than multiprocessors. For example, the 48 blocks for 768 columns and 64 rows become
    192, each for 16 rows.
    """
    threads = next(threads for longest, threads in SKINNY_THREADS if k <= longest)
    slots = threads // device.warp
    if count == 1:
        return SkinnyBlock(threads, slots, 1)
    sequences = SKINNY_SIDE
    while sequences < min(count, SKINNY_MOST) and blocks * ceil_div(count, 2 * sequences) >= device.multiprocessors:
        sequences *= 2
    has_room = sequences == SKINNY_SIDE and not device.has_tf32
    return SkinnyBlock(threads if has_room else THREADS, slots, sequences)


class Kernels:
    """The kernels for one GPU whose activations have type `type`, "bf16" or "float". Each is compiled at its first use.

    Example:
        kernel = Kernels(device, "float")("gelu.hip", "add_bias", WIDTH=4, ACTIVATION="gelu")
        kernel((grid,), (THREADS,), (x, bias, columns, size))
    """

    def __init__(self, device: Device, type: str) -> None:
        self._device, self._type, self.is_bf16 = device, type, type == "bf16"
        self.vector = 8 if type == "bf16" else 4  # activations in a vector of 16 bytes
        self.tile_threads = TILE_WARPS * device.warp  # of a block of matmul.hip
        self._compiled: dict[tuple[object, ...], Kernel] = {}

    def __call__(self, file: str, name: str, shared_bytes: int = 0, **defines: object) -> Kernel:
        """A kernel; call it with (grid, block, arguments)."""
        key = (file, name, *defines.values())
        kernel = self._compiled.get(key)
        if kernel is None:
            defines = {"T": self._type, "THREADS": THREADS, **FILE_DEFINES.get(file, {}), **defines}
            kernel = self._compiled[key] = self._device.kernel(file, name, defines, shared_bytes)
        return kernel

    def product_side(self, matrices: int, rows: int, columns: int, depth: int, width: int) -> int:
        """Rows and columns of a block of matmul.hip for so many products [rows, depth] @ [depth, columns].

        A wide block reads half as much for each product. It is for the bf16 matrix units of AMD (NVIDIA's have tf32
        too) and operands of whole vectors, if there are two such blocks for each multiprocessor: one multiplies while
        the other waits for memory. On CDNA small blocks wait for shared memory, and a wide one alone is faster, if the
        depth makes up for its longer start and end. So there one block for each multiprocessor will do, or for three of
        four, but not a few more, because some multiprocessors would have two. For example, 2048 x 3072 elements of C
        are 384 wide blocks, enough for 192 multiprocessors.
        """
        blocks = matrices * ceil_div(rows, WIDE_SIDE) * ceil_div(columns, WIDE_SIDE)
        has_wide = self._type == "bf16" and not self._device.has_tf32 and width > 1
        multiprocessors = self._device.multiprocessors
        is_deep = self._device.warp == 64 and depth >= DEEP
        are_enough = blocks >= 2 * multiprocessors or (is_deep and 0.75 * multiprocessors <= blocks <= multiprocessors)
        return WIDE_SIDE if has_wide and are_enough else TILE_SIDE

    def gradient_parts(self, rows: int, columns: int, depth: int) -> int:
        """Parts of the depth, the rows of a batch, that share the gradient of a weight [rows, columns] in matmul.hip.

        A small weight has too few blocks to fill a GPU. So the depth is divided into equal parts, as many as give each
        multiprocessor up to PART_BLOCKS blocks. For example, a weight of 256 x 1024 is 64 blocks, each of which an
        MI300X with 304 multiprocessors computes in 16 parts if 8192 rows are so divided.
        """
        blocks = ceil_div(rows, TILE_SIDE) * ceil_div(columns, TILE_SIDE)
        most = min(PART_BLOCKS * self._device.multiprocessors // blocks, depth // PART_DEPTH)
        return next((parts for parts in range(most, 1, -1) if depth % parts == 0), 1)

    def width(self, columns: int) -> int:
        """Elements of a row that a thread takes at a time: a vector if `columns` are whole vectors, else one."""
        return self.vector if columns % self.vector == 0 else 1
