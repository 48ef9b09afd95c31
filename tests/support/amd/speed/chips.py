"""The data of each GPU: its units, clock and bandwidth, and the latencies that the model assumes.

A workgroup runs on one *unit*, which has 4 SIMDs. On CDNA a unit is a compute unit (CU), on RDNA it is a workgroup
processor, which consists of two CUs.

Sources:
- CUs, clock and bandwidth: AMD's data sheet of the card that `card` names. The clock is the peak or "boost" clock.
  Under load the real clock is lower, so estimated times are too short rather than too long.
- `matrix_flops`: AMD's matrix instruction calculator (github.com/ROCm/amd_matrix_instruction_calculator) and the data
  sheets' peak rates. A peak rate is SIMDs x matrix_flops x clock. For example MI300X: 304 x 4 x 512 x 2.1 GHz = 1,307
  TFLOP/s.
- `l2_bytes`: CDNA 3 white paper, 2,048 bytes a clock for 38 CUs; CDNA 2: 128 bytes for each of 32 channels, 104 CUs.
  For RDNA an assumption.
- Latencies of CDNA: pointer chasing on an MI308X (gcnasm/ubench): 291 to 325 clocks to the L2, 438 ns to memory. Those
  of RDNA are assumptions.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """The numbers of one GPU that schedule.cpp and estimate.py need. Rates are bytes per clock of a unit."""

    card: str
    units: int
    clock: float  # GHz
    bandwidth: float  # of memory, GB/s
    matrix_flops: int  # of a SIMD in a clock, bf16
    is_cdna: bool
    l2_bytes: float
    line: int = 64  # bytes of a cache line
    l1_bytes: int = 64  # CDNA 3 white paper: 64 bytes a clock for a CU; for RDNA an assumption
    line_clocks: float = (
        0.25  # of the L1 for a line; CDNA: assumed; RDNA: fitted to 12 kernels, see docs/experiments/amd.md
    )
    cached_latency: int = 300  # clocks of a load that finds its line in a cache
    memory_latency: int = 600  # clocks of a load that goes to memory

    @property
    def memory_bytes(self) -> float:
        """Bytes that memory moves for one unit in a clock, if all units have equal shares."""
        return self.bandwidth / self.clock / self.units


_CDNA = {"is_cdna": True, "line": 128, "line_clocks": 2, "cached_latency": 310, "memory_latency": 900}
CHIPS = {
    "gfx90a": Chip("MI210", 104, 1.7, 1638, 256, l2_bytes=39, **_CDNA),
    "gfx942": Chip("MI300X", 304, 2.1, 5300, 512, l2_bytes=54, **_CDNA),
    "gfx1100": Chip("RX 7900 XTX", 48, 2.5, 960, 256, is_cdna=False, l2_bytes=64),
    "gfx1151": Chip("Ryzen AI Max+ 395", 20, 2.9, 256, 256, is_cdna=False, l2_bytes=64),
    "gfx1201": Chip("RX 9070 XT", 32, 2.97, 640, 512, is_cdna=False, l2_bytes=64),
}
