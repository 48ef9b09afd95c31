// Linear layers of a single row x [K], for writing text: such a product takes as long as reading its weights. The layer
// norm before it and the residual add after it are fused in, because a launch costs as much as a small product.
//
// W [K, n]: a block takes LANES vectors of neighboring columns and divides the rows of W among its threads, whose sums
// it adds up in a fixed order. W [n, K]: a warp takes ROWS elements of out, and its lanes divide the columns of W. The
// loads of the first vectors of W, mostly of all of them, begin before anything else. Only then is x read, normalized
// by every block for itself, and left in shared memory. Traffic: W once, all else from the cache.
//
// Set by the host: T (bf16 | float), K, WIDTH (a vector's elements, which divide a row of W), LANES, ROWS, BIAS (0 | 1),
// ACTIVATION (gelu | relu | none), THREADS, ROW_THREADS (of a block for W [n, K]).
#include "common.h"

constexpr int WARPS = THREADS / WARP;
constexpr int DEPTH = THREADS / LANES;  // rows of W [K, n] at a time

// Vectors of W [K, n] that a thread has to read. Up to 8 are read at once; more are read in rounds, AHEAD in each,
// which registers hold.
constexpr int VECTORS = (K + DEPTH - 1) / DEPTH, ROUNDS = VECTORS <= 8 ? 1 : (VECTORS + 4) / 5;
constexpr int AHEAD = (VECTORS + ROUNDS - 1) / ROUNDS;
// Vectors of a row of W [n, K] that a lane has to read, and that it reads at once
constexpr int ROW_VECTORS = (K + WARP * WIDTH - 1) / (WARP * WIDTH), ROW_AHEAD = ROW_VECTORS < 3 ? ROW_VECTORS : 3;

DEVICE float none(float v) { return v; }

// factors [K] = x
DEVICE void load(const T* x, Shared<float> factors) {
  for (int i = thread_id(); i < K; i += THREADS) factors[i] = to_float(x[i]);
  sync();
}

// factors [K] = the layer norm of x, by a block of COUNT threads
template <int COUNT> DEVICE void normalize(const T* x, const T* weight, const T* bias, Shared<float> factors) {
  constexpr int MINE = (K + COUNT - 1) / COUNT, COUNT_WARPS = COUNT / WARP;
  SHARED(float, scratch, 2 * COUNT_WARPS);
  auto block_total = [](float v, Shared<float> place) {  // each call has a place of its own: one barrier is enough
    v = warp_sum(v);
    if (lane_id() == 0) place[warp_id()] = v;
    sync();
    return warp_sum(lane_id() < COUNT_WARPS ? (float)place[lane_id()] : 0);
  };
  float v[MINE], scale[MINE], shift[MINE], sum = 0, squares = 0;
  UNROLL for (int i = 0; i < MINE; i++) {
    int at = minimum(thread_id() + i * COUNT, K - 1);
    v[i] = to_float(x[at]), scale[i] = to_float(weight[at]), shift[i] = to_float(bias[at]);
    if (thread_id() + i * COUNT < K) sum += v[i];
  }
  float mean = block_total(sum, scratch) / K;
  UNROLL for (int i = 0; i < MINE; i++) {
    if (thread_id() + i * COUNT < K) squares += (v[i] - mean) * (v[i] - mean);
  }
  float rstd = rsqrt_of(block_total(squares, scratch + COUNT_WARPS) / K + NORM_EPS);
  UNROLL for (int i = 0; i < MINE; i++) {
    int at = thread_id() + i * COUNT;
    if (at < K) factors[at] = (v[i] - mean) * rstd * scale[i] + shift[i];
  }
  sync();
}

