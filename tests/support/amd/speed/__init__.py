"""An estimate of how fast a kernel would be on an AMD GPU, without having one.

`python -m tests.support.amd.speed` prints it. A kernel goes through four steps, one module each:

    launches.py      an operation of GpuOps becomes launches: a kernel, its macros, a grid, arguments
    trace.py         the emulator executes two workgroups of a launch; every instruction is noted, with the
                     conflicts of its shared memory and the cache lines of its loads and stores
    schedule.py      a model of a compute unit issues the instructions of all workgroups that it has room for
    estimate.py      clocks become shares of the matrix unit's peak and of the memory's bandwidth, and microseconds

instructions.py says which unit an instruction needs and for how long, banks.py how long the shared memory takes, and
chips.py what each GPU has. Each number there has its source, or is called an assumption. steps.py adds up whole steps.
docs/performance.md says how far the results can be believed.
"""
