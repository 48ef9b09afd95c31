// Causal self-attention that keeps nothing of size seq x seq (FlashAttention, Dao 2023), and its gradients.
//
// A block takes SIDE rows of one head, each of its warps 16 or 32 of them. It goes over the other side's rows through
// shared memory, a slice of OTHERS at a time; if copies are asynchronous, the next slice is copied meanwhile. The
// product of queries and keys stays in registers: softmax works on the accumulator, which then is the next product's
// left operand. Forward keeps a running maximum m and sum l of each row (online softmax) and writes lse = m + log l.
//
// Backward computes the probabilities again from lse, in two kernels without atomics, hence deterministic:
// `attention_backward_queries` has queries as rows and loops over keys, `attention_backward_keys` has keys as rows and
// loops over queries (Sᵀ = K Qᵀ). Let p be the probabilities, f the dropout factors, dp = f (dO Vᵀ), and delta the dot
// product of dO and O for each query, which the first of the two kernels leaves for the second. Then ds = p (dp -
// delta), dQ = ds K / sqrt(HEAD_DIM), dK = dsᵀ Q / sqrt(HEAD_DIM), dV = (f p)ᵀ dO.
//
// Traffic: each block of the other side reads an operand once. It comes from the cache, because the blocks of one head
// run side by side. Beyond that, only the outputs are written.
//
// Layout: qkv is [batch x seq, 3, heads, HEAD_DIM], out and its gradient [batch x seq, heads, HEAD_DIM], lse and delta
// float [batch, heads, seq]. The blocks of a head are neighbors, then come the heads of a sequence, then the sequences.
//
// Set by the host: T (bf16 | float), MATRIX (T, or wide_bf16 for bf16, or tf32 or tf32x3 for float), HEAD_DIM (up to 128;
// 0-padded to whole tiles in registers), DROPOUT (0 | 1), SIDE, THREADS (a warp for each tile's rows of SIDE), WGMMA (0 |
// 1: whether Hopper's instruction for four warps multiplies bf16), OWN_SHARED (0 | 1: whether a block's own rows are in
// shared memory, too, for all of which the launch then asks), SLICE (the OTHERS of such a block, else 0).
#include "dropout.h"

typedef Tile<MATRIX> M;
constexpr int CHUNKS = (HEAD_DIM + M::EDGE - 1) / M::EDGE, PADDED = CHUNKS * M::EDGE;
static_assert(THREADS == SIDE / M::EDGE * WARP, "a warp for each strip");
constexpr int WIDTH = HEAD_DIM % Vector<T>::SIZE == 0 ? Vector<T>::SIZE : 1;
// Rows of the other side in a slice: as many as shared memory has room for
// Four slices fit 48 KiB; two slices of each of two blocks fit 64.
constexpr int FITTING = 8192 / (PADDED * (int)sizeof(T)) / M::EDGE * M::EDGE;
constexpr int OTHERS = OWN_SHARED ? SLICE : FITTING > 64 ? 64 : FITTING < M::EDGE ? M::EDGE : FITTING;
typedef Slice<MATRIX, OTHERS, PADDED> Others;
static_assert(WGMMA == Others::WIDE && OWN_SHARED == (WGMMA || Others::FLOATS), "the host and slice.h agree");
constexpr int STAGES = ASYNCHRONOUS ? 2 : 1;
// Rows of a slice that backward takes at once. Registers have no room for the sums of more, and attention_backward_keys
// has twice as many.
constexpr int STEP = WGMMA || Others::FLOATS ? OTHERS : M::EDGE;
constexpr int KEYS_STEP = IS_SPLIT<MATRIX> && PADDED > 32 ? M::EDGE : STEP;
// Whether backward begins its products with both slices together. Registers have no room for the operands of both if each
// of their numbers is two of tf32.
constexpr bool TOGETHER = !IS_SPLIT<MATRIX>;
// Blocks that a multiprocessor should have registers for. On an H200 these numbers were faster in bf16, or did no harm.
// In float32 Hopper's shared memory has room for three if heads are small. But forward above 48 and backward above 32 are
// faster with the registers of two.
constexpr int FORWARD_BLOCKS = WGMMA ? 512 / THREADS : Others::FLOATS ? (PADDED <= 48 ? 3 : 2) : 1;
constexpr int FLOAT_BLOCKS = PADDED <= 32 ? 3 : 2;
constexpr int KEYS_BLOCKS = WGMMA && PADDED <= 48 ? 384 / THREADS : Others::FLOATS ? FLOAT_BLOCKS : 1;
constexpr int QUERIES_BLOCKS = WGMMA ? (PADDED > 64 ? 384 : 512) / THREADS : Others::FLOATS ? FLOAT_BLOCKS : 1;
// Bytes of a lane's registers for a warp's own rows (so many slabs of them) and its sums
DEVICE constexpr int held(int slabs, int sums) { return CHUNKS * (slabs * sizeof(M::A) + sums * sizeof(M::Acc)); }
// Whether registers have room for both. If not, the rows are in shared memory, if matrix units of AMD multiply them, or
// are read again for each product. Shared memory costs blocks: on RDNA 3, which needs it for large heads in
// attention_backward_keys, two fit a workgroup processor in place of five. AMD's matrix units differ in
// the registers of an operand, and two operands for each of the sums have to fit beside them; with two sums dropout takes
// one more tile.
DEVICE constexpr bool hold(int slabs, int sums) {
  int beside = 2 * sums * sizeof(M::A) + (sums - 1) * DROPOUT * sizeof(M::Acc);
  return Others::GROUPED ? held(slabs, sums) + beside <= 832 : held(slabs, sums) <= held_bytes();
}
// Whether slices go through registers (Slice::fetch), and whether the next ones wait there while these are multiplied:
// a kernel that holds very much has no room for them.
#define FETCH (!ASYNCHRONOUS && sizeof(T) == 2 && WIDTH > 1)
DEVICE constexpr bool prefetch(int slabs, int sums) {
  return FETCH && (held(slabs, sums) <= 512 || !hold(slabs, sums));
}

