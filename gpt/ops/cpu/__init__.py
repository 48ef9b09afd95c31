"""The operations on a CPU.

operations.py computes them with NumPy and is the reference that every other device is tested against.
numba_operations.py replaces those that take most of a training step by the loops of numba_loops.py, if numba is there;
numba_cache.py looks after their compiled code.
"""
