"""The operations on a GPU.

- operations.py: each operation as a launch of kernels. launch.py has the kernels, and the numbers of their launches.
- rows.py and muon.py: the launches of a layer in decoding, and those of Muon.
- products.py: matrix products, by the vendor's library (blas.py) or by a kernel. selfcheck.py compares the two on AMD,
  and verdict.py remembers the result, even if the library ended the program.
- memory.py: arrays. replay.py: inputs, outputs, and steps that are recorded once. timeline.py: the clock.
- interface.py: the contract of a GPU, `Device`. device.py fulfills it through CuPy. sources.py turns a kernel's file
  into the text of one compilation, and targets.py knows the abilities of a GPU by its compiler's name for it.
- facts.py: the GPUs, the driver and the libraries here, for `hipgpt doctor`.
"""
