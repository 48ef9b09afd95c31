// Linear layers of one row x [K] of each sequence, for writing text in float32: such a product takes as long as reading
// its weights. The layer norm before it and the residual add after it are fused in, because a launch costs as much as a
// small product. skinny.hip is for bf16.
//
// W [K, n]: a block takes LANES vectors of neighboring columns and divides the rows of W among its threads, whose sums
// it adds up in a fixed order. W [n, K]: a warp takes ROWS elements of out, and its lanes divide the columns of W. The
// loads of the first vectors of W, mostly of all of them, begin before anything else. Only then are the rows of x read,
// and normalized by every block for itself. Traffic: W once for each SEQUENCES rows of x, all else from the cache.
//
// A sequence's sums have the same order whatever SEQUENCES is, so its bits do not depend on the number of sequences. If
// a block has several, it may be smaller, which leaves a thread more registers: each thread then takes the shares of
// several in TURNS turns. For example, with 256 threads and 4 turns, thread 5 does what threads 5, 261, 517 and 773 of a
// block of 1,024 would do.
//
// Set by the host: T (float), K, WIDTH (a vector's elements, which divide a row of W), LANES, ROWS, BIAS (0 | 1),
// ACTIVATION (gelu | relu | none), THREADS, TURNS (1 with a norm), SEQUENCES (of a block), NORM_ROWS and NORMED
// (rows of x, and their elements, that a block may normalize, if these are several), ROW_THREADS (of a block for W [n, K]).
#include "common.h"

constexpr int SHARES = THREADS * TURNS, WARPS = SHARES / WARP;
constexpr int DEPTH = SHARES / LANES;  // rows of W [K, n] at a time

// Vectors of W [K, n] that a thread has to read. Up to 8 are read at once; more are read in rounds, AHEAD in each,
// which registers hold.
constexpr int VECTORS = (K + DEPTH - 1) / DEPTH, ROUNDS = VECTORS <= 8 ? 1 : (VECTORS + 4) / 5;
constexpr int AHEAD = (VECTORS + ROUNDS - 1) / ROUNDS;
// Vectors of a row of W [n, K] that a lane has to read, and that it reads at once
constexpr int ROW_VECTORS = (K + WARP * WIDTH - 1) / (WARP * WIDTH), ROW_AHEAD = ROW_VECTORS < 3 ? ROW_VECTORS : 3;

// Whether this is an instance for kernels with a norm. A block of linear_add may have more rows of x than those can.
constexpr bool NORMS = SEQUENCES == 1 || (SEQUENCES <= NORM_ROWS && SEQUENCES * K <= NORMED);

DEVICE float none(float v) { return v; }

