// Token and position embedding with dropout, and its gradients.
//
// Forward: a block per row reads two rows of the tables and writes their sum. Backward adds up the rows of one token in
// their order, without atomics: the host gives a stable argsort of the ids, one block is launched for each place of
// that order, and the block at the first place of a token adds up all rows of the token. For example, ids 7 3 7 have
// the order 1 0 2: the block at place 0 takes row 1 for token 3, the block at place 1 takes rows 0 and 2 for token 7,
// and the block at place 2 returns at once. Positions are simpler: a block per position goes through the batch.
//
// Set by the host: T (bf16 | float), WIDTH (elements per thread at a time; divides d), DROPOUT, STARTED (0 | 1),
// THREADS; STREAM and PARTS (`embedding` writes a stream in parts, as skinny.hip describes it; else T and 1).
#include "common.h"

constexpr int AHEAD = 8;  // rows whose loads begin together: a frequent token has thousands

// sum += COUNT rows in their order; row(j) points to this thread's elements of row j.
template <int COUNT, class Row> DEVICE void add_rows(Floats<WIDTH>& sum, Row row) {
  Floats<WIDTH> loaded[COUNT];
  UNROLL for (int j = 0; j < COUNT; j++) loaded[j] = Floats<WIDTH>::load(row(j));
  UNROLL for (int j = 0; j < COUNT; j++) {
    UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += loaded[j].v[e];
  }
}

// out [rows, d] = wte[ids] + wpe[row % seq], or, if STARTED, wpe[start[row / seq] + row % seq]. A row whose id is not in
// the vocabulary becomes NaN. In parts, out is [rows, PARTS, d]: the row is the first part, and the others are 0.
// grid: rows, block: THREADS
KERNEL(THREADS) embedding(const int* ids, const T* wte, const T* wpe, STREAM* out, int vocab, int d, int seq,
                          const int* start, const uint32* key, uint32 site, uint32 threshold, float scale) {
  int row = block_x(), id = ids[row];
  const T* token = wte + (index_t)id * d;
  const T* position = wpe + (index_t)((STARTED ? start[row / seq] : 0) + row % seq) * d;
#if DROPOUT
  Dropout dropout(key, site, threshold, scale);
  uint32 hash = dropout.row_hash(row);
#endif
  for (int i = thread_id() * WIDTH; i < d; i += THREADS * WIDTH) {
    Floats<WIDTH> sum;
    if (id < 0 || id >= vocab) {
      UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] = float_of(0x7fc00000u);
    } else {
      sum = Floats<WIDTH>::load(token + i);
      auto added = Floats<WIDTH>::load(position + i);
      UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] += added.v[e];
    }
#if DROPOUT
    UNROLL for (int e = 0; e < WIDTH; e++) sum.v[e] *= dropout.factor(hash, i + e);
#endif
    STREAM* its = out + (index_t)row * PARTS * d + i;
    sum.store(its);
    UNROLL for (int part = 1; part < PARTS; part++) Floats<WIDTH>{}.store(its + part * d);
  }
}

// dwte[id] += the rows of dout [rows, d] that belong to id, in their order; order [rows] is a stable argsort of ids.
// grid: rows, block: THREADS
KERNEL(THREADS) embedding_backward_tokens(const T* dout, const int* ids, const int* order, float* dwte, int rows,
                                          int d) {
  int first = block_x(), id = ids[order[first]];
  if (first > 0 && ids[order[first - 1]] == id) return;  // the token began at an earlier place
  for (int i = thread_id() * WIDTH; i < d; i += THREADS * WIDTH) {
    float* out = dwte + (index_t)id * d + i;
    auto sum = Floats<WIDTH>::load(out);
    int place = first;
    auto belongs = [&](int place) { return place < rows && ids[order[place]] == id; };
    auto row = [&](int j) { return dout + (index_t)order[place + j] * d + i; };
    for (; belongs(place + AHEAD - 1); place += AHEAD) add_rows<AHEAD>(sum, row);
    for (; belongs(place); place++) add_rows<1>(sum, row);
    sum.store(out);
  }
}

// dwpe[s] += the rows of dout [batch x seq, d] at position s.
// grid: seq, block: THREADS
KERNEL(THREADS) embedding_backward_positions(const T* dout, float* dwpe, int batch, int seq, int d) {
  int s = block_x();
  for (int i = thread_id() * WIDTH; i < d; i += THREADS * WIDTH) {
    float* out = dwpe + (index_t)s * d + i;
    auto sum = Floats<WIDTH>::load(out);
    int b = 0;
    auto row = [&](int j) { return dout + ((index_t)(b + j) * seq + s) * d + i; };
    for (; b + AHEAD <= batch; b += AHEAD) add_rows<AHEAD>(sum, row);
    for (; b < batch; b++) add_rows<1>(sum, row);
    sum.store(out);
  }
}
