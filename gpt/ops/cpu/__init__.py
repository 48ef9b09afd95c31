"""The operations on a CPU.

- operations.py: each operation in NumPy, the reference that every other device is tested against. The arithmetic of a
  block is in embedding.py, norm.py, linear.py (with activations.py), attention.py, loss.py, masks.py (dropout),
  sampling.py and optimizer.py (with orthogonal.py), and that of decoding in decoding.py. sums.py has their sums.
- host.py: inputs, outputs and the clock.
- numba_operations.py: those that take most of a training step, as the loops of numba_loops.py, if numba is there.
  numba_cache.py looks after their compiled code.
"""
