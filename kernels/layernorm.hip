// Layer norm (Ba et al. 2016) of the rows of x [rows, D], alone or fused with the residual add before it, and its
// gradients; and dropout alone.
//
// A row belongs to LANES threads, one warp or more of a block, and stays in their registers: one read of each input and
// one write of each output. The variance is that of the differences from the mean, so it is right even if the mean is
// far larger than the spread. Backward adds into dx, and replaces the norm's gradient by the norm itself, which the next
// product reads. The gradients of weight and bias are sums over rows: each block keeps the sums of its own rows in
// registers and leaves them as partial sums, which sums.hip adds up.
//
// Set by the host: T (bf16 | float), D, WIDTH (elements per thread at a time; divides D), LANES (a power of 2, a warp
// or more), DROPOUT (0 | 1), THREADS (a multiple of LANES).
#include "common.h"

constexpr int ROWS = THREADS / LANES;  // rows that a block works on at once
constexpr int VECTORS = (D + LANES * WIDTH - 1) / (LANES * WIDTH);  // that a lane has of a row
constexpr int SCRATCH = 4 * (THREADS / WARP);  // two halves for two sums of each warp

DEVICE int lane_in_row() { return thread_id() % LANES; }
DEVICE int column(int vector) { return (vector * LANES + lane_in_row()) * WIDTH; }

// A row in registers: this lane's columns of it, and 0 after the row's end.
struct Row {
  Floats<WIDTH> vectors[VECTORS];

  template <class X> static DEVICE Row load(const X* p) {
    Row row = {};
    UNROLL for (int i = 0; i < VECTORS; i++) {
      if (column(i) < D) row.vectors[i] = Floats<WIDTH>::load(p + column(i));
    }
    return row;
  }
  template <class X> DEVICE void store(X* p) const {
    UNROLL for (int i = 0; i < VECTORS; i++) {
      if (column(i) < D) vectors[i].store(p + column(i));
    }
  }
};

// EACH(i, e) statement; runs for every element of a row that this lane has: element e of vector i.
#define EACH(i, e)                           \
  UNROLL for (int i = 0; i < VECTORS; i++)   \
    if (column(i) < D) UNROLL for (int e = 0; e < WIDTH; e++)

// N sums, each over the lanes of a row; all threads of the block must call it together. The warps of a row exchange
// their sums in one half of `scratch`, and at the next call in the other half, so that one barrier per call is enough.
template <int N> DEVICE void row_sums(float (&v)[N], Shared<float> scratch, int half) {
  UNROLL for (int i = 0; i < N; i++) v[i] = warp_sum(v[i]);
  if constexpr (LANES > WARP) {
    Shared<float> mine = scratch + half * (SCRATCH / 2);
    if (lane_id() == 0) {
      UNROLL for (int i = 0; i < N; i++) mine[warp_id() * N + i] = v[i];
    }
    sync();
    int first = thread_id() / LANES * (LANES / WARP);
    UNROLL for (int i = 0; i < N; i++) {
      v[i] = 0;
      for (int w = 0; w < LANES / WARP; w++) v[i] += mine[(first + w) * N + i];
    }
  }
}

// The row of this thread's group of LANES. A group after the last row is not `real`: it computes the last row once
// more, because it has to reach the barriers, and writes nothing.
struct Place {
  int row;
  bool real;
  DEVICE Place(int first, int rows) : row(first + thread_id() / LANES), real(row < rows) {
    if (!real) row = rows - 1;
  }
};

// n weight + bias, rounded once: backward has to give the bits of forward, whatever else it computes.
DEVICE float scaled(float n, float weight, float bias) {
#if defined(ON_CUDA)
  return fmaf(n, weight, bias);
#else
  return __builtin_fmaf(n, weight, bias);
#endif
}

