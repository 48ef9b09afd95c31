// What a step of Muon (Jordan et al. 2024) does to stacks of matrices besides their products: gpt/ops/cpu/operations.py defines it.
//
// `muon_momentum` moves the momentum and writes u, what is to be orthogonalized, in the type of the products (14 bytes an
// element in bf16), with a partial sum of u's squares per block. `muon_normalize` divides every u by its norm, so that its
// singular values are 1 at most (4 bytes). The host then asks for matrix products that bring them to about 1, and
// `muon_update` moves the weights by the result (12 bytes). A block belongs to one matrix: block_y says which.
//
// Every array is [matrices, size]; the weights, gradients, momentum and the copy have `stride` elements from one matrix to
// the next, u and what has become of it `stride_u`. Both are multiples of a vector.
//
// Set by the host: T (bf16 | float), the type of u; COPY (1: write the bf16 copy); WIDTH (4 if size is a multiple, else 1).
#include "common.h"

struct Plan {
  double skip, gradient_scale, rate, decay, step_size, correction;
};

constexpr int PARTS = 128;  // blocks of `muon_momentum` for a matrix: as many partial sums, in a fixed order
constexpr float LEAST_NORM = 1e-7f;

// partials: float [matrices, PARTS]; grid: PARTS x matrices blocks of 256 threads
KERNEL(256) muon_momentum(const float* gradients, float* momentum, T* u, float* partials, const double* plan, float beta,
                          index_t size, index_t stride, index_t stride_u) {
  SHARED(float, scratch, 256 / WARP);
  const Plan& p = *(const Plan*)plan;
  if (p.skip) return;
  index_t matrix = block_y();
  float scale = p.gradient_scale, sum = 0;
  for (index_t i = ((index_t)block_x() * 256 + thread_id()) * WIDTH; i < size; i += PARTS * 256 * WIDTH) {
    auto g = Floats<WIDTH>::load(gradients + matrix * stride + i), m = Floats<WIDTH>::load(momentum + matrix * stride + i);
    Floats<WIDTH> out;
    UNROLL for (int e = 0; e < WIDTH; e++) {
      float gradient = g.v[e] * scale;
      m.v[e] += (1 - beta) * (gradient - m.v[e]);
      out.v[e] = gradient + beta * (m.v[e] - gradient);
      sum += out.v[e] * out.v[e];
    }
    m.store(momentum + matrix * stride + i);
    out.store(u + matrix * stride_u + i);
  }
  sum = block_sum<256 / WARP>(sum, scratch);
  if (thread_id() == 0) partials[matrix * PARTS + block_x()] = sum;
}

// grid: any number of blocks x matrices, of 256 threads
KERNEL(256) muon_normalize(T* u, const float* partials, const double* plan, index_t size, index_t stride_u) {
  const Plan& p = *(const Plan*)plan;
  if (p.skip) return;
  index_t matrix = block_y(), i = ((index_t)block_x() * 256 + thread_id()) * WIDTH;
  float sum = 0;
  for (int part = lane_id(); part < PARTS; part += WARP) sum += partials[matrix * PARTS + part];
  sum = warp_sum(sum);
  if (i >= size) return;
  float factor = 1 / maximum(sqrt_of(sum), LEAST_NORM);
  auto x = Floats<WIDTH>::load(u + matrix * stride_u + i);
  UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] *= factor;
  x.store(u + matrix * stride_u + i);
}

// step: what the rate is multiplied with; grid: any number of blocks x matrices, of 256 threads
KERNEL(256) muon_update(float* weights, const T* u, bf16* copy, const double* plan, float step, index_t size,
                        index_t stride, index_t stride_u) {
  const Plan& p = *(const Plan*)plan;
  index_t matrix = block_y(), i = ((index_t)block_x() * 256 + thread_id()) * WIDTH;
  if (i >= size || p.skip) return;
  auto w = Floats<WIDTH>::load(weights + matrix * stride + i), o = Floats<WIDTH>::load(u + matrix * stride_u + i);
  float decay = p.decay, rate = (float)p.rate * step;
  UNROLL for (int e = 0; e < WIDTH; e++) w.v[e] = w.v[e] * decay - rate * o.v[e];
  w.store(weights + matrix * stride + i);
#if COPY
  w.store(copy + matrix * stride + i);
#endif
}