DEVICE float scale() { return rsqrt_of((float)HEAD_DIM); }
// The first and the last row of the strip (the rows multiplied together) that contains row `first`.
DEVICE int first_of_strip(int first) { return first / Others::STRIP * Others::STRIP; }
DEVICE int last_of_strip(int first) { return first_of_strip(first) + Others::STRIP - 1; }
enum { QUERY, KEY, VALUE };  // the three matrices in qkv

// The head of a sequence that a block works on, and the places of its rows.
struct Head {
  int heads, seq, index, batch, head;

  DEVICE Head(int heads, int seq) : heads(heads), seq(seq) {
    index = block_x() / blocks();
    batch = index / heads, head = index % heads;
  }
  // The head's rows of one matrix in qkv, or in its gradient
  template <class P> DEVICE Rows<P> in_qkv(P qkv, int matrix) const {
    index_t first = (index_t)batch * seq * 3 + matrix;
    return {qkv + (first * heads + head) * HEAD_DIM, (index_t)3 * heads * HEAD_DIM};
  }
  // The head's rows of the output, or of its gradient
  template <class P> DEVICE Rows<P> in_out(P out) const {
    return {out + (index_t)batch * seq * heads * HEAD_DIM + head * HEAD_DIM, (index_t)heads * HEAD_DIM};
  }
  // The place of row s in lse and in delta, and its number in the dropout mask
  DEVICE index_t scalar(int s) const { return (index_t)index * seq + s; }
  // The first of the block's rows, if blocks take them in order, or from the end. A row of queries attends to all keys
  // up to itself, so with the last rows first the longest work begins first.
  DEVICE int in_order() const { return place() * SIDE; }
  DEVICE int longest_first() const { return (blocks() - 1) * SIDE - in_order(); }
  DEVICE int blocks() const { return (seq + SIDE - 1) / SIDE; }  // of a head
  // The block's number among those of its head. CDNA 3's GPUs consist of eight chiplets, and block i runs on chiplet
  // i % 8. If a head has eight blocks, the longest ones of all heads would run on the same chiplet, with 1.8 times the
  // mean work. So numbers are shifted from head to head. For example, with four blocks, chiplet 0 has numbers 0 and 2 of
  // the first eight heads, then 1 and 3.
  DEVICE int place() const {
    int place = block_x() % blocks();
    return LAYOUT == LAYOUT_MFMA ? (place + index + index / 8) % blocks() : place;
  }
};