DEVICE void normalize(Row x, const T* weight, const T* bias, T* out, float* mean_out, float* rstd_out, Place place) {
  SHARED(float, scratch, SCRATCH);
  float sum[1] = {}, squares[1] = {};
  EACH(i, e) sum[0] += x.vectors[i].v[e];
  row_sums(sum, scratch, 0);
  float mean = sum[0] / D;
  EACH(i, e) {
    x.vectors[i].v[e] -= mean;
    squares[0] += x.vectors[i].v[e] * x.vectors[i].v[e];
  }
  row_sums(squares, scratch, 1);
  float rstd = rsqrt_of(squares[0] / D + NORM_EPS);
  Row w = Row::load(weight), b = Row::load(bias);
  EACH(i, e) x.vectors[i].v[e] = scaled(x.vectors[i].v[e] * rstd, w.vectors[i].v[e], b.vectors[i].v[e]);
  if (!place.real) return;
  x.store(out + (index_t)place.row * D);
  if (lane_in_row() == 0) {
    mean_out[place.row] = mean;
    rstd_out[place.row] = rstd;
  }
}

// out = (x - mean) rstd weight + bias.
// grid: ceil(rows * LANES / THREADS), block: THREADS
KERNEL(THREADS) layernorm(const T* x, const T* weight, const T* bias, T* out, float* mean, float* rstd, int rows) {
  Place place(block_x() * ROWS, rows);
  normalize(Row::load(x + (index_t)place.row * D), weight, bias, out, mean, rstd, place);
}

DEVICE void apply_dropout(Row& x, const Dropout& dropout, int row) {
  uint32 hash = dropout.row_hash(row);
  EACH(i, e) x.vectors[i].v[e] *= dropout.factor(hash, column(i) + e);
}

// x_out = x + dropout(branch); out = the layer norm of x_out as it was stored. x_out may be x.
// grid: ceil(rows * LANES / THREADS), block: THREADS
KERNEL(THREADS) add_layernorm(const T* x, const T* branch, const T* weight, const T* bias, T* x_out, T* out,
                              float* mean, float* rstd, int rows, const uint32* key, uint32 site, uint32 threshold,
                              float scale) {
  Place place(block_x() * ROWS, rows);
  index_t at = (index_t)place.row * D;
  Row sum = Row::load(x + at), added = Row::load(branch + at);
#if DROPOUT
  apply_dropout(added, Dropout(key, site, threshold, scale), place.row);
#endif
  EACH(i, e) sum.vectors[i].v[e] = to_float(from_float<T>(sum.vectors[i].v[e] + added.vectors[i].v[e]));
  if (place.real) sum.store(x_out + at);
  normalize(sum, weight, bias, out, mean, rstd, place);
}

// out = dropout(x); out may be x.
// grid: ceil(rows * LANES / THREADS), block: THREADS
KERNEL(THREADS) dropout_rows(const T* x, T* out, int rows, const uint32* key, uint32 site, uint32 threshold,
                             float scale) {
  Place place(block_x() * ROWS, rows);
  if (!place.real) return;
  Row value = Row::load(x + (index_t)place.row * D);
  apply_dropout(value, Dropout(key, site, threshold, scale), place.row);
  value.store(out + (index_t)place.row * D);
}

// out [D] = the sum of `mine` over the block's groups of lanes
DEVICE void store_sum(const Row& mine, float* out, Shared<float> all) {
  if constexpr (ROWS == 1) {
    mine.store(out);
  } else {
    EACH(i, e) all[thread_id() / LANES * D + column(i) + e] = mine.vectors[i].v[e];
    sync();
    for (int c = thread_id(); c < D; c += THREADS) {
      float sum = 0;
      for (int group = 0; group < ROWS; group++) sum += all[group * D + c];
      out[c] = sum;
    }
    sync();
  }
}

