"""A campaign that tries to make hipgpt lose work, by whatever can happen to a program.

    python -m tests.campaign --seconds 120
    python -m tests.campaign --kind power --trials 5000 --jobs 2
    python -m tests.campaign --kind kill --seed 4711 --trials 1        # one trial again, with its details

Each kind is a file here: kill, fault, power, mutate, race. Its docstring explains the method. A trial is a function of
its seed. `process.py` runs hipgpt's commands, in a forked child of a process that has imported everything or through
the real command, under `shim.c`, which sees their system calls. `scenarios.py` says what is run, and judges what is
left. It needs Linux on x86-64 and a C compiler.
"""
