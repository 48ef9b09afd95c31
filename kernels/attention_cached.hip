// Attention of a new position of each sequence to all positions before it, whose keys and values a cache holds; and how
// the positions of a prompt enter the cache. This is for writing text.
//
// A block of `attention_cached` has a sequence and a head. LANES lanes hold a row of HEAD_DIM, so a warp takes several
// positions at once, and loads AHEAD times as many. A score then needs only shuffles. Each group of lanes keeps an
// online softmax (maximum, sum, weighted values) of its own positions; the groups are merged at the end, in a fixed
// order, with the new position, whose key and value come from qkv. The block writes these into the cache. The order of
// sums depends on the position alone. Traffic: the sequence's part of the cache once.
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
  DEVICE void store(T* p) const {  // by a group of lanes
    UNROLL for (int i = 0; i < VECTORS; i++) {
      if (column(i) < HEAD_DIM) vectors[i].store(p + column(i));
    }
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

// The product of two rows that a group of lanes holds. Sums of even and odd elements are apart, because CDNA has
// instructions for two floats.
DEVICE float product(const Row& a, const Row& b) {
  float sums[2] = {};
  EACH(i, e) sums[e % 2] += a.vectors[i].v[e] * b.vectors[i].v[e];
  float sum = sums[0] + sums[1];
  for (int mask = 1; mask < LANES; mask *= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// grid: sequences x heads, block: THREADS
KERNEL(THREADS) attention_cached(const T* qkv, T* keys, T* values, T* out, int heads, int capacity, const int* start) {
  constexpr int PARTIES = WARPS + 1;  // the warps, each with its positions, and the new position
  SHARED(float, maxima, PARTIES);
  SHARED(float, totals, PARTIES);
  SHARED(float, sums, PARTIES * HEAD_DIM);
  int sequence = block_x(), head = block_y(), newest = start[sequence];
  index_t step = (index_t)heads * HEAD_DIM;  // from the query to the key, and from there to the value
  const T* own = qkv + 3 * step * sequence + head * HEAD_DIM;
  T* head_keys = keys + ((index_t)sequence * heads + head) * capacity * HEAD_DIM;
  T* head_values = values + ((index_t)sequence * heads + head) * capacity * HEAD_DIM;

  // All of these are on their way together.
  Row query = Row::load(own), new_key = Row::load(own + step), new_value = Row::load(own + 2 * step);
  separate_accesses();
  EACH(i, e) query.vectors[i].v[e] *= rsqrt_of((float)HEAD_DIM) * LOG2E;

  // Each group of lanes goes over its positions, AHEAD at a time: loads, scores, softmax.
  float m = LOWEST, l = 0;
  Row sum = {};
  for (int first = warp_id() * POSITIONS * AHEAD; first < newest; first += THREADS / LANES * AHEAD) {
    Row key[AHEAD], value[AHEAD];
    float score[AHEAD], largest = m, added = 0;
    UNROLL for (int j = 0; j < AHEAD; j++) {
      int position = minimum(first + j * POSITIONS + lane_id() / LANES, newest - 1);
      key[j] = Row::load(head_keys + position * HEAD_DIM);
      value[j] = Row::load(head_values + position * HEAD_DIM);
    }
    UNROLL for (int j = 0; j < AHEAD; j++) {
      score[j] = product(query, key[j]);
      if (first + j * POSITIONS + lane_id() / LANES >= newest) score[j] = -infinity();
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

  // The groups of a warp are merged by shuffles, then the warps through shared memory. There the last warp puts the new
  // position, too.
  bool is_last = warp_id() == WARPS - 1;
  float new_score = is_last ? product(query, new_key) : 0;
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
  if (is_last && lane_id() < LANES) {
    EACH(i, e) {
      if (column(i) < HEAD_DIM) sums[WARPS * HEAD_DIM + column(i) + e] = new_value.vectors[i].v[e];
    }
    if (lane_id() == 0) maxima[WARPS] = new_score, totals[WARPS] = 1;
  }
  sync();
  if (is_last && lane_id() < LANES) {  // at the end, because on CDNA a load waits for the stores before it
    new_key.store(head_keys + newest * HEAD_DIM);
    new_value.store(head_values + newest * HEAD_DIM);
  }
  for (int d = thread_id(); d < HEAD_DIM; d += THREADS) {
    float most = maxima[0], total = 0, weights = 0;
    for (int party = 1; party < PARTIES; party++) most = maximum(most, maxima[party]);
    for (int party = 0; party < PARTIES; party++) {
      float weight = exp2_fast(maxima[party] - most);
      weights += weight * totals[party];
      total += weight * sums[party * HEAD_DIM + d];
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
