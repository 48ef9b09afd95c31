"""Numbers that define GPT-2's arithmetic, for every device and for the files of other programs.

Kernels get them as macros (gpt/ops/gpu/sources.py).
"""

import math

NORM_EPS = 1e-5  # added to the variance in a layer norm
GELU_SCALE, GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715  # gelu(x) = x/2 · (1 + tanh(SCALE · (x + CUBIC · x³)))
