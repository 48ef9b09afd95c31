"""The tools that tests work with. The few tests in here are tests of these tools, not of hipgpt.

executor/ runs the kernels on a CPU, amd/ compiles and emulates them for AMD GPUs, rocm/ simulates a ROCm installation.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the root of the checkout
