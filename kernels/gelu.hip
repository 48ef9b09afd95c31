// The feed-forward layer's activation (GELU or ReLU) and a bias, for matrix products that cannot apply them themselves.
//
// Elementwise: each thread takes WIDTH neighboring elements, and each is read and written once. The backward pass of
// the activation is in sums.hip, which also adds up the gradients that it computes. `add_bias` serves a vendor's
// product that cannot add a bias, and products that are added to an `out` that is there already.
//
// Set by the host: T (bf16 | float), ACTIVATION (gelu | relu), WIDTH (elements per thread; divides the row's length),
// THREADS.
#include "common.h"

// out = activation(pre_activation), both [count].
// grid: ceil(count / (THREADS * WIDTH)), block: THREADS
KERNEL(THREADS) activation(const T* pre_activation, T* out, index_t count) {
  index_t i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  if (i >= count) return;
  auto x = Floats<WIDTH>::load(pre_activation + i);
  UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] = ACTIVATION(x.v[e]);
  x.store(out + i);
}

// x [rows, columns] += bias [columns]; count = rows x columns.
// grid: ceil(count / (THREADS * WIDTH)), block: THREADS
KERNEL(THREADS) add_bias(T* x, const T* bias, int columns, index_t count) {
  index_t i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  if (i >= count) return;
  auto sum = Floats<WIDTH>::load(x + i), added = Floats<WIDTH>::load(bias + i % columns);
  UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += added.v[e];
  sum.store(x + i);
}
