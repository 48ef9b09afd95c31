// Sums in a fixed order, so that the same input gives the same bits: column sums for the gradients of biases and of
// layer norms' parameters, and the step's metrics.
//
// A column sum takes two stages. The first leaves partial sums: a block adds up some rows of LANES x WIDTH columns. Its
// threads form GROUPS groups of LANES, each group takes every GROUPS-th row, and AHEAD of its rows are loaded at a
// time. Kernels that write a gradient leave such partial sums of it as they go: layernorm.hip's, and here the one that
// takes a gradient back through an activation. In the second stage `add_partials` adds up those of all vectors of a
// model at once. Traffic: each matrix once; the partial sums are a small part of it. It also adds up the partial sums of
// a weight's gradient, which matmul.hip leaves if the weight is small.
//
// Set by the host: T (bf16 | float), WIDTH (columns per thread; divides the row's length), LANES (threads side by side
// along a row; divides THREADS), ACTIVATION (gelu | relu), FRESH (1 if sums do not count what was there), THREADS.
#include "common.h"

constexpr int GROUPS = THREADS / LANES, AHEAD = 4, COLUMNS = LANES * WIDTH;

// Adds up rows first ... end - 1 of a matrix with so many columns, and hands the sums of this block's columns to
// store(column, sum). load(at) reads the WIDTH elements at `at`; take(loaded, at) turns them into the values to add.
template <class Load, class Take, class Store>
DEVICE void column_sums_of(int first, int end, int columns, Load load, Take take, Store store) {
  SHARED(float, sums, GROUPS * COLUMNS);
  int group = thread_id() / LANES, place = thread_id() % LANES * WIDTH, column = block_x() * COLUMNS + place;
  // Each group adds up its own rows: first AHEAD loads, then the sums.
  Floats<WIDTH> sum = {};
  for (int row = first + group; row < end && column < columns; row += AHEAD * GROUPS) {
    decltype(load(index_t{})) loaded[AHEAD];
    UNROLL for (int i = 0; i < AHEAD; i++) {
      if (row + i * GROUPS < end) loaded[i] = load((index_t)(row + i * GROUPS) * columns + column);
    }
    UNROLL for (int i = 0; i < AHEAD; i++) {
      if (row + i * GROUPS < end) {
        Floats<WIDTH> values = take(loaded[i], (index_t)(row + i * GROUPS) * columns + column);
        UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += values.v[e];
      }
    }
  }
  // Then the groups meet in shared memory.
  UNROLL for (int e = 0; e < WIDTH; e++) sums[group * COLUMNS + place + e] = sum.v[e];
  sync();
  for (int i = thread_id(); i < COLUMNS && block_x() * COLUMNS + i < columns; i += THREADS) {
    float total = 0;
    for (int g = 0; g < GROUPS; g++) total += sums[g * COLUMNS + i];
    store(block_x() * COLUMNS + i, total);
  }
}

// Row b of partials, rows `stride` apart, = the sum of rows b chunk ... (b + 1) chunk - 1 of x [rows, columns].
// grid: ceil(columns / (LANES * WIDTH)) x rows of partials, block: THREADS
KERNEL(THREADS) column_sums(const T* x, float* partials, int rows, int columns, int chunk, int stride) {
  int first = block_y() * chunk;
  auto load = [&](index_t at) { return Floats<WIDTH>::load(x + at); };
  auto take = [](Floats<WIDTH> loaded, index_t) { return loaded; };
  auto store = [&](int column, float sum) { partials[(index_t)block_y() * stride + column] = sum; };
  column_sums_of(first, minimum(rows, first + chunk), columns, load, take, store);
}

// dx [rows, columns] *= activation'(pre_activation), and column_sums of the result.
// grid: ceil(columns / (LANES * WIDTH)) x rows of partials, block: THREADS
KERNEL(THREADS) activation_backward(const T* pre_activation, T* dx, float* partials, int rows, int columns, int chunk,
                                    int stride) {
  struct Pair {
    Floats<WIDTH> pre_activation, dx;
  };
  int first = block_y() * chunk;
  auto load = [&](index_t at) { return Pair{Floats<WIDTH>::load(pre_activation + at), Floats<WIDTH>::load(dx + at)}; };
  auto take = [&](Pair pair, index_t at) {
    UNROLL for (int e = 0; e < WIDTH; e++) {
      float gradient = pair.dx.v[e] * JOIN(ACTIVATION, _derivative)(pair.pre_activation.v[e]);
      pair.dx.v[e] = to_float(from_float<T>(gradient));  // the sums are those of the gradient as it is stored
    }
    pair.dx.store(dx + at);
    return pair.dx;
  };
  auto store = [&](int column, float sum) { partials[(index_t)block_y() * stride + column] = sum; };
  column_sums_of(first, minimum(rows, first + chunk), columns, load, take, store);
}

// out [columns] += or, if FRESH, = the sum over rows of partials [rows, columns].
// grid: ceil(columns / (LANES * WIDTH)), block: THREADS
KERNEL(THREADS) add_partials(const float* partials, float* out, int rows, int columns) {
  auto load = [&](index_t at) { return Floats<WIDTH>::load(partials + at); };
  auto take = [](Floats<WIDTH> loaded, index_t) { return loaded; };
  column_sums_of(0, rows, columns, load, take, [&](int column, float sum) {
    if (FRESH) out[column] = sum;
    else out[column] += sum;
  });
}

constexpr int MANY = 16;  // numbers of a thread whose loads begin together, because a single block adds up all of them

// out [2] += (sum of losses, sum of hits), both [count], in float64.
// grid: 1, block: THREADS
KERNEL(THREADS) add_metrics(const float* losses, const float* hits, double* out, int count) {
  SHARED(double, loss_sums, THREADS);
  SHARED(double, hit_sums, THREADS);
  double loss = 0, hit = 0;
  for (int first = thread_id(); first < count; first += MANY * THREADS) {
    float some_losses[MANY], some_hits[MANY];
    UNROLL for (int i = 0; i < MANY; i++) {
      bool inside = first + i * THREADS < count;
      some_losses[i] = inside ? losses[first + i * THREADS] : 0;
      some_hits[i] = inside ? hits[first + i * THREADS] : 0;
    }
    UNROLL for (int i = 0; i < MANY; i++) loss += some_losses[i], hit += some_hits[i];
  }
  loss_sums[thread_id()] = loss;
  hit_sums[thread_id()] = hit;
  sync();
  if (thread_id() < 2) {
    double total = 0;
    for (int i = 0; i < THREADS; i++) total += thread_id() ? hit_sums[i] : loss_sums[i];
    out[thread_id()] += total;
  }
}
