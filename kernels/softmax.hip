// Softmax over the vocabulary: the cross-entropy loss, fused with its gradient.
//
// A block per row, two vectors of logits per thread at a time. One pass finds the largest logit, its first place, and
// the sum of exponentials relative to it (online: a thread rescales its sum when its maximum grows; Milakov &
// Gimelshein 2018). A second pass turns logits into their gradient in place. Long rows get large blocks: then few rows
// are in work at once, and the second pass finds its row in the cache. Traffic: the logits once in and, for a gradient,
// once out. Subtracting the largest first makes logits of any size safe. The columns from `vocab` up to `stride`, which
// is a multiple of a vector, are padding: their values do not count, and their gradient is 0.
//
// Set by the host: T (bf16 | float), GRADIENT (0 | 1), THREADS.
#include "common.h"

constexpr int WARPS = THREADS / WARP, WIDTH = Vector<T>::SIZE;
static_assert(WARPS <= WARP, "a warp puts the results of all of them together");

// WIDTH logits from `column` on: -infinity from `vocab` on, and nothing is read from `stride` on.
DEVICE Floats<WIDTH> load_logits(const T* row, int column, int vocab, int stride) {
  Floats<WIDTH> logits = {};
  if (column < stride) logits = Floats<WIDTH>::load(row + column);
  if (column + WIDTH > vocab) {
    UNROLL for (int e = 0; e < WIDTH; e++) {
      if (column + e >= vocab) logits.v[e] = -infinity();
    }
  }
  return logits;
}

// The largest value and its first place, and sum of exp(value - largest), over some columns of a row.
struct Partial {
  float largest = -3e38f, sum = 0;
  int place = 0x7fffffff;

  DEVICE void add(const Floats<WIDTH>& logits, int column) {  // columns that are all behind those added before
    float most = logits.v[0];
    UNROLL for (int e = 1; e < WIDTH; e++) most = maximum(most, logits.v[e]);
    if (most > largest) {
      sum *= exp2_fast((largest - most) * LOG2E);
      largest = most;
      UNROLL for (int e = WIDTH - 1; e >= 0; e--) {
        if (logits.v[e] == most) place = column + e;
      }
    }
    UNROLL for (int e = 0; e < WIDTH; e++) sum += exp2_fast((logits.v[e] - largest) * LOG2E);
  }
  DEVICE void add(const Partial& other) {  // any columns; if the maxima are equal, the earlier place wins
    bool better = other.largest > largest || (other.largest == largest && other.place < place);
    float most = better ? other.largest : largest, less = better ? largest : other.largest;
    float factor = exp2_fast((less - most) * LOG2E);
    sum = better ? sum * factor + other.sum : sum + other.sum * factor;
    largest = most;
    place = better ? other.place : place;
  }
};

// The Partial of a warp's columns: every lane gets it.
DEVICE Partial warp_partial(Partial p) {
  for (int mask = WARP / 2; mask; mask /= 2) {
    float place = float_of((uint32)p.place);
    Partial other{shuffle_xor(p.largest, mask), shuffle_xor(p.sum, mask), (int)bits_of(shuffle_xor(place, mask))};
    p.add(other);
  }
  return p;
}

// The Partial of the whole row: every thread gets it.
DEVICE Partial row_partial(const T* row, int vocab, int stride, Shared<float> largest, Shared<float> sums,
                           Shared<int> places) {
  Partial p;
  for (int c = thread_id() * WIDTH; c < vocab; c += 2 * THREADS * WIDTH) {
    auto logits = load_logits(row, c, vocab, stride), next = load_logits(row, c + THREADS * WIDTH, vocab, stride);
    p.add(logits, c);
    p.add(next, c + THREADS * WIDTH);
  }
  p = warp_partial(p);
  if (lane_id() == 0) {
    largest[warp_id()] = p.largest;
    sums[warp_id()] = p.sum;
    places[warp_id()] = p.place;
  }
  sync();
  p = Partial{};
  if (lane_id() < WARPS) p = Partial{largest[lane_id()], sums[lane_id()], places[lane_id()]};
  return warp_partial(p);
}

// losses [rows] = log sum exp(logits) - logits[label]; hits [rows] = 1 if the label is the first of the largest logits,
// else 0. With GRADIENT, logits [rows, stride] become scale [1] (softmax(logits) - onehot(label)). A row with the label
// -1 does not count: its loss, hit and gradient are 0.
// grid: rows, block: THREADS
KERNEL(THREADS) cross_entropy(T* logits, const int* labels, float* losses, float* hits, int vocab, int stride,
                              const float* scale) {
  SHARED(float, largest, WARPS);
  SHARED(float, sums, WARPS);
  SHARED(int, places, WARPS);
  T* row = logits + (index_t)block_x() * stride;
  int label = labels[block_x()];
  bool counts = label >= 0;
  float labels_logit = counts ? to_float(row[label]) : 0;  // read before the barrier after which it is overwritten
  Partial p = row_partial(row, vocab, stride, largest, sums, places);
  if (thread_id() == 0) {
    losses[block_x()] = counts ? (p.largest - labels_logit) + log2_of(p.sum) * LN2 : 0;
    hits[block_x()] = p.place == label;
  }
#if GRADIENT
  float wanted = counts ? *scale : 0, factor = wanted / p.sum;
  NO_VECTORIZE for (int c = thread_id() * WIDTH; c < stride; c += THREADS * WIDTH) {
    auto x = load_logits(row, c, vocab, stride);
    UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] = exp2_fast((x.v[e] - p.largest) * LOG2E) * factor;
    if (c <= label && label < c + WIDTH) {
      UNROLL for (int e = 0; e < WIDTH; e++) x.v[e] -= c + e == label ? wanted : 0;
    }
    x.store(row + c);
  }
#endif
}