// a b + c, rounded once. Left to itself, a compiler rounds some products and not others, and which ones depends on
// SEQUENCES, so that a sequence's bits would, too.
DEVICE float multiply_add(float a, float b, float c) {
#if defined(ON_CUDA)
  return fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// The sequences of a block: those from `first` on, but not beyond `count`. The last one stands in for those.
DEVICE int sequence(int s, int count) { return minimum(block_y() * SEQUENCES + s, count - 1); }

// factors [SEQUENCES, K] = the layer norms of rows of x [count, K], by a block of THREADS_HERE threads
template <int THREADS_HERE>
DEVICE void normalize(const T* x, const T* weight, const T* bias, int count, Shared<float> factors) {
  constexpr int MINE = (K + THREADS_HERE - 1) / THREADS_HERE, WARPS_HERE = THREADS_HERE / WARP;
  SHARED(float, scratch, 2 * SEQUENCES * WARPS_HERE);
  // totals = the sums over the block of mine; each call has a place of its own: one barrier is enough
  auto block_totals = [](const float (&mine)[SEQUENCES], float (&totals)[SEQUENCES], Shared<float> place) {
    UNROLL for (int s = 0; s < SEQUENCES; s++) {
      float v = warp_sum(mine[s]);
      if (lane_id() == 0) place[s * WARPS_HERE + warp_id()] = v;
    }
    sync();
    UNROLL for (int s = 0; s < SEQUENCES; s++) {
      totals[s] = warp_sum(lane_id() < WARPS_HERE ? (float)place[s * WARPS_HERE + lane_id()] : 0);
    }
  };
  float v[SEQUENCES][MINE], scale[MINE], shift[MINE], sums[SEQUENCES] = {}, squares[SEQUENCES] = {};
  float means[SEQUENCES], variances[SEQUENCES];
  UNROLL for (int i = 0; i < MINE; i++) {
    int at = minimum(thread_id() + i * THREADS_HERE, K - 1);
    scale[i] = to_float(weight[at]), shift[i] = to_float(bias[at]);
    UNROLL for (int s = 0; s < SEQUENCES; s++) {
      v[s][i] = to_float(x[(index_t)sequence(s, count) * K + at]);
      if (thread_id() + i * THREADS_HERE < K) sums[s] += v[s][i];
    }
  }
  block_totals(sums, means, scratch);
  UNROLL for (int s = 0; s < SEQUENCES; s++) {
    means[s] /= K;
    UNROLL for (int i = 0; i < MINE; i++) {
      float apart = v[s][i] - means[s];
      if (thread_id() + i * THREADS_HERE < K) squares[s] = multiply_add(apart, apart, squares[s]);
    }
  }
  block_totals(squares, variances, scratch + SEQUENCES * WARPS_HERE);
  UNROLL for (int s = 0; s < SEQUENCES; s++) {
    float rstd = rsqrt_of(variances[s] / K + NORM_EPS);
    UNROLL for (int i = 0; i < MINE; i++) {
      int at = thread_id() + i * THREADS_HERE;
      if (at < K) factors[s * K + at] = multiply_add((v[s][i] - means[s]) * rstd, scale[i], shift[i]);
    }
  }
  sync();
}

// Calls finish(s, column, sum) for each sequence s and column of this block: sum = factors W + added, with factor(s, k)
// the factor of row k of W. fill() is called before any factor is read; added(s, column) is read early.
template <class Fill, class Factor, class Added, class Finish>
DEVICE void by_columns(const T* w, int n, int count, Fill fill, Factor factor, Added added, Finish finish) {
  constexpr int COLUMNS = LANES * WIDTH;
  SHARED(float, sums, SEQUENCES * WARPS * COLUMNS);
  static_assert(COLUMNS <= WARP, "a lane is left with one column");
  static_assert(SEQUENCES * COLUMNS <= THREADS, "a thread finishes one column of a sequence");
  int self = thread_id(), first_column = block_x() * COLUMNS, lane = self % LANES;
  int own = self / COLUMNS, own_column = first_column + self % COLUMNS;  // what this thread finishes
  bool finishes = own < SEQUENCES && block_y() * SEQUENCES + own < count && own_column < n;
  float last = finishes ? added(block_y() * SEQUENCES + own, own_column) : 0;

  const T* mine = w + minimum(first_column + lane * WIDTH, n - WIDTH);
  Vector<T> vectors[AHEAD];
  auto load_rows = [&](int first) {
    UNROLL for (int j = 0; j < AHEAD; j++) {
      vectors[j] = *(const Vector<T>*)(mine + (index_t)minimum(first + j * DEPTH, K - 1) * n);
    }
  };
  // The weights are on their way while the factors are made.
  load_rows(self / LANES);
  fill();
  NO_UNROLL for (int turn = 0; turn < TURNS; turn++) {
    int start = (turn * THREADS + self) / LANES;  // the first row of W
    float sum[SEQUENCES][WIDTH] = {};
    NO_UNROLL for (int first = 0; first < K; first += AHEAD * DEPTH) {
      if (turn + first > 0) load_rows(first + start);
      UNROLL for (int j = 0; j < AHEAD; j++) {
        int row = first + j * DEPTH + start;
        UNROLL for (int s = 0; s < SEQUENCES; s++) {
          float its_factor = row < K ? factor(s, row) : 0;
          UNROLL for (int e = 0; e < WIDTH; e++) {
            sum[s][e] = multiply_add(its_factor, to_float(vectors[j].v[e]), sum[s][e]);
          }
        }
      }
    }
    // Lanes with the same columns swap halves of their sums, until each has one column, and then add those up.
    int column = lane * WIDTH;
    UNROLL for (int step = 0; LANES << step < WARP; step++) {
      int mask = LANES << step, half = WIDTH >> (step + 1);
      bool upper = lane_id() & mask;
      UNROLL for (int s = 0; s < SEQUENCES; s++) {
        UNROLL for (int e = 0; e < half; e++) {
          float low = sum[s][e], high = sum[s][e + half];
          sum[s][e] = (upper ? high : low) + shuffle_xor(upper ? low : high, mask);
        }
        if (half == 0) sum[s][0] += shuffle_xor(sum[s][0], mask);
      }
      if (upper) column += half;
    }
    int warp = turn * (THREADS / WARP) + warp_id();
    UNROLL for (int s = 0; s < SEQUENCES; s++) {
      if (lane_id() < COLUMNS) sums[(s * WARPS + warp) * COLUMNS + column] = sum[s][0];
    }
  }
  // The warps meet in shared memory, and one thread finishes each column.
  sync();
  if (!finishes) return;
  float total = 0;
  for (int warp = 0; warp < WARPS; warp++) total += sums[(own * WARPS + warp) * COLUMNS + self % COLUMNS];
  finish(block_y() * SEQUENCES + own, own_column, total + last);
}

// out [count, n] += x W + bias, x [count, K].
// grid: ceil(n / (LANES * WIDTH)) x ceil(count / SEQUENCES), block: THREADS
KERNEL(THREADS) linear_add(const T* x, const T* w, const T* bias, T* out, int n, int count) {
  // A row that is alone is read once, into shared memory. Several would not leave room for other blocks.
  constexpr bool ALONE = SEQUENCES == 1;
  SHARED(float, factors, ALONE ? K : 1);
  auto fill = [&] {
    if (!ALONE) return;
    for (int i = thread_id(); i < K; i += THREADS) factors[i] = to_float(x[(index_t)sequence(0, count) * K + i]);
    sync();
  };
  auto factor = [&](int s, int k) {
    return ALONE ? (float)factors[k] : to_float(x[(index_t)sequence(s, count) * K + k]);
  };
  auto added = [&](int s, int column) { return to_float(out[(index_t)s * n + column]) + to_float(bias[column]); };
  auto finish = [&](int s, int column, float sum) { out[(index_t)s * n + column] = from_float<T>(sum); };
  by_columns(w, n, count, fill, factor, added, finish);
}

// out [count, n] = activation(layernorm(x) W + bias), x [count, K].
// grid: ceil(n / (LANES * WIDTH)) x ceil(count / SEQUENCES), block: THREADS
KERNEL(THREADS) norm_linear(const T* x, const T* norm_weight, const T* norm_bias, const T* w, const T* bias, T* out,
                            int n, int count) {
  SHARED(float, factors, NORMS ? SEQUENCES * K : 1);
  if (!NORMS) return;
  auto fill = [&] { normalize<THREADS>(x, norm_weight, norm_bias, count, factors); };
  auto factor = [&](int s, int k) { return (float)factors[s * K + k]; };
  auto added = [&](int, int column) { return BIAS ? to_float(bias[column]) : 0; };
  auto finish = [&](int s, int column, float sum) { out[(index_t)s * n + column] = from_float<T>(ACTIVATION(sum)); };
  by_columns(w, n, count, fill, factor, added, finish);
}

// The same for W [n, K]: out [count, n] = activation(layernorm(x) Wᵀ + bias).
// grid: ceil(n / (ROWS * ROW_THREADS / WARP)) x ceil(count / SEQUENCES), block: ROW_THREADS
KERNEL(ROW_THREADS) norm_linear_transposed(const T* x, const T* norm_weight, const T* norm_bias, const T* w,
                                           const T* bias, T* out, int n, int count) {
  SHARED(float, factors, NORMS ? SEQUENCES * K : 1);
  if (!NORMS) return;
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
  normalize<ROW_THREADS>(x, norm_weight, norm_bias, count, factors);
  float sums[SEQUENCES][ROWS] = {};
  NO_UNROLL for (int first = 0; first < ROW_VECTORS; first += ROW_AHEAD) {
    if (first > 0) load_vectors(first);
    UNROLL for (int j = 0; j < ROW_AHEAD; j++) {
      int column = ((first + j) * WARP + lane_id()) * WIDTH;
      if (column >= K) continue;
      UNROLL for (int e = 0; e < WIDTH; e += 4) {
        UNROLL for (int s = 0; s < SEQUENCES; s++) {
          Vector<float> factor = factors.vector(s * K + column + e);
          UNROLL for (int r = 0; r < ROWS; r++) {
            UNROLL for (int f = 0; f < 4; f++) {
              sums[s][r] = multiply_add(factor.v[f], to_float(vectors[j][r].v[e + f]), sums[s][r]);
            }
          }
        }
      }
    }
  }
  UNROLL for (int s = 0; s < SEQUENCES; s++) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      float sum = warp_sum(sums[s][r]);
      int its = block_y() * SEQUENCES + s, column = first_row + r;
      if (lane_id() > 0 || column >= n || its >= count) continue;
      out[(index_t)its * n + column] = from_float<T>(ACTIVATION(sum + (BIAS ? to_float(bias[column]) : 0)));
    }
  }
}
