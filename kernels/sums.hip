// Sums in a fixed order, so that the same input gives the same bits: column sums for the gradients of biases and of layer
// norms' parameters, and the step's metrics.
//
// A column sum takes two stages. `column_sums` leaves partial sums: a block adds up some rows of 32 x WIDTH columns, its
// 8 groups of threads every eighth row each. layernorm.hip leaves such partial sums too. `add_partials` adds up those of
// all the vectors of a model at once.
// Traffic: the matrix once; the partial sums are a small part of it.
//
// Set by the host: T (bf16 | float), WIDTH (columns per thread; divides the row's length).
#include "common.h"

constexpr int GROUPS = 8, COLUMNS = 32 * WIDTH;

// The sum of rows first ... end - 1 of this block's columns of x, in `sums`: column i's is sums[i].
template <class X>
DEVICE void block_column_sums(const X* x, int first, int end, int columns, Shared<float> sums) {
  int group = thread_id() / 32, place = thread_id() % 32 * WIDTH, column = block_x() * COLUMNS + place;
  Floats<WIDTH> sum = {};
  if (column < columns) {
    _Pragma("unroll 4") for (int row = first + group; row < end; row += GROUPS) {
      auto part = Floats<WIDTH>::load(x + (index_t)row * columns + column);
      UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += part.v[e];
    }
  }
  UNROLL for (int e = 0; e < WIDTH; e++) sums[group * COLUMNS + place + e] = sum.v[e];
  sync();
  for (int i = thread_id(); i < COLUMNS; i += 256) {
    float total = 0;
    for (int g = 0; g < GROUPS; g++) total += sums[g * COLUMNS + i];
    sums[i] = total;  // only this thread reads or writes column i from here on
  }
}

// partials [parts, columns], `stride` apart, = sums over `chunk` rows each of x [rows, columns]; a row of blocks per part
KERNEL(256) column_sums(const T* x, float* partials, int rows, int columns, int chunk, int stride) {
  SHARED(float, sums, GROUPS * COLUMNS);
  block_column_sums(x, block_y() * chunk, minimum(rows, (block_y() + 1) * chunk), columns, sums);
  for (int i = thread_id(); i < COLUMNS; i += 256) {
    int column = block_x() * COLUMNS + i;
    if (column < columns) partials[(index_t)block_y() * stride + column] = sums[i];
  }
}

// out [columns] += the sum over rows of partials [rows, columns]
KERNEL(256) add_partials(const float* partials, float* out, int rows, int columns) {
  SHARED(float, sums, GROUPS * COLUMNS);
  block_column_sums(partials, 0, rows, columns, sums);
  for (int i = thread_id(); i < COLUMNS; i += 256) {
    int column = block_x() * COLUMNS + i;
    if (column < columns) out[column] += sums[i];
  }
}

// out [2] += (sum of losses, sum of hits), both [count], in float64; one block
KERNEL(256) add_metrics(const float* losses, const float* hits, double* out, int count) {
  SHARED(double, loss_sums, 256);
  SHARED(double, hit_sums, 256);
  double loss = 0, hit = 0;
  for (int i = thread_id(); i < count; i += 256) {
    loss += losses[i];
    hit += hits[i];
  }
  loss_sums[thread_id()] = loss;
  hit_sums[thread_id()] = hit;
  sync();
  if (thread_id() < 2) {
    double total = 0;
    for (int i = 0; i < 256; i++) total += thread_id() ? hit_sums[i] : loss_sums[i];
    out[thread_id()] += total;
  }
}
