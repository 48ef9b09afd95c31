// Attention of a new position of each sequence to all positions before it, whose keys and values a cache holds; and how
// the positions of a prompt enter the cache. This is for writing text.
//
// A block of `attention_cached` has a sequence and a head. LANES lanes hold a row of HEAD_DIM, so a warp takes several
// positions at once, and loads AHEAD times as many. A score then needs only shuffles. Each group of lanes keeps an
// online softmax (maximum, sum, weighted values) of its own positions; the groups are merged at the end, in a fixed
// order. The block writes the new key and value into the cache, and reads them from qkv. The order of sums depends on
// the position alone. Traffic: the sequence's part of the cache once.
//
// A block of `fill_cache` has a row of qkv. The place is read from memory, so that one recorded graph of a pass over a
// prompt serves all places. Traffic: keys and values once each way.
//
// Layout: qkv is [sequences, 3, heads, HEAD_DIM], out [sequences, heads, HEAD_DIM], keys and values [places, heads,
// capacity, HEAD_DIM]. In `attention_cached` sequence b has place b and its new position is start[b]; in `fill_cache`
// the rows of qkv are the first positions of a single sequence.
//
// Set by the host: T (bf16 | float), HEAD_DIM (up to 128), WIDTH (elements of a row at a time; divides HEAD_DIM), LANES
// (a power of 2, up to a warp), THREADS.
#include "common.h"

constexpr int WARPS = THREADS / WARP;
constexpr int AHEAD = 4;  // positions of a group of lanes whose loads begin together
constexpr int VECTORS = (HEAD_DIM + LANES * WIDTH - 1) / (LANES * WIDTH);  // that a lane has of a row
constexpr int POSITIONS = WARP / LANES;  // that a warp takes at once
constexpr float LOWEST = -3e38f;         // below every score, but finite: its differences are numbers

DEVICE int column(int vector) { return (vector * LANES + lane_id() % LANES) * WIDTH; }

// A lane's columns of a row, and 0 after the row's end.
struct Row {
  Floats<WIDTH> vectors[VECTORS];

  static DEVICE Row load(const T* p) {
    Row row = {};
    UNROLL for (int i = 0; i < VECTORS; i++) {
      if (column(i) < HEAD_DIM) row.vectors[i] = Floats<WIDTH>::load(p + column(i));
    }
    return row;
  }
};

// WIDTH neighbors of a row as they lie in memory
struct alignas(WIDTH * sizeof(T)) Neighbors {
  T v[WIDTH];

  static DEVICE Neighbors load(const T* p) { return *(const Neighbors*)p; }
  DEVICE void store(T* p) const { *(Neighbors*)p = *this; }
};

#define EACH(i, e)                         \
  UNROLL for (int i = 0; i < VECTORS; i++) \
    UNROLL for (int e = 0; e < WIDTH; e++)

