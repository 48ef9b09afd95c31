"""The machine that hipgpt runs on: its files, signals, terminal, memory and cores. Nothing here knows of models.

files.py        files that are wholly there or not at all, whenever the power is cut
filesystem.py   calls that some file systems lack (links, locks, fsync, mapping), and going on without them
lock.py         one process at a time writes to a directory
reading.py      files that may hold anything: regular ones alone, JSON checked against a schema
typed_path.py   paths as users type them
tensors.py      safetensors files, one tensor at a time
shipped.py      the files that come with hipgpt: kernels and a text
console.py      lines and progress bars on standard output
interrupts.py   signals: the first one asks for an end, the second one forces it
ending.py       the end of a process, of which other ranks are told
threads.py      a pool of threads for NumPy
process.py      other processes that run Python
limits.py       the memory, CPUs and disk space that this process may use
"""