// Calls finish(column, sum) for each of this block's columns of factors W + added. fill() leaves the factors [K] in
// shared memory; added(column) is read early.
template <class Fill, class Added, class Finish>
DEVICE void by_columns(const T* w, int n, Shared<float> factors, Fill fill, Added added, Finish finish) {
  SHARED(float, sums, WARPS * LANES * WIDTH);
  static_assert(LANES * WIDTH <= WARP, "a lane is left with one column");
  int i = thread_id(), first_column = block_x() * LANES * WIDTH, lane = i % LANES;
  bool finishes = i < LANES * WIDTH && first_column + i < n;
  float last = finishes ? added(first_column + i) : 0;

  const T* mine = w + minimum(first_column + lane * WIDTH, n - WIDTH);
  Vector<T> vectors[AHEAD];
  auto load_rows = [&](int first) {
    UNROLL for (int j = 0; j < AHEAD; j++) {
      vectors[j] = *(const Vector<T>*)(mine + (index_t)minimum(first + j * DEPTH + i / LANES, K - 1) * n);
    }
  };
  // The weights are on their way while the factors are made.
  load_rows(0);
  fill();
  float sum[WIDTH] = {};
  NO_UNROLL for (int first = 0; first < K; first += AHEAD * DEPTH) {
    if (first > 0) load_rows(first);
    UNROLL for (int j = 0; j < AHEAD; j++) {
      int row = first + j * DEPTH + i / LANES;
      float factor = row < K ? (float)factors[row] : 0;
      UNROLL for (int e = 0; e < WIDTH; e++) sum[e] += factor * to_float(vectors[j].v[e]);
    }
  }

  // Lanes with the same columns swap halves of their sums, until each has one column, and then add those up.
  int column = lane * WIDTH;
  UNROLL for (int step = 0; LANES << step < WARP; step++) {
    int mask = LANES << step, half = WIDTH >> (step + 1);
    bool upper = lane_id() & mask;
    UNROLL for (int e = 0; e < half; e++) {
      float low = sum[e], high = sum[e + half];
      sum[e] = (upper ? high : low) + shuffle_xor(upper ? low : high, mask);
    }
    if (half == 0) sum[0] += shuffle_xor(sum[0], mask);
    if (upper) column += half;
  }
  // The warps meet in shared memory, and one thread finishes each column.
  if (lane_id() < LANES * WIDTH) sums[warp_id() * LANES * WIDTH + column] = sum[0];
  sync();
  if (!finishes) return;
  float total = 0;
  for (int warp = 0; warp < WARPS; warp++) total += sums[warp * LANES * WIDTH + i];
  finish(first_column + i, total + last);
}

// out [n] = activation(layernorm(x) W + bias).
// grid: ceil(n / (LANES * WIDTH)), block: THREADS
KERNEL(THREADS) norm_linear(const T* x, const T* norm_weight, const T* norm_bias, const T* w, const T* bias, T* out,
                            int n) {
  SHARED(float, factors, K);
  auto fill = [&] { normalize<THREADS>(x, norm_weight, norm_bias, factors); };
  auto added = [&](int column) { return BIAS ? to_float(bias[column]) : 0; };
  auto finish = [&](int column, float sum) { out[column] = from_float<T>(ACTIVATION(sum)); };
  by_columns(w, n, factors, fill, added, finish);
}

// out [n] += x W + bias.
// grid: ceil(n / (LANES * WIDTH)), block: THREADS
KERNEL(THREADS) linear_add(const T* x, const T* w, const T* bias, T* out, int n) {
  SHARED(float, factors, K);
  auto fill = [&] { load(x, factors); };
  auto added = [&](int column) { return to_float(out[column]) + to_float(bias[column]); };
  auto finish = [&](int column, float sum) { out[column] = from_float<T>(sum); };
  by_columns(w, n, factors, fill, added, finish);
}

// The same for W [n, K]: out [n] = activation(layernorm(x) Wᵀ + bias).
// grid: ceil(n / (ROWS * ROW_THREADS / WARP)), block: ROW_THREADS
KERNEL(ROW_THREADS) norm_linear_transposed(const T* x, const T* norm_weight, const T* norm_bias, const T* w,
                                           const T* bias, T* out, int n) {
  SHARED(float, factors, K);
  int first_row = (block_x() * (ROW_THREADS / WARP) + warp_id()) * ROWS;
  Vector<T> vectors[ROW_AHEAD][ROWS];
  auto load_vectors = [&](int first) {
    UNROLL for (int j = 0; j < ROW_AHEAD; j++) {
      int column = minimum(((first + j) * WARP + lane_id()) * WIDTH, K - WIDTH);
      UNROLL for (int r = 0; r < ROWS; r++) {
        vectors[j][r] = *(const Vector<T>*)(w + (index_t)minimum(first_row + r, n - 1) * K + column);
      }
    }
  };
  load_vectors(0);
  normalize<ROW_THREADS>(x, norm_weight, norm_bias, factors);
  float sums[ROWS] = {};
  NO_UNROLL for (int first = 0; first < ROW_VECTORS; first += ROW_AHEAD) {
    if (first > 0) load_vectors(first);
    UNROLL for (int j = 0; j < ROW_AHEAD; j++) {
      int column = ((first + j) * WARP + lane_id()) * WIDTH;
      if (column >= K) continue;
      UNROLL for (int e = 0; e < WIDTH; e += 4) {
        Vector<float> factor = factors.vector(column + e);
        UNROLL for (int r = 0; r < ROWS; r++) {
          UNROLL for (int f = 0; f < 4; f++) sums[r] += factor.v[f] * to_float(vectors[j][r].v[e + f]);
        }
      }
    }
  }
  UNROLL for (int r = 0; r < ROWS; r++) {
    float sum = warp_sum(sums[r]);
    if (lane_id() > 0 || first_row + r >= n) continue;
    out[first_row + r] = from_float<T>(ACTIVATION(sum + (BIAS ? to_float(bias[first_row + r]) : 0)));
  }
}
