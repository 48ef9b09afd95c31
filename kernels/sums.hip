// Sums in a fixed order, so that the same input gives the same bits: column sums for the gradients of biases and of layer
// norms' parameters, and the step's metrics.
//
// A column sum takes two stages. The first leaves partial sums: a block adds up some rows of 32 x WIDTH columns, its 8
// groups of threads every eighth row each, with four rows on their way at a time. Kernels that write a gradient leave
// such partial sums of it as they go: layernorm.hip's, and here the one that takes a gradient through an activation.
// `add_partials` adds up those of all the vectors of a model at once.
// Traffic: each matrix once; the partial sums are a small part of it.
//
// Set by the host: T (bf16 | float), WIDTH (columns per thread; divides the row's length), ACTIVATION (gelu | relu).
#include "common.h"

constexpr int GROUPS = 8, AHEAD = 4, COLUMNS = 32 * WIDTH;

// The sums of this block's columns over rows first ... end - 1 go to store(column, sum). take(from, at) is what to add up
// of what load(at) brought, `at` being the place of the first of WIDTH elements of a matrix with so many columns.
template <class Load, class Take, class Store>
DEVICE void column_sums_of(int first, int end, int columns, Load load, Take take, Store store) {
  SHARED(float, sums, GROUPS * COLUMNS);
  int group = thread_id() / 32, place = thread_id() % 32 * WIDTH, column = block_x() * COLUMNS + place;
  Floats<WIDTH> sum = {};
  for (int row = first + group; row < end && column < columns; row += AHEAD * GROUPS) {
    decltype(load(index_t{})) from[AHEAD];
    UNROLL for (int i = 0; i < AHEAD; i++) {
      if (row + i * GROUPS < end) from[i] = load((index_t)(row + i * GROUPS) * columns + column);
    }
    UNROLL for (int i = 0; i < AHEAD; i++) {
      if (row + i * GROUPS < end) {
        Floats<WIDTH> part = take(from[i], (index_t)(row + i * GROUPS) * columns + column);
        UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += part.v[e];
      }
    }
  }
  UNROLL for (int e = 0; e < WIDTH; e++) sums[group * COLUMNS + place + e] = sum.v[e];
  sync();
  for (int i = thread_id(); i < COLUMNS && block_x() * COLUMNS + i < columns; i += 256) {
    float total = 0;
    for (int g = 0; g < GROUPS; g++) total += sums[g * COLUMNS + i];
    store(block_x() * COLUMNS + i, total);
  }
}

// partials [parts, columns], `stride` apart, = sums over `chunk` rows each of x [rows, columns]; a row of blocks per part
KERNEL(256) column_sums(const T* x, float* partials, int rows, int columns, int chunk, int stride) {
  int first = block_y() * chunk;
  auto load = [&](index_t at) { return Floats<WIDTH>::load(x + at); };
  auto take = [](Floats<WIDTH> part, index_t) { return part; };
  auto store = [&](int column, float sum) { partials[(index_t)block_y() * stride + column] = sum; };
  column_sums_of(first, minimum(rows, first + chunk), columns, load, take, store);
}

// dx [rows, columns] *= activation'(before), and column_sums of what becomes of it
KERNEL(256) activation_backward(const T* before, T* dx, float* partials, int rows, int columns, int chunk, int stride) {
  struct Pair {
    Floats<WIDTH> before, dx;
  };
  int first = block_y() * chunk;
  auto load = [&](index_t at) { return Pair{Floats<WIDTH>::load(before + at), Floats<WIDTH>::load(dx + at)}; };
  auto take = [&](Pair pair, index_t at) {
    UNROLL for (int e = 0; e < WIDTH; e++) {
      float gradient = pair.dx.v[e] * JOIN(ACTIVATION, _derivative)(pair.before.v[e]);
      pair.dx.v[e] = to_float(from_float<T>(gradient));
    }
    pair.dx.store(dx + at);
    return pair.dx;
  };
  auto store = [&](int column, float sum) { partials[(index_t)block_y() * stride + column] = sum; };
  column_sums_of(first, minimum(rows, first + chunk), columns, load, take, store);
}

// out [columns] += the sum over rows of partials [rows, columns]
KERNEL(256) add_partials(const float* partials, float* out, int rows, int columns) {
  auto load = [&](index_t at) { return Floats<WIDTH>::load(partials + at); };
  auto take = [](Floats<WIDTH> part, index_t) { return part; };
  column_sums_of(0, rows, columns, load, take, [&](int column, float sum) { out[column] += sum; });
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
