// Numbers from float32 to bf16, rounded to the nearest, or back: ranks may exchange gradients in half the bytes.
//
// Elementwise: each thread takes WIDTH neighboring elements, and each is read and written once.
//
// Set by the host: FROM and TO (bf16 | float), WIDTH (elements per thread; divides the number of elements), THREADS.
#include "common.h"

// out = x, both [count].
// grid: ceil(count / (THREADS * WIDTH)), block: THREADS
KERNEL(THREADS) convert(const FROM* x, TO* out, index_t count) {
  index_t i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  if (i < count) Floats<WIDTH>::load(x + i).store(out + i);
}
