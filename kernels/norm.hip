// The global L2 norm of the gradients. Clipping needs it, and it is not finite if any element is not.
//
// Squares are summed in float64, so no gradient overflows, however large. The order is fixed: a thread's elements, then
// the threads of a block, then the blocks. `squares` is one pass over the array and leaves one partial sum per block;
// `global_norm` adds those up.
//
// Set by the host: BLOCKS (of `squares` at most: the same on every device, so that all add up in the same order), WIDTH
// (elements that a thread reads at a time), THREADS (a power of 2).
#include "common.h"

// partials: float64 [BLOCKS], a sum of squares per block.
// grid: min(BLOCKS, ceil(count / (WIDTH * THREADS))), block: THREADS
KERNEL(THREADS) squares(const float* x, double* partials, index_t count) {
  SHARED(double, sums, THREADS);
  double sum = 0;
  index_t vectors = count / WIDTH;
  for (index_t i = (index_t)block_x() * THREADS + thread_id(); i < vectors; i += BLOCKS * THREADS) {
    auto vector = Floats<WIDTH>::load(x + WIDTH * i);
    UNROLL for (int e = 0; e < WIDTH; e++) sum += (double)vector.v[e] * vector.v[e];
  }
  // The elements after the last whole vector
  if (block_x() == 0 && thread_id() < count % WIDTH) {
    double last = x[WIDTH * vectors + thread_id()];
    sum += last * last;
  }
  // The threads' sums, by halves
  sums[thread_id()] = sum;
  sync();
  for (int half = THREADS / 2; half; half /= 2) {
    if (thread_id() < half) sums[thread_id()] += sums[thread_id() + half];
    sync();
  }
  if (thread_id() == 0) partials[block_x()] = sums[0];
}

// out [1] = sqrt(sum of partials [blocks]).
// grid: 1, block: THREADS
KERNEL(THREADS) global_norm(const double* partials, double* out, int blocks) {
  SHARED(double, sums, THREADS);
  double sum = 0;
  for (int i = thread_id(); i < blocks; i += THREADS) sum += partials[i];
  sums[thread_id()] = sum;
  sync();
  if (thread_id() == 0) {
    double total = 0;
    for (int i = 0; i < THREADS; i++) total += sums[i];
    out[0] = sqrt_of(total);
  }
}

// out [1] = sqrt(sum of the squares of norms [count]): ranks' shares of a norm become the whole one.
// grid: 1, block: 1
KERNEL(1) norm_of_norms(const double* norms, double* out, int count) {
  double sum = 0;
  for (int i = 0; i < count; i++) sum += norms[i] * norms[i];
  out[0] = sqrt_of(sum);
}