// A tile's rows from `first` on and its columns from EDGE chunk on, as a left operand
DEVICE M::A read_chunk(Rows<const T*> rows, int first, int seq, int chunk) {
  int column = opaque(M::EDGE * chunk);
  int columns = HEAD_DIM - M::EDGE * chunk;
  Window<T, HEAD_DIM % 2 == 0, M::EDGE> window{rows.p + column, rows.stride, first, seq - 1, columns};
  return M::load_a(window, M::EDGE);
}

// The rows of a warp from `first` on, as left operands of products over HEAD_DIM. They are kept in registers (HOLD), in
// shared memory, or nowhere: then they are read again each time. In shared memory they are there after the first call
// of Pipeline::next. On Hopper, in the end `store` puts results in bf16 in their place.
typedef Slice<MATRIX, SIDE, PADDED> Own;
DEVICE constexpr bool in_shared(bool hold) { return OWN_SHARED || (Others::GROUPED && M::EDGE == 16 && !hold); }
DEVICE constexpr int own(bool hold) { return in_shared(hold) ? Own::SIZE : 1; }  // elements of shared memory

template <bool HOLD> struct Slab {
  static constexpr bool IN_SHARED = in_shared(HOLD);
  Rows<const T*> source;
  int first, seq, warp;
  Own own;
  M::A held[HOLD && !IN_SHARED ? CHUNKS : 1];

  DEVICE Slab(Rows<const T*> source, int first, int seq, int warp, Shared<T> memory)
      : source(source), first(first), seq(seq), warp(warp), own{memory} {
    if constexpr (IN_SHARED) {
      own.template copy<THREADS, WIDTH>(source, first - 16 * warp, seq, HEAD_DIM);
    } else if constexpr (HOLD) {
      UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) held[chunk] = read_chunk(source, first, seq, chunk);
    }
  }
  // Waits for the rows in registers. Without it clang waits for them where the loop first uses them, in each round, and
  // there also for the slices that were requested just before.
  DEVICE void wait() {
    if constexpr (HOLD && !IN_SHARED && FETCH) {
      UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) pin(held[chunk].w);
    }
  }
#if WGMMA
  // The columns from 16 chunk on of the strip that this warp has a part of, for its instruction
  DEVICE Descriptor describe(int chunk) const { return own.describe(warp / 4 * 64, 16 * chunk); }
#endif
  DEVICE M::A operator[](int chunk) const {
    if constexpr (IN_SHARED) return M::load_a(own.p + (16 * warp * Own::STRIDE + 16 * chunk), Own::STRIDE);
    else if constexpr (HOLD) return held[chunk];
    else return read_chunk(source, first, seq, chunk);
  }
};

// Slices of two matrices of the other side, ROWS rows at a time, for the whole block to use.
template <int ROWS, class Second = Slice<MATRIX, ROWS, PADDED>> struct Pair {
  typedef Slice<MATRIX, ROWS, PADDED> First;
  Shared<T> first, second;  // STAGES slices each
  Rows<const T*> first_rows, second_rows;
  int seq;

  DEVICE First first_slice(int stage) const { return First{first + stage * First::SIZE}; }
  DEVICE Second second_slice(int stage) const { return Second{second + stage * Second::SIZE}; }
  DEVICE void copy(int start, int stage) const {
    first_slice(stage).template copy<THREADS, WIDTH>(first_rows, start, seq, HEAD_DIM);
    second_slice(stage).template copy<THREADS, WIDTH>(second_rows, start, seq, HEAD_DIM);
  }
  struct Fetched {
    typename First::template Fetched<THREADS, HEAD_DIM> first;
    typename Second::template Fetched<THREADS, HEAD_DIM> second;
  };
  DEVICE void begin(Fetched&) const {}
  // Only the last slices test whether rows exist. Tests in every slice took a twentieth of the time of `attention`.
  DEVICE void fetch(Fetched& fetched, int start) const {
    if (start + ROWS <= seq) fetch<true>(fetched, start);
    else fetch<false>(fetched, start);
  }
  template <bool WHOLE> DEVICE void fetch(Fetched& fetched, int start) const {
    First::template fetch<WHOLE>(fetched.first, first_rows, start, seq);
    Second::template fetch<WHOLE>(fetched.second, second_rows, start, seq);
  }
  DEVICE void put(const Fetched& fetched, int) const {
    first_slice(0).put(fetched.first);
    second_slice(0).put(fetched.second);
  }
  DEVICE void clear() const {
    first_slice(0).template clear<THREADS, HEAD_DIM>();
    second_slice(0).template clear<THREADS, HEAD_DIM>();
  }
};

