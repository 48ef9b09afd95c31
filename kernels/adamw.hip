// One step of AdamW (Loshchilov & Hutter 2019) over the flat buffers of all parameters.
//
// `plan_update`, a single thread, decides for all weights, Muon's included: whether the step is finite, which step of
// Adam it is, and the factors of gradients and rates. `adamw` then is one pass: it reads weight, gradient and both
// moments (16 bytes per element) and writes weight and moments (12), and the bf16 copy (2) that the next forward pass
// reads. Every number that changes from step to step is read from device memory, so that a captured graph can be
// replayed.
//
// Set by the host: COPY (1: write the bf16 copy), WIDTH (elements per thread; a multiple of 4), THREADS.
#include "common.h"

struct Plan {
  double skip, gradient_scale, rate, decay, step_size, correction;
};

// x^n by squaring: the same on every device.
DEVICE double power(double x, index_t n) {
  double result = 1;
  for (; n; n >>= 1, x *= x) {
    if (n & 1) result *= x;
  }
  return result;
}

// norm [1] is the gradients', loss [2] the step's metrics; counters [3]: Adam's step, steps skipped, skipped in a row.
// grid: 1, block: 1
KERNEL(1) plan_update(const double* norm, const double* loss, index_t* counters, const float* lr, double* plan,
                      double beta1, double beta2, double weight_decay, double clip) {
  Plan& p = *(Plan*)plan;
  // A step with a number that is infinite or NaN is skipped, and counted.
  constexpr double LARGEST = 1.7976931348623157e308;
  bool finite = true;
  const double values[3] = {norm[0], loss[0], loss[1]};
  for (int i = 0; i < 3; i++) finite = finite && values[i] >= -LARGEST && values[i] <= LARGEST;
  p.skip = !finite;
  if (!finite) {
    counters[1] += 1;
    counters[2] += 1;
    return;
  }
  counters[0] += 1;
  counters[2] = 0;
  // Gradients whose norm is above `clip` shrink to it.
  double scale = clip / (norm[0] + 1e-6);
  p.gradient_scale = clip > 0 && scale < 1 ? scale : 1;
  p.rate = lr[0];
  p.decay = 1 - lr[0] * weight_decay;
  // Adam's moments begin at 0: these two undo the bias towards it.
  p.step_size = lr[0] / (1 - power(beta1, counters[0]));
  p.correction = sqrt_of(1 - power(beta2, counters[0]));
}

// weights, gradients, exp_avg, exp_avg_sq: float [count]; copy: bf16 [count]; the weights before `decayed` decay. count
// and decayed are multiples of WIDTH. The factors 1 - beta come from the host, which computes them in double: taken from
// a float beta2 of 0.99, the difference would be off by 31 units in its last place.
// grid: ceil(count / (THREADS * WIDTH)), block: THREADS
KERNEL(THREADS) adamw(float* weights, const float* gradients, float* exp_avg, float* exp_avg_sq, bf16* copy,
                      const double* plan, float one_minus_beta1, float one_minus_beta2, float eps, index_t decayed,
                      index_t count) {
  const Plan& p = *(const Plan*)plan;
  index_t i = ((index_t)block_x() * THREADS + thread_id()) * WIDTH;
  if (i >= count || p.skip) return;
  auto w = Floats<WIDTH>::load(weights + i), g = Floats<WIDTH>::load(gradients + i);
  auto m = Floats<WIDTH>::load(exp_avg + i), v = Floats<WIDTH>::load(exp_avg_sq + i);
  float scale = p.gradient_scale, step_size = p.step_size, correction = p.correction;
  float decay = i < decayed ? (float)p.decay : 1;
  UNROLL for (int e = 0; e < WIDTH; e++) {
    float gradient = g.v[e] * scale;
    m.v[e] += one_minus_beta1 * (gradient - m.v[e]);
    v.v[e] += one_minus_beta2 * (gradient * gradient - v.v[e]);
    w.v[e] = w.v[e] * decay - step_size * (m.v[e] / (sqrt_of(v.v[e]) / correction + eps));
  }
  w.store(weights + i);
  m.store(exp_avg + i);
  v.store(exp_avg_sq + i);
#if COPY
  w.store(copy + i);
#endif
}
