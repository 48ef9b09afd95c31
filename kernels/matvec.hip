// out = activation(x W + bias) for a single row x: what writing text needs, where a product is as fast as W is read.
//
// W [k, n] row by row (`matvec`): a block takes LANES vectors of neighboring columns and shares out the rows of W among its
// threads, whose sums it adds up in a fixed order. W [n, k] (`matvec_transposed`): a warp per element of out. Traffic: W
// once, all else from the cache.
//
// Set by the host: T (bf16 | float), WIDTH (a vector's elements, which divide a row of W), ACTIVATION (gelu | relu), and which of
// the rest there is: BIAS, ACTIVATED (0 | 1).
#include "common.h"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int LANES = 2, DEPTH = THREADS / LANES;  // vectors of columns, rows of W at a time
constexpr int AHEAD = 6;                           // rows of a thread that are on their way at once

DEVICE void finish(float v, int column, const T* bias, T* before, T* out) {
#if BIAS
  v += to_float(bias[column]);
#endif
#if ACTIVATED
  T stored = from_float<T>(v);
  before[column] = stored;
  v = ACTIVATION(to_float(stored));
#endif
  out[column] = from_float<T>(v);
}

KERNEL(256) matvec(const T* x, const T* w, const T* bias, T* before, T* out, int k, int n) {
  SHARED(float, sums, WARPS * LANES * WIDTH);
  int lane = thread_id() % LANES, column = (block_x() * LANES + lane) * WIDTH;
  Floats<WIDTH> sum = {};
  if (column < n) {
    for (int first = thread_id() / LANES; first < k; first += AHEAD * DEPTH) {
      Vector<T> parts[AHEAD];
      float factors[AHEAD];
      UNROLL for (int i = 0; i < AHEAD; i++) {
        int row = first + i * DEPTH;
        factors[i] = row < k ? to_float(x[row]) : 0;
        parts[i] = *(const Vector<T>*)(w + (index_t)minimum(row, k - 1) * n + column);
      }
      UNROLL for (int i = 0; i < AHEAD; i++) {
        UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += factors[i] * to_float(parts[i].v[e]);
      }
    }
  }
  UNROLL for (int e = 0; e < WIDTH; e++) {
    for (int mask = LANES; mask < WARP; mask *= 2) sum.v[e] += shuffle_xor(sum.v[e], mask);
    if (lane_id() < LANES) sums[(warp_id() * LANES + lane) * WIDTH + e] = sum.v[e];
  }
  sync();
  int i = thread_id(), first = block_x() * LANES * WIDTH;
  if (i < LANES * WIDTH && first + i < n) {
    float total = 0;
    for (int warp = 0; warp < WARPS; warp++) total += sums[warp * LANES * WIDTH + i];
    finish(total, first + i, bias, before, out);
  }
}

KERNEL(256) matvec_transposed(const T* x, const T* w, const T* bias, T* before, T* out, int k, int n) {
  int row = block_x() * WARPS + warp_id();
  if (row >= n) return;
  float sum = 0;
  for (int i = lane_id() * WIDTH; i < k; i += WARP * WIDTH) {
    auto a = Floats<WIDTH>::load(x + i), b = Floats<WIDTH>::load(w + (index_t)row * k + i);
    UNROLL for (int e = 0; e < WIDTH; e++) sum += a.v[e] * b.v[e];
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) finish(sum, row, bias, before, out);
}