// The same, but registers keep the offsets of a thread's vectors. Forward has room for them. With them, backward would take
// up to 4 % longer on RDNA.
template <int ROWS, class Second> struct PairByOffsets : Pair<ROWS, Second> {
  typedef Slice<MATRIX, ROWS, PADDED> First;
  struct Fetched : Pair<ROWS, Second>::Fetched {
    typename First::template Offsets<THREADS, HEAD_DIM> first_offsets;
    typename Second::template Offsets<THREADS, HEAD_DIM> second_offsets;
  };
  DEVICE void begin(Fetched& fetched) const {
    fetched.first_offsets.begin(this->first_rows);
    fetched.second_offsets.begin(this->second_rows);
  }
  DEVICE void fetch(Fetched& fetched, int start) const {
    if (start + ROWS > this->seq) {
      fetched.first_offsets.end(this->first_rows, this->seq - start);
      fetched.second_offsets.end(this->second_rows, this->seq - start);
    }
    First::fetch(fetched.first, fetched.first_offsets, this->first_rows, start);
    Second::fetch(fetched.second, fetched.second_offsets, this->second_rows, start);
  }
};

// Takes the slices of `source` through shared memory one after the other, from row `start` up to row `end`.
template <int ROWS, bool PREFETCH, class Source> struct Pipeline {
  const Source& source;
  int end, stage;
  typename Source::Fetched fetched;

  DEVICE Pipeline(const Source& source, int start, int end) : source(source), end(end), stage(0) {
    if constexpr (FETCH) source.begin(fetched);
    if constexpr (STAGES == 2) source.copy(start, stage);
    else if constexpr (PREFETCH) source.fetch(fetched, start);
    if constexpr (FETCH) source.clear();
  }
  // Returns the stage that holds the slices at `start` until the next call, and begins to copy the slices after them.
  DEVICE int next(int start) {
    if constexpr (STAGES == 1) {
      sync();
      if constexpr (FETCH && !PREFETCH) source.fetch(fetched, start);
      if constexpr (FETCH) source.put(fetched, start);
      else source.copy(start, stage);
    }
    copies_done();
    sync();
    int ready = stage;
    if (start + ROWS < end) {
      if constexpr (STAGES == 2) {
        stage = 1 - stage;
        source.copy(start + ROWS, stage);
      } else if constexpr (PREFETCH) {
        source.fetch(fetched, start + ROWS);
      }
    }
    return ready;
  }
};

// Sets the products of queries with later keys to minus infinity. Rows from `row` and columns from `column` on are
// queries and keys, or, with KEY_ROWS, keys and queries.
template <bool KEY_ROWS, int N> DEVICE void mask(M::Acc (&products)[N], int row, int column) {
  int ahead = row + M::row(0) - column - M::column(0);  // the lane's first row, as seen from its first column
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
      bool later;
      if constexpr (M::SLOTS == 1) {  // AMD compares a number of its instruction's own with `ahead`
        int c = M::EDGE * i + M::column(e) - M::column(0);
        later = KEY_ROWS ? ahead > c : c > ahead;
      } else {
        int r = row + M::row(e), c = column + M::EDGE * i + M::column(e);
        later = KEY_ROWS ? r > c : c > r;
      }
      if (later) products[i].v[e] = -infinity();
    }
  }
}

// ARRAY(T, name, count) declares an array that the block shares, between ARRAYS and ARRAYS_END. With the block's own
// rows there may be more than the 48 KiB that arrays of fixed size can take.
#if OWN_SHARED && defined(ON_CUDA)
#define ARRAYS gpt::Arrays arrays;
#define ARRAY(T, name, count) const gpt::Shared<T> name = arrays.take<T>(count)
#define ARRAYS_END arrays.end();
#else
#define ARRAYS
#define ARRAY SHARED
#define ARRAYS_END
#endif

typedef float PerRow[M::SLOTS];  // a number for each row that a lane has elements of

