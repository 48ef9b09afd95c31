"""A campaign that tries to make hipgpt lose work, by all that can happen to a program.

    python -m tests.campaign --seconds 120
    python -m tests.campaign --kind power --trials 5000 --jobs 2
    python -m tests.campaign --kind kill --seed 4711 --trials 1        # one trial again, with its details

Each kind of trouble is a file here: kill, fault, power, mutate, race. Its docstring explains the method. A trial is a
function of its seed. `process.py` runs hipgpt's commands, either in a fork of a process that has imported everything or
as the real command, under `shim.c`, which sees their system calls. `scenarios.py` lists the commands and judges the
files that they leave. The campaign needs Linux on x86-64 and a C compiler.
"""
