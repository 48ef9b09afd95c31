// The feed-forward layer's activation, GELU or ReLU, where no matrix product has it for an epilogue.
//
// Elementwise: each thread takes WIDTH neighboring elements, and each is read and written once. sums.hip has the way
// back, which sums up what it computes. `add_bias` is for a vendor's product that cannot add one itself, and for
// products that are added to `out` already.
//
// Set by the host: T (bf16 | float), ACTIVATION (gelu | relu), WIDTH (elements per thread; divides the row's length).
#include "common.h"

// out = activation(before), both [count]
KERNEL(256) activation(const T* before, T* out, index_t count) {
  index_t i = ((index_t)block_x() * 256 + thread_id()) * WIDTH;
  if (i >= count) return;
  auto x = Floats<WIDTH>::load(before + i);
  UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] = ACTIVATION(x.v[e]);
  x.store(out + i);
}

// x [rows, columns] += bias [columns]; count = rows x columns
KERNEL(256) add_bias(T* x, const T* bias, int columns, index_t count) {
  index_t i = ((index_t)block_x() * 256 + thread_id()) * WIDTH;
  if (i >= count) return;
  auto sum = Floats<WIDTH>::load(x + i), added = Floats<WIDTH>::load(bias + i % columns);
  UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += added.v[e];
  sum.store(x + i);
}