// Writes a warp's sum to its rows of `rows`. The sum is of products with a slice of type Right. If the warp's own rows
// are in shared memory on Hopper, the sum first replaces them there, so that whole rows are written at a time: elements
// one by one took a fifth of a kernel's time.
template <class Right>
DEVICE void store(const M::Acc (&sum)[CHUNKS], Rows<T*> rows, int first, int seq, Own own) {
#if WGMMA
  if constexpr (WIDTH > 1) {
    sync();  // because all four warps of a strip read its rows
    own.put_rows(sum, 16 * warp_id());
    own.write_rows(rows, 16 * warp_id(), first, seq, HEAD_DIM);
    return;
  }
#endif
  if constexpr (Own::FLOATS && WIDTH > 1) {
    Right::write_sums(sum, rows, first, seq, HEAD_DIM);
    return;
  }
  UNROLL for (int i = 0; i < CHUNKS; i++) {
    UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
      int row = first + M::row(e), column = Right::sum_column(i, M::column(e));
      if (row < seq && column < HEAD_DIM) rows.p[row * rows.stride + column] = from_result<T>(sum[i].v[e]);
    }
  }
}

// Forward only adds products with values, so on AMD they are stored as words of two rows.
typedef Slice<MATRIX, OTHERS, PADDED, Others::GROUPED && !Others::FLOATS> Values;

// out and lse.
// grid: batch * heads * ceil(seq / SIDE), block: THREADS
KERNEL(THREADS, FORWARD_BLOCKS) attention(
    const T* qkv, T* out, float* lse, int heads, int seq, const uint32* key, uint32 site, uint32 threshold,
    float keep_scale) {
  ARRAYS
  ARRAY(T, keys, STAGES * Others::SIZE);
  ARRAY(T, values, STAGES * Values::SIZE);
  ARRAY(T, own_queries, own(hold(1, 1)));
  ARRAYS_END
  Head head(heads, seq);
  int warp = uniform(warp_id()), block_first = head.longest_first(), first = block_first + M::EDGE * warp;
  int end = minimum(seq, block_first + SIDE);
  typedef PairByOffsets<OTHERS, Values> Slices;
  Slices pair{{keys, values, head.in_qkv(qkv, KEY), head.in_qkv(qkv, VALUE), seq}};
  Pipeline<OTHERS, prefetch(1, 1), Slices> pipeline(pair, 0, end);
  Slab<hold(1, 1)> q(head.in_qkv(qkv, QUERY), first, seq, warp, own_queries);
  q.wait();
  M::Acc o[CHUNKS] = {};
  PerRow m, l;  // the running maximum of each row, and the sum of its exponentials in this lane's columns
  float exponent = scale() * LOG2E;  // exp(scale v) = 2^(exponent v)
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    m[s] = -infinity();
    l[s] = 0;
  }
#if LAYOUT > LAYOUT_MMA
  Softmax<M> softmax(exponent);  // has both during the loop
#endif
#if DROPOUT
  Dropout dropout(key, site, threshold, keep_scale);
  uint32 hash[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) hash[s] = begun_row(dropout, head.scalar(first + M::slot_row(s)));
#endif

  for (int start = 0; start < end; start += OTHERS) {
    int stage = pipeline.next(start);
    if (start > last_of_strip(first)) continue;

    // S = Q Kᵀ, with later keys at minus infinity
    M::Acc p[OTHERS / M::EDGE];
    pair.first_slice(stage).template multiply_transposed<OTHERS>(p, q, 0);
    products_done(p);
    if (start + OTHERS - 1 > first) mask<false>(p, first, start);

#if LAYOUT > LAYOUT_MMA
    softmax.make_room(p, o);
#else
    // Softmax, online: if the maximum of a row grows from m to `largest`, its sums so far shrink by a factor.
    PerRow factors, shift;
    UNROLL for (int s = 0; s < M::SLOTS; s++) {
      float largest = row_max<M>(p, s, m[s]);
      factors[s] = exp2_fast((m[s] - largest) * exponent);
      m[s] = largest;
      l[s] *= factors[s];
      shift[s] = largest * exponent;
    }
    scale_rows<M>(o, factors);
#endif
    // P = 2^(exponent S - shift), its sum in this lane, and dropout. On NVIDIA a function compiles differently.
    UNROLL for (int i = 0; i < OTHERS / M::EDGE; i++) {
#if DROPOUT
      QueriesMask<M> keeps(dropout, hash, start + M::EDGE * i);
#endif
#if LAYOUT > LAYOUT_MMA
      softmax.exponentials(p[i]);
#endif
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
#if LAYOUT <= LAYOUT_MMA
        p[i].v[e] = exp2_fast(p[i].v[e] * exponent - shift[M::slot(e)]);
        l[M::slot(e)] += p[i].v[e];
#endif
#if DROPOUT
        if (!keeps[e]) p[i].v[e] = 0;
#endif
      }
    }

    // O += P V
    pair.second_slice(stage).template add_product<OTHERS>(o, p, 0);
    products_done(o);
  }