// grid: sequences x heads, block: THREADS
KERNEL(THREADS) attention_cached(const T* qkv, T* keys, T* values, T* out, int heads, int capacity, const int* start) {
  SHARED(float, maxima, WARPS);
  SHARED(float, totals, WARPS);
  SHARED(float, sums, WARPS * HEAD_DIM);
  int sequence = block_x(), head = block_y();
  int newest = start[sequence], end = newest + 1;
  index_t step = (index_t)heads * HEAD_DIM;  // from the query to the key, and from there to the value
  const T* own = qkv + 3 * step * sequence + head * HEAD_DIM;
  T* head_keys = keys + ((index_t)sequence * heads + head) * capacity * HEAD_DIM;
  T* head_values = values + ((index_t)sequence * heads + head) * capacity * HEAD_DIM;

  // All of these are on their way together. What enters the cache is stored at the end, because on CDNA a load waits for
  // the stores before it, and by the last threads, because the first ones have more to do.
  static_assert(HEAD_DIM <= THREADS * WIDTH, "a thread stores neighbors of the new key, and of the new value");
  int entering = (THREADS - 1 - thread_id()) * WIDTH, inside = minimum(entering, HEAD_DIM - WIDTH);
  Row query = Row::load(own);
  Neighbors new_key = Neighbors::load(own + step + inside), new_value = Neighbors::load(own + 2 * step + inside);
  separate_accesses();
  EACH(i, e) query.vectors[i].v[e] *= rsqrt_of((float)HEAD_DIM) * LOG2E;

  // Each group of lanes goes over its positions, AHEAD at a time: loads, scores, softmax.
  float m = LOWEST, l = 0;
  Row sum = {};
  for (int first = warp_id() * POSITIONS * AHEAD; first < end; first += THREADS / LANES * AHEAD) {
    Row key[AHEAD], value[AHEAD];
    float score[AHEAD], largest = m, added = 0;
    UNROLL for (int j = 0; j < AHEAD; j++) {
      int position = minimum(first + j * POSITIONS + lane_id() / LANES, newest);
      index_t at = (index_t)position * HEAD_DIM;
      key[j] = Row::load(position < newest ? head_keys + at : own + step);
      value[j] = Row::load(position < newest ? head_values + at : own + 2 * step);
    }
    UNROLL for (int j = 0; j < AHEAD; j++) {
      score[j] = 0;
      EACH(i, e) score[j] += query.vectors[i].v[e] * key[j].vectors[i].v[e];
      for (int mask = 1; mask < LANES; mask *= 2) score[j] += shuffle_xor(score[j], mask);
      if (first + j * POSITIONS + lane_id() / LANES >= end) score[j] = -infinity();
      largest = maximum(largest, score[j]);
    }
    // The maximum may have grown: the sums so far shrink by `factor`.
    float factor = exp2_fast(m - largest);
    EACH(i, e) sum.vectors[i].v[e] *= factor;
    UNROLL for (int j = 0; j < AHEAD; j++) {
      float weight = exp2_fast(score[j] - largest);
      added += weight;
      EACH(i, e) sum.vectors[i].v[e] += weight * value[j].vectors[i].v[e];
    }
    l = l * factor + added;
    m = largest;
  }

  // The groups of a warp are merged by shuffles, then the warps through shared memory.
  float largest = m;
  for (int mask = LANES; mask < WARP; mask *= 2) largest = maximum(largest, shuffle_xor(largest, mask));
  float factor = exp2_fast(m - largest);
  l *= factor;
  EACH(i, e) sum.vectors[i].v[e] *= factor;
  for (int mask = LANES; mask < WARP; mask *= 2) {  // all elements together, so that none waits for another one
    l += shuffle_xor(l, mask);
    EACH(i, e) sum.vectors[i].v[e] += shuffle_xor(sum.vectors[i].v[e], mask);
  }
  EACH(i, e) {
    if (lane_id() < LANES && column(i) < HEAD_DIM) sums[warp_id() * HEAD_DIM + column(i) + e] = sum.vectors[i].v[e];
  }
  if (lane_id() == 0) {
    maxima[warp_id()] = largest;
    totals[warp_id()] = l;
  }
  sync();
  if (entering < HEAD_DIM) {
    new_key.store(head_keys + (index_t)newest * HEAD_DIM + entering);
    new_value.store(head_values + (index_t)newest * HEAD_DIM + entering);
  }
  for (int d = thread_id(); d < HEAD_DIM; d += THREADS) {
    float most = maxima[0], total = 0, weights = 0;
    for (int warp = 1; warp < WARPS; warp++) most = maximum(most, maxima[warp]);
    for (int warp = 0; warp < WARPS; warp++) {
      float weight = exp2_fast(maxima[warp] - most);
      weights += weight * totals[warp];
      total += weight * sums[warp * HEAD_DIM + d];
    }
    out[((index_t)block_x() * heads + head) * HEAD_DIM + d] = from_float<T>(total / weights);
  }
}

// grid: rows, block: THREADS
KERNEL(THREADS) fill_cache(const T* qkv, T* keys, T* values, int heads, int capacity, const int* place) {
  int row = block_x(), width = heads * HEAD_DIM;
  const T* own = qkv + (index_t)row * 3 * width;
  for (int d = thread_id() * WIDTH; d < width; d += THREADS * WIDTH) {
    index_t head = (index_t)*place * heads + d / HEAD_DIM;
    index_t to = (head * capacity + row) * HEAD_DIM + d % HEAD_DIM;
    Neighbors::load(own + width + d).store(keys + to);
    Neighbors::load(own + 2 * width + d).store(values + to);
  }
}
