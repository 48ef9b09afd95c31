"""Training on several GPUs or machines: one process, a rank, for each.

`joined` finds or starts the other ranks. The rest of the program knows them as a `Ranks` object, and a process on its
own as one that does nothing.
"""

from gpt.distributed.ranks import ALONE, Ranks, joined

__all__ = ["ALONE", "Ranks", "joined"]