#if LAYOUT > LAYOUT_MMA
  l[0] = softmax.sum();
#endif

  // O / l, with dropout times keep_scale, and lse. The lane that has a row's first column writes lse.
  PerRow factors;
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    l[s] = M::row_sum(l[s]);
    factors[s] = (DROPOUT ? keep_scale : 1) / l[s];
    int row = first + M::slot_row(s);
    if (row < seq && M::column(0) == 0) {
#if LAYOUT > LAYOUT_MMA
      float shift = softmax.shift;
#else
      float shift = m[s] * exponent;
#endif
      lse[head.scalar(row)] = (shift + log2_of(l[s])) * LN2;
    }
  }
  scale_rows<M>(o, factors);
  store<Values>(o, head.in_out(out), first, seq, q.own);
}

// dQ, and delta for the next kernel.
// grid: batch * heads * ceil(seq / SIDE), block: THREADS
KERNEL(THREADS, QUERIES_BLOCKS) attention_backward_queries(
    const T* dout, const T* qkv, const T* out, const float* lse, float* delta, T* dqkv, int heads, int seq,
    const uint32* key, uint32 site, uint32 threshold, float keep_scale) {
  ARRAYS
  ARRAY(T, keys, STAGES * Others::SIZE);
  ARRAY(T, values, STAGES * Others::SIZE);
  ARRAY(T, own_queries, own(hold(2, 1)));
  ARRAY(T, own_gradients, own(hold(2, 1)));
  ARRAYS_END
  Head head(heads, seq);
  int warp = uniform(warp_id()), block_first = head.longest_first(), first = block_first + M::EDGE * warp;
  int end = minimum(seq, block_first + SIDE);
  Pair<OTHERS> pair{keys, values, head.in_qkv(qkv, KEY), head.in_qkv(qkv, VALUE), seq};
  Pipeline<OTHERS, prefetch(2, 1), Pair<OTHERS>> pipeline(pair, 0, end);
  Slab<hold(2, 1)> q(head.in_qkv(qkv, QUERY), first, seq, warp, own_queries);
  Slab<hold(2, 1)> gradient(head.in_out(dout), first, seq, warp, own_gradients);
  q.wait();
  gradient.wait();
  M::Acc dq[CHUNKS] = {};

  // delta = the dot product of dO and O. A row after the last gets an infinite lse, so its probabilities are 0.
  float exponent = scale() * LOG2E, shift[M::SLOTS], row_delta[M::SLOTS] = {};
  UNROLL for (int i = 0; i < CHUNKS; i++) {
    M::add_dots(row_delta, read_chunk(head.in_out(dout), first, seq, i), read_chunk(head.in_out(out), first, seq, i));
  }
  UNROLL for (int s = 0; s < M::SLOTS; s++) {
    int row = first + M::slot_row(s);
    row_delta[s] = M::row_sum(row_delta[s]);
    shift[s] = row < seq ? lse[head.scalar(row)] * LOG2E : infinity();
    if (row < seq && M::column(0) == 0) delta[head.scalar(row)] = row_delta[s];
  }
#if DROPOUT
  Dropout dropout(key, site, threshold, keep_scale);
  uint32 hash[M::SLOTS];
  UNROLL for (int s = 0; s < M::SLOTS; s++) hash[s] = begun_row(dropout, head.scalar(first + M::slot_row(s)));
#endif

  for (int start = 0; start < end; start += OTHERS) {
    int stage = pipeline.next(start);
    auto key_slice = pair.first_slice(stage), value_slice = pair.second_slice(stage);
    NO_UNROLL for (int t = 0; t < OTHERS; t += STEP) {
      if (start + t > last_of_strip(first)) break;
      // S = Q Kᵀ and dP = dO Vᵀ
      M::Acc p[STEP / M::EDGE], dp[STEP / M::EDGE];
      key_slice.template multiply_transposed<STEP>(p, q, t);
      if (TOGETHER) value_slice.template multiply_transposed<STEP>(dp, gradient, t);
      products_done<1>(p);
      if (start + t + STEP - 1 > first) mask<false>(p, first, start + t);
      UNROLL for (int i = 0; i < STEP / M::EDGE; i++) {
#if LAYOUT > LAYOUT_MMA
        Float2 unused = {};
        exponentials<M>(p[i], exponent, shift[0], unused);
#else
        UNROLL for (int e = 0; e < M::ELEMENTS; e++) p[i].v[e] = exp2_fast(p[i].v[e] * exponent - shift[M::slot(e)]);
#endif
      }
      if (!TOGETHER) value_slice.template multiply_transposed<STEP>(dp, gradient, t);
      // dS = P (f dP - delta), in place of dP; then dQ += dS K
      products_done(dp);
      UNROLL for (int i = 0; i < STEP / M::EDGE; i++) {
#if DROPOUT
        QueriesMask<M> keeps(dropout, hash, start + t + M::EDGE * i);
#endif
        UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
          int s = M::slot(e);
#if DROPOUT
          dp[i].v[e] = keeps[e] ? dp[i].v[e] * keep_scale : 0;
#endif
          dp[i].v[e] = p[i].v[e] * (dp[i].v[e] - row_delta[s]);
        }
      }
      key_slice.template add_product<STEP>(dq, dp, t);
      products_done(dq);
    }
  }

  scale_all<M>(dq, scale());
  store<Others>(dq, head.in_qkv(dqkv, QUERY), first, seq, q.own);
}

