// Attention of new positions of one sequence to those before them, whose keys and values a cache holds: what writing text
// needs, mostly for one position at a time.
//
// `cache_append` puts the new keys and values where they belong; then a block per new row and head goes over the keys, 128
// at a time, a thread each, with an online softmax over those parts. For the sum of values, threads share out both the
// columns, WIDTH neighboring ones each, and the positions, and add up at the end. Traffic: the cache once per new row.
//
// Layout: qkv is [rows, 3, heads, HEAD_DIM], out [rows, heads, HEAD_DIM], keys and values [heads, capacity, HEAD_DIM];
// row r is at position start[0] + r.
//
// Set by the host: T (bf16 | float), HEAD_DIM (up to 128), WIDTH (elements of a row at a time; divides HEAD_DIM).
#include "common.h"

constexpr int THREADS = 128, GROUPS = HEAD_DIM / WIDTH, PARTS = THREADS / GROUPS;  // of columns, of positions

// A block per row
KERNEL(128) cache_append(const T* qkv, T* keys, T* values, int heads, int capacity, const int* start) {
  const T* row = qkv + (index_t)block_x() * 3 * heads * HEAD_DIM;
  for (int i = thread_id() * WIDTH; i < heads * HEAD_DIM; i += THREADS * WIDTH) {
    index_t to = ((index_t)(i / HEAD_DIM) * capacity + start[0] + block_x()) * HEAD_DIM + i % HEAD_DIM;
    Floats<WIDTH>::load(row + heads * HEAD_DIM + i).store(keys + to);
    Floats<WIDTH>::load(row + 2 * heads * HEAD_DIM + i).store(values + to);
  }
}

// block_x is the row, block_y the head.
KERNEL(128) attention_cached(const T* qkv, const T* keys, const T* values, T* out, int heads, int capacity,
                             const int* start) {
  SHARED(float, query, HEAD_DIM);
  SHARED(float, weights, THREADS);
  SHARED(float, scratch, THREADS / WARP);
  SHARED(float, sums, PARTS * HEAD_DIM);
  int row = block_x(), head = block_y(), end = start[0] + row + 1;
  for (int d = thread_id(); d < HEAD_DIM; d += THREADS) {
    query[d] = to_float(qkv[((index_t)row * 3 * heads + head) * HEAD_DIM + d]) * (rsqrt_of((float)HEAD_DIM) * LOG2E);
  }
  sync();
  const T* head_keys = keys + (index_t)head * capacity * HEAD_DIM;
  const T* head_values = values + (index_t)head * capacity * HEAD_DIM;
  int column = thread_id() % GROUPS * WIDTH, part = thread_id() / GROUPS;
  float m = -infinity(), l = 0;
  Floats<WIDTH> sum = {};
  for (int first = 0; first < end; first += THREADS) {
    int position = first + thread_id();
    float score = -infinity();
    if (position < end) {
      score = 0;
      UNROLL for (int d = 0; d < HEAD_DIM; d += WIDTH) {
        auto k = Floats<WIDTH>::load(head_keys + (index_t)position * HEAD_DIM + d);
        UNROLL for (int e = 0; e < WIDTH; e++) score += query[d + e] * k.v[e];
      }
    }
    float largest = maximum(m, block_max<THREADS / WARP>(score, scratch));
    float weight = exp2_fast(score - largest), factor = exp2_fast(m - largest);
    weights[thread_id()] = weight;
    l = l * factor + block_sum<THREADS / WARP>(weight, scratch);  // its barriers also make `weights` visible
    m = largest;
    UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] *= factor;
    if (part < PARTS) {
      for (int i = part; i < minimum(THREADS, end - first); i += PARTS) {
        auto v = Floats<WIDTH>::load(head_values + (index_t)(first + i) * HEAD_DIM + column);
        UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += weights[i] * v.v[e];
      }
    }
    sync();
  }
  if (part < PARTS) {
    UNROLL for (int e = 0; e < WIDTH; e++) sums[part * HEAD_DIM + column + e] = sum.v[e];
  }
  sync();
  for (int d = thread_id(); d < HEAD_DIM; d += THREADS) {
    float total = 0;
    for (int p = 0; p < PARTS; p++) total += sums[p * HEAD_DIM + d];
    out[((index_t)row * heads + head) * HEAD_DIM + d] = from_float<T>(total / l);
  }
}
