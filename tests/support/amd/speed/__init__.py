"""Estimates how fast a kernel would be on an AMD GPU, without the GPU.

`python -m tests.support.amd.speed` prints the estimates. A kernel goes through four steps, one module each:

    launches.py      an operation of GpuOps becomes launches: a kernel, its macros, a grid, arguments
    trace.py         the emulator executes one or two workgroups of a launch; every instruction is noted, with the
                     conflicts of its shared memory and the cache lines of its loads and stores
    schedule.py      a model of a compute unit issues the instructions of all workgroups that it has room for
    estimate.py      clocks become microseconds, and shares of the matrix unit's peak and of the memory's bandwidth

instructions.py has the unit that each instruction needs and the clocks that it takes there, banks.py the clocks of the
shared memory, and chips.py the data of each GPU. Each number there has its source, or is called an assumption. steps.py
adds up whole steps. triton_kernels.py has attention and products in Triton's language; triton_peer.py compiles them for
rows beside ours. docs/experiments/amd.md says how far to believe the results.
"""