// Slices of queries and of the gradients of their outputs, with lse, delta and dropout's hash of each query. Rows after
// the last add nothing: they are zeros or, if they were fetched, have an infinite lse, so their probabilities are 0.
struct Queries : Pair<OTHERS> {
  Shared<float> lse, delta;  // STAGES x OTHERS
  const float *lse_from, *delta_from;
#if DROPOUT
  Shared<uint32> hash;
  Dropout dropout;
  index_t first_hashed;
#endif

  static_assert(OTHERS <= THREADS, "a thread for each query: a loop would cost more than all else here");
  DEVICE void copy(int start, int stage) const {
    Pair<OTHERS>::copy(start, stage);
    int i = thread_id();
    if (i < OTHERS) {
      bool inside = start + i < seq;
      int from = inside ? start + i : 0;
      copy_float(lse + (stage * OTHERS + i), lse_from + from, inside);
      copy_float(delta + (stage * OTHERS + i), delta_from + from, inside);
#if DROPOUT
      hash[stage * OTHERS + i] = begun_row(dropout, first_hashed + start + i);
#endif
    }
  }
  struct Fetched : Pair<OTHERS>::Fetched {
    float lse, delta;
  };
  DEVICE void fetch(Fetched& fetched, int start) const {
    // With dropout, registers have no room for both forms. With large heads, both doubled the time on gfx1100.
    if constexpr (DROPOUT || PADDED > 96) Pair<OTHERS>::template fetch<false>(fetched, start);
    else Pair<OTHERS>::fetch(fetched, start);
    int query = start + thread_id();
    bool inside = query < seq;
    fetched.lse = inside ? lse_from[query] : infinity();
    fetched.delta = inside ? delta_from[query] : 0;
  }
  DEVICE void put(const Fetched& fetched, int start) const {
    Pair<OTHERS>::put(fetched, start);
    int i = opaque(thread_id());  // else registers would hold the places of lse and delta
    if (i < OTHERS) {
      lse[i] = fetched.lse;
      delta[i] = fetched.delta;
#if DROPOUT
      hash[i] = begun_row(dropout, first_hashed + start + i);
#endif
    }
  }
};

