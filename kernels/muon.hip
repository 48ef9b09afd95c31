// The elementwise part of a step of Muon (Jordan et al. 2024) on stacks of matrices; gpt/ops/interface.py defines the
// step, and gpt/ops/gpu/muon.py asks for the matrix products between these kernels.
//
// `muon_momentum` moves the momentum and writes u, the matrices to be orthogonalized, in the type of the products (14
// bytes per element in bf16), with a partial sum of u's squares per block. `muon_normalize` divides every u by its
// norm, so that its singular values are 1 at most (4 bytes). The products then bring them to about 1, and `muon_update`
// moves the weights by the result (12 bytes). A block belongs to one matrix, number block_y.
//
// Every array is [matrices, size]. Weights, gradients, momentum and the copy have `stride` elements from one matrix to
// the next, u and the orthogonalized u `stride_u`. Both are multiples of a vector.
//
// Set by the host: T (bf16 | float), the type of u; COPY (1: write the bf16 copy); WIDTH (4 if size is a multiple, else
// 1); BLOCKS (of `muon_momentum` for each matrix at most, always the same: the order of the sums is fixed), THREADS.
#include "common.h"

struct Plan {
  double skip, gradient_scale, rate, decay, step_size, correction;
};

constexpr float LEAST_NORM = 1e-7f;

// partials: float [matrices, BLOCKS], a sum of squares for each block. A small matrix has less than BLOCKS of them.
// grid: min(BLOCKS, ceil(size / (THREADS * WIDTH))) x matrices, block: THREADS
KERNEL(THREADS) muon_momentum(const float* gradients, float* momentum, T* u, float* partials, const double* plan,
                              float beta, index_t size, index_t stride, index_t stride_u) {
  SHARED(float, scratch, THREADS / WARP);
  const Plan& p = *(const Plan*)plan;
  if (p.skip) return;
  index_t matrix = block_y();
  float scale = p.gradient_scale, sum = 0;
  for (index_t i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH; i < size; i += BLOCKS * THREADS * WIDTH) {
    auto g = Floats<WIDTH>::load(gradients + matrix * stride + i);
    auto m = Floats<WIDTH>::load(momentum + matrix * stride + i);
    Floats<WIDTH> out;
    UNROLL for (int e = 0; e < WIDTH; e++) {
      float gradient = g.v[e] * scale;
      m.v[e] += (1 - beta) * (gradient - m.v[e]);
      out.v[e] = gradient + beta * (m.v[e] - gradient);  // Nesterov's momentum
      sum += out.v[e] * out.v[e];
    }
    m.store(momentum + matrix * stride + i);
    out.store(u + matrix * stride_u + i);
  }
  sum = block_sum<THREADS / WARP>(sum, scratch);
  if (thread_id() == 0) partials[matrix * BLOCKS + block_x()] = sum;
}

// u /= its norm, the root of the sum of its first `blocks` partials.
// grid: ceil(size / (THREADS * WIDTH)) x matrices, block: THREADS
KERNEL(THREADS) muon_normalize(T* u, const float* partials, const double* plan, index_t size, index_t stride_u,
                               int blocks) {
  const Plan& p = *(const Plan*)plan;
  if (p.skip) return;
  index_t matrix = block_y(), i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  float sum = 0;
  for (int block = lane_id(); block < blocks; block += WARP) sum += partials[matrix * BLOCKS + block];
  sum = warp_sum(sum);
  if (i >= size) return;
  float factor = 1 / maximum(sqrt_of(sum), LEAST_NORM);
  auto x = Floats<WIDTH>::load(u + matrix * stride_u + i);
  UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] *= factor;
  x.store(u + matrix * stride_u + i);
}

// weights = weights * decay - rate * step * u; the plan has decay and rate.
// grid: ceil(size / (THREADS * WIDTH)) x matrices, block: THREADS
KERNEL(THREADS) muon_update(float* weights, const T* u, bf16* copy, const double* plan, float step, index_t size,
                            index_t stride, index_t stride_u) {
  const Plan& p = *(const Plan*)plan;
  index_t matrix = block_y(), i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  if (i >= size || p.skip) return;
  auto w = Floats<WIDTH>::load(weights + matrix * stride + i), o = Floats<WIDTH>::load(u + matrix * stride_u + i);
  float decay = p.decay, rate = (float)p.rate * step;
  UNROLL for (int e = 0; e < WIDTH; e++) w.v[e] = w.v[e] * decay - rate * o.v[e];
  w.store(weights + matrix * stride + i);
#if COPY
  w.store(copy + matrix * stride + i);
#endif
}
