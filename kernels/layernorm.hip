// Layer norm (Ba et al. 2016) of the rows of x [rows, D], alone or fused with the residual add before it, and its
// gradients; and dropout alone, which backward needs on the residual stream's gradient.
//
// A row belongs to one warp (to the whole block where D is large) and stays in registers: one read of each input and one
// write of each output. The variance is that of the differences from the mean, so rows with a mean far larger than their
// spread come out right. Backward adds into dx; for dweight and dbias a block keeps sums over its rows in registers and
// leaves them as one of the partial sums that sums.hip adds up.
//
// Set by the host: T (bf16 | float), D, WIDTH (elements per thread at a time; divides D), DROPOUT (0 | 1).
#include "common.h"

constexpr float EPS = 1e-5f;
constexpr int THREADS = 256;
constexpr int LANES = D <= 1024 ? WARP : THREADS;  // threads that share a row
constexpr int ROWS = THREADS / LANES;                   // rows that a block works on at once
constexpr int PARTS = (D + LANES * WIDTH - 1) / (LANES * WIDTH);

DEVICE int lane() { return thread_id() % LANES; }
DEVICE int column(int part) { return (part * LANES + lane()) * WIDTH; }

// A row in registers: this lane's columns of it, 0 beyond the end.
struct Row {
  Floats<WIDTH> parts[PARTS];

  template <class X> static DEVICE Row load(const X* p) {
    Row row = {};
    UNROLL for (int i = 0; i < PARTS; i++) {
      if (column(i) < D) row.parts[i] = Floats<WIDTH>::load(p + column(i));
    }
    return row;
  }
  template <class X> DEVICE void store(X* p) const {
    UNROLL for (int i = 0; i < PARTS; i++) {
      if (column(i) < D) parts[i].store(p + column(i));
    }
  }
};

// f(i, e) for every element of a lane's part of a row that is before the row's end
#define EACH(i, e)                           \
  UNROLL for (int i = 0; i < PARTS; i++)     \
    if (column(i) < D) UNROLL for (int e = 0; e < WIDTH; e++)

DEVICE float row_sum(float v, Shared<float> scratch) {
  if constexpr (LANES == WARP) return warp_sum(v);
  else return block_sum<THREADS / WARP>(v, scratch);
}

DEVICE void normalize(Row x, const T* weight, const T* bias, T* out, float* mean_out, float* rstd_out, int row,
                      Shared<float> scratch) {
  float sum = 0, squares = 0;
  EACH(i, e) sum += x.parts[i].v[e];
  float mean = row_sum(sum, scratch) / D;
  EACH(i, e) {
    x.parts[i].v[e] -= mean;
    squares += x.parts[i].v[e] * x.parts[i].v[e];
  }
  float rstd = rsqrt_of(row_sum(squares, scratch) / D + EPS);
  Row w = Row::load(weight), b = Row::load(bias);
  EACH(i, e) x.parts[i].v[e] = x.parts[i].v[e] * rstd * w.parts[i].v[e] + b.parts[i].v[e];
  x.store(out + (index_t)row * D);
  if (lane() == 0) {
    mean_out[row] = mean;
    rstd_out[row] = rstd;
  }
}

// out = (x - mean) rstd weight + bias
KERNEL(256) layernorm(const T* x, const T* weight, const T* bias, T* out, float* mean, float* rstd, int rows) {
  SHARED(float, scratch, THREADS / WARP);
  int row = block_x() * ROWS + thread_id() / LANES;
  if (row >= rows) return;
  normalize(Row::load(x + (index_t)row * D), weight, bias, out, mean, rstd, row, scratch);
}

DEVICE void apply_dropout(Row& x, const Dropout& dropout, int row) {
  uint32 hash = dropout.row_hash(row);
  EACH(i, e) x.parts[i].v[e] *= dropout.factor(hash, column(i) + e);
}