// dK and dV: rows of the accumulators are keys, columns queries.
// grid: batch * heads * ceil(seq / SIDE), block: THREADS
KERNEL(THREADS, KEYS_BLOCKS) attention_backward_keys(
    const T* dout, const T* qkv, const float* lse, const float* delta, T* dqkv, int heads, int seq, const uint32* key,
    uint32 site, uint32 threshold, float keep_scale) {
  if (M::EDGE == 32 && HEAD_DIM > 64) return;  // the host takes the smaller tile: registers have no room for two sums
  ARRAYS
  ARRAY(T, queries, STAGES * Others::SIZE);
  ARRAY(T, gradients, STAGES * Others::SIZE);
  ARRAY(T, own_keys, own(hold(2, 2)));
  ARRAY(T, own_values, own(hold(2, 2)));
  ARRAY(float, query_lse, STAGES * OTHERS);
  ARRAY(float, query_delta, STAGES * OTHERS);
#if DROPOUT
  ARRAY(uint32, query_hash, STAGES * OTHERS);
#endif
  ARRAYS_END
  Head head(heads, seq);
  int warp = uniform(warp_id()), block_first = head.in_order(), first = block_first + M::EDGE * warp;
  Pair<OTHERS> pair{queries, gradients, head.in_qkv(qkv, QUERY), head.in_out(dout), seq};
#if DROPOUT
  Dropout dropout(key, site, threshold, keep_scale);
  Queries source{pair, query_lse, query_delta, lse + head.scalar(0), delta + head.scalar(0), query_hash, dropout,
                 head.scalar(0)};
#else
  Queries source{pair, query_lse, query_delta, lse + head.scalar(0), delta + head.scalar(0)};
#endif
  Pipeline<OTHERS, prefetch(2, 2), Queries> pipeline(source, block_first, seq);
  Slab<hold(2, 2)> k(head.in_qkv(qkv, KEY), first, seq, warp, own_keys);
  Slab<hold(2, 2)> v(head.in_qkv(qkv, VALUE), first, seq, warp, own_values);
  k.wait();
  v.wait();
  M::Acc dk[CHUNKS] = {}, dv[CHUNKS] = {};
  float exponent = scale() * LOG2E;

  for (int start = block_first; start < seq; start += OTHERS) {
    int stage = pipeline.next(start);
    auto query_slice = source.first_slice(stage), gradient_slice = source.second_slice(stage);
    NO_UNROLL for (int t = 0; t < OTHERS; t += KEYS_STEP) {
      if (start + t + KEYS_STEP - 1 < first_of_strip(first)) continue;
      // Sᵀ = K Qᵀ and dPᵀ = V dOᵀ
      M::Acc p[KEYS_STEP / M::EDGE], dp[KEYS_STEP / M::EDGE];
      query_slice.template multiply_transposed<KEYS_STEP>(p, k, t);
      if (TOGETHER) gradient_slice.template multiply_transposed<KEYS_STEP>(dp, v, t);
      products_done<1>(p);
      if (start + t < first + M::EDGE - 1) mask<true>(p, first, start + t);
      // Pᵀ, and dV += (f Pᵀ / scale) dO
      UNROLL for (int i = 0; i < KEYS_STEP / M::EDGE; i++) {
        UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
          int query = stage * OTHERS + t + M::EDGE * i + M::column(e);
          p[i].v[e] = exp2_fast(p[i].v[e] * exponent - query_lse[query] * LOG2E);
        }
      }
#if DROPOUT
      M::Acc kept[KEYS_STEP / M::EDGE];
      KeysMask<M, KEYS_STEP / M::EDGE> keeps(dropout, query_hash + (stage * OTHERS + t), first);
      UNROLL for (int i = 0; i < KEYS_STEP / M::EDGE; i++) {
        UNROLL for (int e = 0; e < M::ELEMENTS; e++) kept[i].v[e] = keeps.keep(i, e, p[i].v[e]);
      }
      gradient_slice.template add_product<KEYS_STEP>(dv, kept, t);
#else
      gradient_slice.template add_product<KEYS_STEP>(dv, p, t);
#endif
      if (!TOGETHER) gradient_slice.template multiply_transposed<KEYS_STEP>(dp, v, t);
      // dSᵀ = Pᵀ (f dPᵀ - delta), in place of dPᵀ, and dK += dSᵀ Q
      products_done<1>(dp);
      UNROLL for (int i = 0; i < KEYS_STEP / M::EDGE; i++) {
        UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
          int query = stage * OTHERS + t + M::EDGE * i + M::column(e);
#if DROPOUT
          dp[i].v[e] = keeps.scale(i, e, p[i].v[e], dp[i].v[e]);
#endif
          dp[i].v[e] = p[i].v[e] * (dp[i].v[e] - query_delta[query]);
        }
      }
      query_slice.template add_product<KEYS_STEP>(dk, dp, t);
      products_done(dv);
      products_done(dk);
    }
  }

  scale_all<M>(dk, scale());
  if (DROPOUT) scale_all<M>(dv, keep_scale);
  store<Others>(dk, head.in_qkv(dqkv, KEY), first, seq, k.own);
  store<Others>(dv, head.in_qkv(dqkv, VALUE), first, seq, v.own);
}