// `out` is its own gradient, dout, at first, and n weight + bias in the end. With n = (x - mean) rstd and g = dout
// weight: dx += rstd (g - mean(g) - n mean(g n)). Block b of `blocks` takes rows
// b ROWS ... (b + 1) ROWS - 1, and then each blocks-th such group. Row b of dweight and of dbias, rows `stride` apart,
// gets the block's sums of dout n and of dout. With BRANCH, branch(row, number) may change each row of dx, and row b of
// dbranch_bias gets their sum.
template <bool BRANCH, class F>
DEVICE void backward(const T* x, T* out, const float* mean, const float* rstd, const T* weight, const T* bias, T* dx,
                     float* dweight, float* dbias, float* dbranch_bias, int rows, int blocks, int stride, F branch) {
  SHARED(float, scratch, SCRATCH);
  SHARED(float, all, ROWS > 1 ? ROWS * D : 1);
  Row weight_sum = {}, bias_sum = {}, branch_sum = {}, w = Row::load(weight);
  int half = 0;  // which half of `scratch` is next
  for (int first = block_x() * ROWS; first < rows; first += blocks * ROWS, half ^= 1) {
    Place place(first, rows);
    index_t at = (index_t)place.row * D;
    Row n = Row::load(x + at), g = Row::load(out + at), total = Row::load(dx + at);  // all loads before any use
    // The sums of weight and bias grow, and g and n are ready for their means.
    float row_mean = mean[place.row], row_rstd = rstd[place.row], sums[2] = {};
    EACH(i, e) {
      float d = place.real ? g.vectors[i].v[e] : 0;
      n.vectors[i].v[e] = (n.vectors[i].v[e] - row_mean) * row_rstd;
      weight_sum.vectors[i].v[e] += d * n.vectors[i].v[e];
      bias_sum.vectors[i].v[e] += d;
      g.vectors[i].v[e] = d * w.vectors[i].v[e];
      sums[0] += g.vectors[i].v[e];
      sums[1] += g.vectors[i].v[e] * n.vectors[i].v[e];
    }
    row_sums(sums, scratch, half);
    if (!place.real) continue;
    // dx, rounded as it is stored, so that the branch's sums are those of the stored values
    float g_mean = sums[0] / D, gn_mean = sums[1] / D;
    EACH(i, e) {
      float change = row_rstd * (g.vectors[i].v[e] - g_mean - n.vectors[i].v[e] * gn_mean);
      total.vectors[i].v[e] = to_float(from_float<T>(total.vectors[i].v[e] + change));
    }
    total.store(dx + at);
    Row b = Row::load(bias);  // now, because registers are full before
    EACH(i, e) n.vectors[i].v[e] = scaled(n.vectors[i].v[e], w.vectors[i].v[e], b.vectors[i].v[e]);  // as forward
    n.store(out + at);
    if constexpr (BRANCH) {
      branch(total, place.row);
      EACH(i, e) branch_sum.vectors[i].v[e] += total.vectors[i].v[e];
    }
  }
  index_t mine = (index_t)block_x() * stride;
  store_sum(weight_sum, dweight + mine, all);
  store_sum(bias_sum, dbias + mine, all);
  if constexpr (BRANCH) store_sum(branch_sum, dbranch_bias + mine, all);
}

// grid: blocks, block: THREADS
KERNEL(THREADS) layernorm_backward(const T* x, T* out, const float* mean, const float* rstd, const T* weight,
                                   const T* bias, T* dx, float* dweight, float* dbias, int rows, int blocks,
                                   int stride) {
  auto branch = [](Row&, int) {};
  backward<false>(x, out, mean, rstd, weight, bias, dx, dweight, dbias, nullptr, rows, blocks, stride, branch);
}

// The same for add_layernorm, with its x_out as x. The branch's gradient is dropout(dx), which goes to dbranch; without
// dropout it is dx itself, and dbranch stays unwritten.
// grid: blocks, block: THREADS
KERNEL(THREADS) add_layernorm_backward(const T* x, T* out, const float* mean, const float* rstd, const T* weight,
                                       const T* bias, T* dx, T* dbranch, float* dweight, float* dbias,
                                       float* dbranch_bias, int rows, int blocks, int stride, const uint32* key,
                                       uint32 site, uint32 threshold, float scale) {
#if DROPOUT
  Dropout dropout(key, site, threshold, scale);
  auto branch = [&](Row& gradient, int row) {
    apply_dropout(gradient, dropout, row);
    EACH(i, e) gradient.vectors[i].v[e] = to_float(from_float<T>(gradient.vectors[i].v[e]));
    gradient.store(dbranch + (index_t)row * D);
  };
#else
  auto branch = [](Row&, int) {};
#endif
  backward<true>(x, out, mean, rstd, weight, bias, dx, dweight, dbias, dbranch_bias, rows, blocks, stride, branch);
}