// x_out = x + dropout(branch); out = the layer norm of x_out as it was stored. x_out may be x.
KERNEL(256) add_layernorm(const T* x, const T* branch, const T* weight, const T* bias, T* x_out, T* out, float* mean,
                          float* rstd, int rows, const uint32* key, uint32 site, uint32 threshold, float scale) {
  SHARED(float, scratch, THREADS / WARP);
  int row = block_x() * ROWS + thread_id() / LANES;
  if (row >= rows) return;
  Row sum = Row::load(x + (index_t)row * D), added = Row::load(branch + (index_t)row * D);
#if DROPOUT
  apply_dropout(added, Dropout(key, site, threshold, scale), row);
#endif
  EACH(i, e) sum.parts[i].v[e] = to_float(from_float<T>(sum.parts[i].v[e] + added.parts[i].v[e]));
  sum.store(x_out + (index_t)row * D);
  normalize(sum, weight, bias, out, mean, rstd, row, scratch);
}

// out = dropout(x); out may be x.
KERNEL(256) dropout_rows(const T* x, T* out, int rows, const uint32* key, uint32 site, uint32 threshold, float scale) {
  int row = block_x() * ROWS + thread_id() / LANES;
  if (row >= rows) return;
  Row value = Row::load(x + (index_t)row * D);
  apply_dropout(value, Dropout(key, site, threshold, scale), row);
  value.store(out + (index_t)row * D);
}

// With n = (x - mean) rstd and g = dout weight: dx += rstd (g - mean(g) - n mean(g n)). Block b of `blocks` takes every
// blocks-th group of rows and leaves its sums of dout n and dout in row b of dweight_sums and dbias_sums, `stride` apart.
KERNEL(256) layernorm_backward(const T* dout, const T* x, const T* weight, const float* mean, const float* rstd, T* dx,
                               float* dweight_sums, float* dbias_sums, int rows, int blocks, int stride) {
  SHARED(float, scratch, THREADS / WARP);
  SHARED(float, sums, ROWS > 1 ? D : 1);
  Row dweight = {}, dbias = {}, w = Row::load(weight);
  for (int row = block_x() * ROWS + thread_id() / LANES; row < rows; row += blocks * ROWS) {
    Row n = Row::load(x + (index_t)row * D), g = Row::load(dout + (index_t)row * D);
    float row_mean = mean[row], row_rstd = rstd[row], g_sum = 0, gn_sum = 0;
    EACH(i, e) {
      n.parts[i].v[e] = (n.parts[i].v[e] - row_mean) * row_rstd;
      dweight.parts[i].v[e] += g.parts[i].v[e] * n.parts[i].v[e];
      dbias.parts[i].v[e] += g.parts[i].v[e];
      g.parts[i].v[e] *= w.parts[i].v[e];
      g_sum += g.parts[i].v[e];
      gn_sum += g.parts[i].v[e] * n.parts[i].v[e];
    }
    float g_mean = row_sum(g_sum, scratch) / D, gn_mean = row_sum(gn_sum, scratch) / D;
    Row total = Row::load(dx + (index_t)row * D);
    EACH(i, e) total.parts[i].v[e] += row_rstd * (g.parts[i].v[e] - g_mean - n.parts[i].v[e] * gn_mean);
    total.store(dx + (index_t)row * D);
  }
  float* outs[2] = {dweight_sums + (index_t)block_x() * stride, dbias_sums + (index_t)block_x() * stride};
  UNROLL for (int which = 0; which < 2; which++) {
    const Row& mine = which ? dbias : dweight;
    if constexpr (ROWS == 1) {
      mine.store(outs[which]);
    } else {  // the groups add to the block's sums one after another
      for (int group = 0; group < ROWS; group++) {
        if (thread_id() / LANES == group) {
          EACH(i, e) {
            int c = column(i) + e;
            sums[c] = group ? sums[c] + mine.parts[i].v[e] : mine.parts[i].v[e];
          }
        }
        sync();
      }
      for (int c = thread_id(); c < D; c += THREADS) outs[which][c] = sums[c];
      sync();
    }
  }
}
