"""The tools that tests work with; nothing in here is a test of hipgpt.

executor/ runs the kernels on a CPU, amd/ compiles and emulates them for AMD GPUs, rocm/ simulates a ROCm installation.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout
