// Causal self-attention that keeps nothing of size seq x seq (FlashAttention, Dao 2023), and its gradients.
//
// A block of four warps takes SIDE rows of one head, a warp 16 of them, and goes over the other side's rows a slice of
// OTHERS at a time through shared memory. The product of queries and keys stays in registers: softmax works on the
// accumulator, which then is the next product's left operand. Forward keeps a running maximum m and sum l of each row
// (online softmax) and writes lse = m + log l. Backward computes the probabilities again from lse, in two kernels without
// atomics, hence deterministic: `attention_backward_keys` has keys for rows and loops over queries (Sᵀ = K Qᵀ),
// `attention_backward_queries` has queries for rows and loops over keys. With p the probabilities, f the dropout factors,
// dp = f (dO Vᵀ) and delta = sum of dO O per query: ds = p (dp - delta), dQ = ds K / sqrt(HEAD_DIM),
// dK = dsᵀ Q / sqrt(HEAD_DIM), dV = (f p)ᵀ dO.
//
// Traffic: each operand once per block row of the other side, from the cache; nothing else but the outputs.
//
// Layout: qkv is [batch x seq, 3, heads, HEAD_DIM], out and its gradient [batch x seq, heads, HEAD_DIM], lse and delta
// float [batch, heads, seq]. block_x is a head of a sequence, block_y SIDE of its rows.
//
// Set by the host: T (bf16 | float), HEAD_DIM (up to 128; 0-padded to whole tiles in registers), DROPOUT (0 | 1).
#include "common.h"

typedef Tile<T> M;
constexpr int CHUNKS = (HEAD_DIM + 15) / 16, PADDED = CHUNKS * 16;
constexpr int WARPS = 4, THREADS = WARPS * WARP, SIDE = WARPS * 16;
constexpr int VECTOR = Vector<T>::SIZE, STRIDE = PADDED + VECTOR;  // rows apart by 16 bytes more: other banks
constexpr int FITTING = 8192 / (PADDED * (int)sizeof(T)) / 16 * 16;  // two slices and two blocks fit 64 KiB
constexpr int OTHERS = FITTING > 64 ? 64 : FITTING < 16 ? 16 : FITTING;
// Whether a warp's own rows stay in registers, beside the sums that it keeps there, or are read again each time.
DEVICE constexpr bool hold(int slabs, int sums) {
  return CHUNKS * (slabs * sizeof(M::A) + sums * sizeof(M::Acc)) <= (WARP == 64 ? 768 : 384);
}

DEVICE float scale() { return rsqrt_of((float)HEAD_DIM); }

// Where a head's rows are: row s is p + s * stride.
template <class P> struct Rows {
  P p;
  index_t stride;
};

struct Head {
  int batch, head, heads, seq;

  DEVICE Head(int heads, int seq) : batch(block_x() / heads), head(block_x() % heads), heads(heads), seq(seq) {}
  // Part 0, 1, 2: queries, keys, values of qkv
  template <class P> DEVICE Rows<P> part(P qkv, int part) const {
    return {qkv + ((index_t)batch * seq * 3 + part) * heads * HEAD_DIM + head * HEAD_DIM, (index_t)3 * heads * HEAD_DIM};
  }
  template <class P> DEVICE Rows<P> of(P out) const {
    return {out + (index_t)batch * seq * heads * HEAD_DIM + head * HEAD_DIM, (index_t)heads * HEAD_DIM};
  }
  DEVICE index_t scalar(int s) const { return (index_t)block_x() * seq + s; }  // of lse, delta, and rows of the mask
};

// The 16 rows of a warp from `first` on, as left operands of products over HEAD_DIM.
template <bool HOLD> struct Slab {
  Window<T, HEAD_DIM % 2 == 0> window;
  M::A held[HOLD ? CHUNKS : 1];

  DEVICE Slab(Rows<const T*> rows, int first, int seq) : window{rows.p, rows.stride, first, seq - 1, 0} {
    if constexpr (HOLD) {
      UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) held[chunk] = read(chunk);
    }
  }
  DEVICE M::A operator[](int chunk) const {
    if constexpr (HOLD) return held[chunk];
    else return read(chunk);
  }
  DEVICE M::A read(int chunk) const {
    auto part = window;
    part.p += opaque(16 * chunk);
    part.columns = HEAD_DIM - 16 * chunk;
    return M::load_a(part, 16);
  }
};

// slice [OTHERS, STRIDE] = rows first ... first + OTHERS - 1, 0 from row `seq` and column HEAD_DIM on
DEVICE void fill(Shared<T> slice, Rows<const T*> rows, int first, int seq) {
  constexpr int WIDTH = HEAD_DIM % VECTOR == 0 ? VECTOR : 1;
  for (int i = thread_id() * WIDTH; i < OTHERS * PADDED; i += THREADS * WIDTH) {
    int r = i / PADDED, c = i % PADDED;
    bool inside = first + r < seq && c < HEAD_DIM;
    const T* from = rows.p + (first + r) * rows.stride + c;
    if constexpr (WIDTH > 1) {
      Vector<T> v = {};
      if (inside) v = *(const Vector<T>*)from;
      slice.set_vector(r * STRIDE + c, v);
    } else {
      slice[r * STRIDE + c] = inside ? *from : T{};
    }
  }
}

// The warp's 16 rows times the transpose of 16 rows of a slice.
template <bool HOLD> DEVICE M::Acc times_transposed(const Slab<HOLD>& slab, Shared<T> slice, int first) {
  M::Acc acc = {};
  UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
    M::multiply_add(acc, slab[chunk], M::load_b_transposed(slice + (first * STRIDE + 16 * chunk), STRIDE));
    pin(acc.v);
  }
  return acc;
}

// 16 x HEAD_DIM in registers, the sum of 16 x 16 matrices times 16 rows of slices.
struct Sum {
  M::Acc parts[CHUNKS];

  DEVICE void add_product(M::Acc left, Shared<T> slice, int first) {
    M::A a = M::to_a(left);
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
      M::multiply_add(parts[chunk], a, M::load_b(slice + (first * STRIDE + 16 * chunk), STRIDE));
      pin(parts[chunk].v);
    }
  }
  // factors: one per slot
  DEVICE void multiply(const float* factors) {
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) parts[chunk].v[e] *= factors[M::slot(e)];
    }
  }
  DEVICE void store(Rows<T*> rows, int first, int seq) const {
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        int row = first + M::row(e), column = 16 * chunk + M::column(e);
        if (row < seq && column < HEAD_DIM) rows.p[row * rows.stride + column] = from_float<T>(parts[chunk].v[e]);
      }
    }
  }
};

KERNEL(4 * WARP) attention(const T* qkv, T* out, float* lse, int heads, int seq, const uint32* key, uint32 site,
                           uint32 threshold, float keep_scale) {
  SHARED(T, keys, OTHERS * STRIDE);
  SHARED(T, values, OTHERS * STRIDE);
  Head head(heads, seq);
  int block_first = ((seq - 1) / SIDE - block_y()) * SIDE;  // the longest rows first: they take the longest
  int first = block_first + 16 * warp_id();
  Slab<hold(1, 1)> q(head.part(qkv, 0), first, seq);
  Sum o = {};
  float m[M::SLOTS], l[M::SLOTS];  // l: of this lane's columns
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    m[s] = -infinity();
    l[s] = 0;
  }
#if DROPOUT
  Dropout dropout(key, site, threshold, keep_scale);
  uint32 hash[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) hash[s] = dropout.row_hash(head.scalar(first + M::slot_row(s)));
#endif

  for (int start = 0; start < minimum(seq, block_first + SIDE); start += OTHERS) {
    sync();
    fill(keys, head.part(qkv, 1), start, seq);
    fill(values, head.part(qkv, 2), start, seq);
    sync();
    if (start > first + 15) continue;  // all of it comes after this warp's queries
    M::Acc p[OTHERS / 16];
    float largest[M::SLOTS], factors[M::SLOTS];
    UNROLL for (int s = 0; s < M::SLOTS; s++) largest[s] = m[s];
    UNROLL for (int t = 0; t < OTHERS / 16; t++) {
      p[t] = times_transposed(q, keys, 16 * t);
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        bool past = start + 16 * t + M::column(e) <= first + M::row(e);
        p[t].v[e] = past ? p[t].v[e] * (scale() * LOG2E) : -infinity();
        largest[M::slot(e)] = maximum(largest[M::slot(e)], p[t].v[e]);
      }
    }
    UNROLL for (int s = 0; s < M::SLOTS; s++) {
      largest[s] = M::row_max(largest[s]);
      factors[s] = exp2_fast(m[s] - largest[s]);
      m[s] = largest[s];
      l[s] *= factors[s];
    }
    o.multiply(factors);
    UNROLL for (int t = 0; t < OTHERS / 16; t++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        p[t].v[e] = exp2_fast(p[t].v[e] - m[M::slot(e)]);
        l[M::slot(e)] += p[t].v[e];
#if DROPOUT
        p[t].v[e] *= dropout.factor(hash[M::slot(e)], start + 16 * t + M::column(e));
#endif
      }
      o.add_product(p[t], values, 16 * t);
    }
  }

  float factors[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    l[s] = M::row_sum(l[s]);
    factors[s] = 1 / l[s];
    int row = first + M::slot_row(s);
    if (row < seq && M::column(0) == 0) lse[head.scalar(row)] = (m[s] + log2_of(l[s])) * LN2;
  }
  o.multiply(factors);
  o.store(head.of(out), first, seq);
}

// delta [batch, heads, seq] = sum over HEAD_DIM of dout out; a thread per row and head
KERNEL(256) attention_delta(const T* dout, const T* out, float* delta, int rows, int heads, int seq) {
  int i = block_x() * 256 + thread_id(), row = i / heads, head = i % heads;
  if (row >= rows) return;
  constexpr int WIDTH = HEAD_DIM % VECTOR == 0 ? VECTOR : 1;
  float sum = 0;
  for (int d = 0; d < HEAD_DIM; d += WIDTH) {
    auto a = Floats<WIDTH>::load(dout + (index_t)i * HEAD_DIM + d), b = Floats<WIDTH>::load(out + (index_t)i * HEAD_DIM + d);
    UNROLL for (int e = 0; e < WIDTH; e++) sum += a.v[e] * b.v[e];
  }
  delta[((index_t)(row / seq) * heads + head) * seq + row % seq] = sum;
}

// dK and dV: rows of everything here are keys, columns queries.
KERNEL(4 * WARP) attention_backward_keys(const T* dout, const T* qkv, const float* lse, const float* delta, T* dqkv,
                                         int heads, int seq, const uint32* key, uint32 site, uint32 threshold,
                                         float keep_scale) {
  SHARED(T, queries, OTHERS * STRIDE);
  SHARED(T, gradients, OTHERS * STRIDE);
  SHARED(float, query_lse, OTHERS);
  SHARED(float, query_delta, OTHERS);
  Head head(heads, seq);
  int block_first = block_y() * SIDE, first = block_first + 16 * warp_id();
  Slab<hold(2, 2)> k(head.part(qkv, 1), first, seq), v(head.part(qkv, 2), first, seq);
  Sum dk = {}, dv = {};
#if DROPOUT
  SHARED(uint32, query_hash, OTHERS);
  Dropout dropout(key, site, threshold, keep_scale);
#endif

  for (int start = block_first / OTHERS * OTHERS; start < seq; start += OTHERS) {
    sync();
    fill(queries, head.part(qkv, 0), start, seq);
    fill(gradients, head.of(dout), start, seq);
    for (int i = thread_id(); i < OTHERS; i += THREADS) {
      bool inside = start + i < seq;
      query_lse[i] = inside ? lse[head.scalar(start + i)] * LOG2E : infinity();  // p = 0 beyond the end
      query_delta[i] = inside ? delta[head.scalar(start + i)] : 0;
#if DROPOUT
      query_hash[i] = dropout.row_hash(head.scalar(start + i));
#endif
    }
    sync();
    NO_UNROLL for (int t = 0; t < OTHERS; t += 16) {
      if (start + t + 15 < first) continue;  // these queries come before all of the warp's keys
      M::Acc p = times_transposed(k, queries, t), dp = times_transposed(v, gradients, t);
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        int query = t + M::column(e), position = first + M::row(e);
        float exponential = exp2_fast(p.v[e] * (scale() * LOG2E) - query_lse[query]), shift = query_delta[query];
        float probability = position <= start + query ? exponential : 0;
        float factor = 1;
#if DROPOUT
        factor = dropout.factor(query_hash[query], position);
#endif
        p.v[e] = probability * factor;
        dp.v[e] = probability * (dp.v[e] * factor - shift);
      }
      dv.add_product(p, gradients, t);
      dk.add_product(dp, queries, t);
    }
  }

  float factors[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) factors[s] = scale();
  dk.multiply(factors);
  dk.store(head.part(dqkv, 1), first, seq);
  dv.store(head.part(dqkv, 2), first, seq);
}

KERNEL(4 * WARP) attention_backward_queries(const T* dout, const T* qkv, const float* lse, const float* delta, T* dqkv,
                                            int heads, int seq, const uint32* key, uint32 site, uint32 threshold,
                                            float keep_scale) {
  SHARED(T, keys, OTHERS * STRIDE);
  SHARED(T, values, OTHERS * STRIDE);
  Head head(heads, seq);
  int block_first = ((seq - 1) / SIDE - block_y()) * SIDE, first = block_first + 16 * warp_id();
  Slab<hold(2, 1)> q(head.part(qkv, 0), first, seq), gradient(head.of(dout), first, seq);
  Sum dq = {};
  float row_lse[M::SLOTS], row_delta[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    int row = first + M::slot_row(s);
    row_lse[s] = row < seq ? lse[head.scalar(row)] * LOG2E : infinity();
    row_delta[s] = row < seq ? delta[head.scalar(row)] : 0;
  }
#if DROPOUT
  Dropout dropout(key, site, threshold, keep_scale);
  uint32 hash[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) hash[s] = dropout.row_hash(head.scalar(first + M::slot_row(s)));
#endif

  for (int start = 0; start < minimum(seq, block_first + SIDE); start += OTHERS) {
    sync();
    fill(keys, head.part(qkv, 1), start, seq);
    fill(values, head.part(qkv, 2), start, seq);
    sync();
    NO_UNROLL for (int t = 0; t < OTHERS; t += 16) {
      if (start + t > first + 15) break;  // from here on all keys come after the warp's queries
      M::Acc p = times_transposed(q, keys, t), dp = times_transposed(gradient, values, t);
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        int s = M::slot(e), position = start + t + M::column(e);
        float exponential = exp2_fast(p.v[e] * (scale() * LOG2E) - row_lse[s]);
        float probability = position <= first + M::row(e) ? exponential : 0;
        float factor = 1;
#if DROPOUT
        factor = dropout.factor(hash[s], position);
#endif
        dp.v[e] = probability * (dp.v[e] * factor - row_delta[s]);
      }
      dq.add_product(dp, keys, t);
    }
  }

  float factors[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) factors[s] = scale();
  dq.multiply(factors);
  dq.store(head.part(dqkv, 0), first, seq);
}

// keys and values [heads, capacity, HEAD_DIM] at `start` + row = those of qkv [rows, 3, heads, HEAD_DIM]; a block per row
KERNEL(128) cache_append(const T* qkv, T* keys, T* values, int heads, int capacity, int start) {
  const T* row = qkv + (index_t)block_x() * 3 * heads * HEAD_DIM;
  for (int i = thread_id(); i < heads * HEAD_DIM; i += 128) {
    index_t to = ((index_t)(i / HEAD_DIM) * capacity + start + block_x()) * HEAD_DIM + i % HEAD_DIM;
    keys[to] = row[heads * HEAD_DIM + i];
    values[to] = row[2 * heads * HEAD_DIM + i];
  }
}

// One query against the cached keys and values of positions 0 ... start + its row: out [rows, heads, HEAD_DIM]. block_x is
// the row, block_y the head. Keys come 128 at a time, a thread each, with an online softmax over those parts.
KERNEL(128) attention_cached(const T* qkv, const T* keys, const T* values, T* out, int heads, int capacity, int start) {
  SHARED(float, query, HEAD_DIM);
  SHARED(float, weights, 128);
  SHARED(float, scratch, 128 / WARP);
  int row = block_x(), head = block_y(), end = start + row + 1;
  for (int d = thread_id(); d < HEAD_DIM; d += 128) {
    query[d] = to_float(qkv[((index_t)row * 3 * heads + head) * HEAD_DIM + d]) * (scale() * LOG2E);
  }
  sync();
  const T* head_keys = keys + (index_t)head * capacity * HEAD_DIM;
  const T* head_values = values + (index_t)head * capacity * HEAD_DIM;
  float m = -infinity(), l = 0, sum = 0;  // sum: of dimension thread_id(), for HEAD_DIM is at most 128
  for (int first = 0; first < end; first += 128) {
    int position = first + thread_id();
    float score = -infinity();
    if (position < end) {
      score = 0;
      const T* k = head_keys + (index_t)position * HEAD_DIM;
      for (int d = 0; d < HEAD_DIM; d++) score += query[d] * to_float(k[d]);
    }
    float largest = maximum(m, block_max<128 / WARP>(score, scratch));
    float weight = exp2_fast(score - largest), factor = exp2_fast(m - largest);
    weights[thread_id()] = weight;
    l = l * factor + block_sum<128 / WARP>(weight, scratch);  // its barriers also make `weights` visible
    sum *= factor;
    m = largest;
    if (thread_id() < HEAD_DIM) {
      for (int i = 0; i < minimum(128, end - first); i++) {
        sum += weights[i] * to_float(head_values[(index_t)(first + i) * HEAD_DIM + thread_id()]);
      }
    }
    sync();
  }
  if (thread_id() < HEAD_DIM) out[((index_t)row * heads + head) * HEAD_DIM + thread_id()] = from_float<T>(sum / l);
}
