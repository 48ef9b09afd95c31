// The global L2 norm of the gradients, which clipping needs and which is not finite if any element is not.
//
// Squares are summed in float64: no gradient, however large, overflows, and the order (thread, block, blocks in turn) is
// fixed. `squares` is one pass over the array and leaves one partial sum per block; `global_norm` adds those up.
#include "common.h"

constexpr int PARTS = 1024;  // blocks of `squares`, whatever the device: the same sums in the same order

KERNEL(256) squares(const float* x, double* partials, index_t count) {
  SHARED(double, sums, 256);
  double sum = 0;
  index_t vectors = count / 4;
  for (index_t i = (index_t)block_x() * 256 + thread_id(); i < vectors; i += PARTS * 256) {
    auto part = Floats<4>::load(x + 4 * i);
    UNROLL for (int e = 0; e < 4; e++) sum += (double)part.v[e] * part.v[e];
  }
  if (block_x() == 0 && thread_id() < count % 4) {
    double last = x[4 * vectors + thread_id()];
    sum += last * last;
  }
  sums[thread_id()] = sum;
  sync();
  for (int half = 128; half; half /= 2) {
    if (thread_id() < half) sums[thread_id()] += sums[thread_id() + half];
    sync();
  }
  if (thread_id() == 0) partials[block_x()] = sums[0];
}

// out [1] = sqrt(sum of partials [PARTS]); one block
KERNEL(256) global_norm(const double* partials, double* out) {
  SHARED(double, sums, 256);
  double sum = 0;
  for (int i = thread_id(); i < PARTS; i += 256) sum += partials[i];
  sums[thread_id()] = sum;
  sync();
  if (thread_id() == 0) {
    double total = 0;
    for (int i = 0; i < 256; i++) total += sums[i];
    out[0] = sqrt_of(total);
  }
}
