// Softmax over the vocabulary: the cross-entropy loss fused with its gradient, and a plain row softmax.
//
// A block per row. One pass finds the largest logit, where it stands, and the sum of exponentials relative to it (online:
// a thread rescales its sum when its maximum grows; Milakov & Gimelshein 2018). A second pass, over a row that is still in
// the cache, turns logits into their gradient in place. Memory traffic: the logits once in and, for a gradient, once out.
// Subtracting the largest first makes logits of any size safe. Columns from `vocab` on are padding: they are never read,
// and their gradient is 0.
//
// Set by the host: T (bf16 | float), GRADIENT (0 | 1).
#include "common.h"

constexpr int THREADS = 256, WARPS = THREADS / WARP;

// The largest value and its first place, and sum of exp(value - largest), over some columns of a row.
struct Partial {
  float largest, sum;
  int place;

  DEVICE void add(float v, int column) {
    if (v > largest) {
      sum = sum * exp2_fast((largest - v) * LOG2E) + 1;
      largest = v;
      place = column;
    } else {
      sum += exp2_fast((v - largest) * LOG2E);
    }
  }
  DEVICE void add(Partial other) {
    bool better = other.largest > largest || (other.largest == largest && other.place < place);
    float most = better ? other.largest : largest;
    sum = sum * exp2_fast((largest - most) * LOG2E) + other.sum * exp2_fast((other.largest - most) * LOG2E);
    largest = most;
    place = better ? other.place : place;
  }
};

DEVICE Partial row_partial(const T* row, int vocab, Shared<float> largest, Shared<float> sums, Shared<int> places) {
  Partial p{-3e38f, 0, 0x7fffffff};
  for (int c = thread_id(); c < vocab; c += THREADS) p.add(to_float(row[c]), c);
  for (int mask = WARP / 2; mask; mask /= 2) {
    float place = float_of((uint32)p.place);
    Partial other{shuffle_xor(p.largest, mask), shuffle_xor(p.sum, mask), (int)bits_of(shuffle_xor(place, mask))};
    p.add(other);
  }
  if (lane_id() == 0) {
    largest[warp_id()] = p.largest;
    sums[warp_id()] = p.sum;
    places[warp_id()] = p.place;
  }
  sync();
  p = Partial{largest[0], sums[0], places[0]};
  for (int w = 1; w < WARPS; w++) p.add(Partial{largest[w], sums[w], places[w]});
  return p;
}

// losses [rows] = log sum exp(logits) - logits[label]; hits [rows] = 1 where the label has the (first) largest logit.
// With GRADIENT, logits [rows, stride] become scale (softmax(logits) - onehot(label)).
KERNEL(256) cross_entropy(T* logits, const int* labels, float* losses, float* hits, int vocab, int stride, float scale) {
  SHARED(float, largest, WARPS);
  SHARED(float, sums, WARPS);
  SHARED(int, places, WARPS);
  T* row = logits + (index_t)block_x() * stride;
  Partial p = row_partial(row, vocab, largest, sums, places);
  int label = labels[block_x()];
  if (thread_id() == 0) {
    losses[block_x()] = (p.largest - to_float(row[label])) + log2_of(p.sum) * LN2;
    hits[block_x()] = p.place == label;
  }
#if GRADIENT
  sync();  // the label's logit has been read
  float factor = scale / p.sum;
  for (int c = thread_id(); c < stride; c += THREADS) {
    float gradient = 0;
    if (c < vocab) gradient = exp2_fast((to_float(row[c]) - p.largest) * LOG2E) * factor - (c == label ? scale : 0);
    row[c] = from_float<T>(gradient);
  }
#endif
}

// out [rows, vocab] = softmax(logits [rows, stride]) in float32
KERNEL(256) softmax(const T* logits, float* out, int vocab, int stride) {
  SHARED(float, largest, WARPS);
  SHARED(float, sums, WARPS);
  SHARED(int, places, WARPS);
  const T* row = logits + (index_t)block_x() * stride;
  Partial p = row_partial(row, vocab, largest, sums, places);
  for (int c = thread_id(); c < vocab; c += THREADS) {
    out[(index_t)block_x() * vocab + c] = exp2_fast((to_float(row[c]) - p.largest) * LOG2E) / p.sum;
  }
}
