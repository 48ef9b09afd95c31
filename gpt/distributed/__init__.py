"""Training on several ranks: processes that each work on a GPU, or on CPU cores, and step together.

ranks.py        the face for the rest of the program: `Ranks`, and `ALONE` for a process on its own
launch.py       where this process stands among the ranks, and where they meet
control.py      small messages: shared values, failures, a heartbeat; links.py has their connections
agreement.py    the step that all ranks stop after, if one of them gets a signal
keeper.py       a parent of each rank under MPICH's mpirun, which would kill all ranks before they can say why
collectives.py  sums and exchanges of arrays: the contract, which mpi.py fulfills on CPUs and nccl.py on GPUs
shares.py       which rank steps which elements of the flat buffers
reduction.py    the sum of all ranks' gradients, beside the backward pass
"""
