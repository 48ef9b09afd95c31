// Linear layers of one row x [K] of each sequence on the matrix unit, for writing text in bf16. Such a product takes as
// long as reading its weights, so they go from memory straight into registers, as the operand of the matrix unit that
// they become. matvec.hip is for float32.
//
// The rows of a tile are columns of out, the columns of a tile are sequences. A lane's neighbors along k are then
// neighbors in memory too, because the products take K in an order of their own: both operands take it, so the sums are
// the same. For example, on NVIDIA a lane has 4 values of k in each product. It reads RUN = 8 neighbors, which serve
// STEPS = 2 products; its quarter of the warp has k = 0 to 7 of the CHUNK of 32, the next quarter 8 to 15.
//
// W [K, n]: SLOTS of the sum take the chunks of K in turns, and are added up in their order. A warp has a slot, or a few,
// in turns, if several sequences need its registers. W [n, K]: a warp has all of K.
//
// A sequence's bits do not depend on the number of sequences: its column of a tile is summed by itself, in an order that
// K alone sets. The norm in front has the same rule: a warp makes the mean and the variance of a row. A row that is alone
// is normalized by each block for itself; several are normalized by a launch of `normalize` before.
//
// On CDNA the residual stream, into which linear_add adds, is in parts: float [count, PARTS, columns], whose sum over the
// parts is the stream. PARTS blocks then share the rows of W between them, and each adds to a part of its own: they need
// not wait for each other. A compute unit reads few lines of W, and there are enough blocks for all units. Whoever reads
// the stream next, a norm, adds up the parts in their order.
//
// Traffic: W once for each SEQUENCES rows of x, all else from the cache.
//
// Set by the host: T (bf16), STREAM and PARTS (float and the number of parts; T and 1 if the stream is not in parts), K (a
// multiple of 8), SLOTS (of a block), BIAS (0 | 1), ACTIVATION (gelu | relu | none), SEQUENCES (of a block: 1, 16, 32 or
// 64), THREADS (a warp for each slot, or fewer), ONLY (the kernel that is asked for; the others are left empty, because
// a compiler takes long for each).
#include "tile.h"

constexpr int NORMALIZE = 0, LINEAR_ADD = 1, NORM_LINEAR = 2, NORM_LINEAR_TRANSPOSED = 3;  // for ONLY

typedef Tile<bf16> Product;

constexpr int SIDE = 16;                              // of a tile
constexpr int HALVES = LAYOUT == LAYOUT_MMA ? 2 : 1;  // rows of a tile that a lane has words of, and columns
constexpr int LANE_ROWS = SIDE / HALVES;
constexpr int PAIRS = Product::WORDS / HALVES;  // words of a row, each of two neighboring k
constexpr int RUN = PAIRS < 4 ? 8 : 2 * PAIRS;  // neighboring k that a lane reads
constexpr int STEPS = RUN / (2 * PAIRS), CHUNK = SIDE * STEPS;
constexpr int CHUNKS = (K + CHUNK - 1) / CHUNK;
constexpr int PER = 2;  // neighboring columns of W [K, n] that a lane reads
constexpr int COLUMNS = LANE_ROWS * PER, TILES = PER / HALVES;  // of a block for W [K, n]
constexpr int WARPS = THREADS / WARP, TURNS = SLOTS / WARPS;
constexpr int FILLED = SEQUENCES < SIDE ? SEQUENCES : SIDE;  // columns of a tile that are sequences
constexpr int GROUPS = SEQUENCES / FILLED;                   // tiles side by side
// On AMD the loads of a warp arrive in their order, and a branch ends with a wait for the loads in it. So whatever is
// needed before the weights is asked for before them, without a branch, and chunks after the last one are multiplied by
// zeros.
constexpr bool IN_ORDER = LAYOUT != LAYOUT_MMA;
// From a chunk of a warp to its next one, its chunks, and those of them that are on their way at once. There are at most
// as many as registers have room for.
constexpr bool BY_ROWS = ONLY == NORM_LINEAR_TRANSPOSED;
constexpr int SPLIT = ONLY == LINEAR_ADD ? PARTS : 1;  // blocks that share the rows of W
constexpr int STRIDE = BY_ROWS ? 1 : SLOTS * SPLIT, MINE = (CHUNKS + STRIDE - 1) / STRIDE;
constexpr int MOST_AHEAD = BY_ROWS ? 3 : (THREADS > 512 ? 24 : IN_ORDER && GROUPS > 2 ? 32 : 48) / RUN;
constexpr int ROUNDS = (MINE + MOST_AHEAD - 1) / MOST_AHEAD;
constexpr int AHEAD = IN_ORDER ? (MINE + ROUNDS - 1) / ROUNDS : MINE < MOST_AHEAD ? MINE : MOST_AHEAD;
// Whether all warps have AHEAD whole chunks in each round. Otherwise they must look where a row ends.
constexpr bool WHOLE = K == CHUNK * STRIDE * ROUNDS * AHEAD;
static_assert(K % 8 == 0, "a row is whole vectors");

DEVICE float none(float v) { return v; }

// The same number, which all lanes of a warp must have. AMD's compilers then compute with it once for all lanes.
DEVICE int of_warp(int number) {
#if defined(ON_AMD)
  return __builtin_amdgcn_readfirstlane(number);
#else
  return number;
#endif
}

// The sequences of a block: those from `first` on, but not beyond `count`. The last one stands in for those.
DEVICE int sequence(int s, int count) { return minimum(block_y() * SEQUENCES + s, count - 1); }

// The first k of this lane's run in a chunk
DEVICE int first_k(int chunk) {
  constexpr int LANES_OF_K = SIDE / (2 * PAIRS);  // lanes that divide a chunk
  constexpr int APART = LAYOUT == LAYOUT_MMA ? 2 : 2 * PAIRS;
  return chunk * CHUNK + (LANES_OF_K == 1 ? 0 : Product::lane_k() / APART * RUN);
}

DEVICE Words<4> eight(const T* p) { return *(const Words<4>*)p; }
DEVICE Words<4> eight(Shared<T> p) { return Words<4>::load(p); }

// RUN neighbors of a row [K] in words, from k on, and zeros beyond its end
struct Run {
  uint32 w[RUN / 2];

  template <class P> static DEVICE Run load(P row, int k) {
    Run run = {};
    UNROLL for (int v = 0; v < RUN; v += 8) {
      if (IN_ORDER) {  // without a branch
        uint32 inside = WHOLE ? ~0u : (uint32)((k + v - K) >> 31);
        Words<4> words = eight(row + (WHOLE ? k + v : minimum(k + v, K - 8)));
        UNROLL for (int i = 0; i < 4; i++) run.w[v / 2 + i] = words.w[i] & inside;
      } else {
        if (K % CHUNK && k + v >= K) continue;
        Words<4> words = eight(row + k + v);
        UNROLL for (int i = 0; i < 4; i++) run.w[v / 2 + i] = words.w[i];
      }
    }
    return run;
  }
};

// N neighbors of a row of the stream that is in parts, and their sums in bf16
template <int N> struct InParts {
  Floats<N> parts[PARTS];

  DEVICE void load(const float* row, int k) {
    UNROLL for (int part = 0; part < PARTS; part++) parts[part] = Floats<N>::load(row + part * K + k);
  }
  DEVICE Words<N / 2> sum() const {
    float sums[N];
    UNROLL for (int e = 0; e < N; e++) {
      sums[e] = parts[0].v[e];
      UNROLL for (int part = 1; part < PARTS; part++) sums[e] += parts[part].v[e];
    }
    Words<N / 2> words;
    UNROLL for (int i = 0; i < N / 2; i++) words.w[i] = pack_results(sums[2 * i], sums[2 * i + 1]);
    return words;
  }
};

// A row [K] of the stream, by vectors of eight neighbors: as it lies in memory, or the sum of its parts.
// TOGETHER of them are on their way at once, for which registers have room.
struct WholeRow {
  static constexpr int TOGETHER = 8;
  const T* p;

  DEVICE Vector<T> vector(int i) const { return ((const Vector<T>*)p)[i]; }
  DEVICE Words<4> words(int i) const { return eight(p + 8 * i); }
};
struct SharedRow {
  static constexpr int TOGETHER = 8;
  Shared<T> p;

  DEVICE Vector<T> vector(int i) const { return p.vector(8 * i); }
  DEVICE Words<4> words(int i) const { return eight(p + 8 * i); }
};
struct RowInParts {
  static constexpr int TOGETHER = 4;
  const float* p;

  DEVICE Vector<T> vector(int i) const { return __builtin_bit_cast(Vector<T>, words(i)); }
  DEVICE Words<4> words(int i) const {
    InParts<8> parts;
    parts.load(p, 8 * i);
    return parts.sum();
  }
};
DEVICE WholeRow stream_row(const T* stream, int row) { return {stream + (index_t)row * K}; }
DEVICE RowInParts stream_row(const float* stream, int row) { return {stream + (index_t)row * PARTS * K}; }

// A lane's vectors of a row [K]. Registers hold them on AMD, if they can: each pass over them would wait for memory.
template <class Row> struct Share {
  static constexpr int VECTORS = (K / 8 + WARP - 1) / WARP;
  static constexpr bool HELD = IN_ORDER && VECTORS <= 8;
  Row row;
  Vector<T> held[HELD ? VECTORS : 1];

  DEVICE Share(Row row) : row(row) {
    UNROLL for (int i = 0; HELD && i < VECTORS; i++) {
      if (i > 0 && i % Row::TOGETHER == 0) separate();
      held[i] = row.vector(minimum(i * WARP + lane_id(), K / 8 - 1));
    }
  }

  // The sum of f(v) over all elements of the row
  template <class F> DEVICE float sum_of(F f) const {
    float sum = 0;
    auto add = [&](Vector<T> values) {  // a copy, which is one load
      UNROLL for (int e = 0; e < 8; e++) sum += f(to_float(values.v[e]));
    };
    if constexpr (HELD) {
      UNROLL for (int i = 0; i < VECTORS; i++) {
        if (i * WARP + lane_id() < K / 8) add(held[i]);
      }
    } else {
      for (int vector = lane_id(); vector < K / 8; vector += WARP) add(row.vector(vector));
    }
    return warp_sum(sum);
  }
};

// The mean and the reciprocal of the standard deviation of a row [K], by a warp
struct Statistics {
  float mean, rstd;

  template <class Row> DEVICE Statistics(const Share<Row>& row) {
    mean = row.sum_of([](float v) { return v; }) / K;
    float center = mean;
    rstd = rsqrt_of(row.sum_of([=](float v) { return (v - center) * (v - center); }) / K + NORM_EPS);
  }

  // Eight neighbors of the row, of the norm's weight and of its bias → their norms
  DEVICE Words<4> norms(Words<4> x, Words<4> weight, Words<4> bias) const {
    auto norm = [&](uint32 v, uint32 w, uint32 b) { return (float_of(v) - mean) * rstd * float_of(w) + float_of(b); };
    uint32 high = 0xffff0000u;
    UNROLL for (int i = 0; i < 4; i++) {
      float low = norm(x.w[i] << 16, weight.w[i] << 16, bias.w[i] << 16);
      x.w[i] = pack_results(low, norm(x.w[i] & high, weight.w[i] & high, bias.w[i] & high));
    }
    return x;
  }
};

// Where the factors of W come from: the rows of x as they are, or a row in shared memory.
struct Rows {
  static constexpr bool IN_MEMORY = true;
  const T* x;
  int count;

  DEVICE Rows factors() const { return *this; }
  DEVICE Run load(int s, int k) const { return Run::load(x + (index_t)sequence(s, count) * K, k); }
};
struct NormedRow {
  Shared<T> row;

  DEVICE Run load(int, int k) const { return Run::load(row, k); }
};

// What thread `self` of COUNT threads needs for its part of a row's norm.
template <int COUNT> struct Part {
  static constexpr int VECTORS = (K / 8 + COUNT - 1) / COUNT;
  int self;
  Words<4> values[VECTORS], weights[VECTORS], biases[VECTORS];

  DEVICE Part(int self) : self(self) {}

  DEVICE int vector(int i) const { return minimum(i * COUNT + self, K / 8 - 1); }

  template <class Row> DEVICE void load(Row row, const T* weight, const T* bias) {  // all are on their way at once
    UNROLL for (int i = 0; i < VECTORS; i++) {
      values[i] = row.words(vector(i)), load_norm(i, weight, bias);
    }
  }
  DEVICE void load_norm(int i, const T* weight, const T* bias) {
    weights[i] = eight(weight + 8 * vector(i)), biases[i] = eight(bias + 8 * vector(i));
  }

  template <class Store> DEVICE void norms(const Statistics& statistics, Store store) const {  // store(k, norms)
    UNROLL for (int i = 0; i < VECTORS; i++) {
      int k = 8 * (i * COUNT + self);
      if (k < K) store(k, statistics.norms(values[i], weights[i], biases[i]));
    }
  }
};

// The layer norm of the only row of x, which a block makes: factors() is the row in shared memory.
struct Norming {
  static constexpr bool IN_MEMORY = false;
  WholeRow x;
  const T *weight, *bias;
  Share<WholeRow> share;
  Part<THREADS> part;

  DEVICE Norming(const T* x, const T* weight, const T* bias)
      : x{x}, weight(weight), bias(bias), share(this->x), part(thread_id()) {
    if (IN_ORDER) part.load(this->x, weight, bias);
  }

  DEVICE NormedRow factors() {
    SHARED(T, row, K);
    if (!IN_ORDER) part.load(x, weight, bias);
    Statistics statistics(share);
    part.norms(statistics, [&](int k, Words<4> norms) { norms.store(row + k); });
    sync();
    return NormedRow{row};
  }
};

// The same if the row is in parts. Each thread adds up those of a few elements, and the sums meet in shared memory.
struct NormingParts {
  static constexpr bool IN_MEMORY = false;
  static constexpr int FEW = 4, COUNT = (K / FEW + THREADS - 1) / THREADS;
  InParts<FEW> mine[COUNT];
  Part<THREADS> part;

  DEVICE NormingParts(const float* x, const T* weight, const T* bias) : part(thread_id()) {
    UNROLL for (int i = 0; i < COUNT; i++) mine[i].load(x, minimum(FEW * (i * THREADS + thread_id()), K - FEW));
    UNROLL for (int i = 0; i < part.VECTORS; i++) part.load_norm(i, weight, bias);
  }

  DEVICE NormedRow factors() {
    SHARED(T, sums, K);
    SHARED(T, row, K);
    UNROLL for (int i = 0; i < COUNT; i++) {
      int k = FEW * (i * THREADS + thread_id());
      if (k < K) mine[i].sum().store(sums + k);
    }
    sync();
    SharedRow x{sums};
    UNROLL for (int i = 0; i < part.VECTORS; i++) part.values[i] = x.words(part.vector(i));
    Statistics statistics(Share<SharedRow>{x});
    part.norms(statistics, [&](int k, Words<4> norms) { norms.store(row + k); });
    sync();
    return NormedRow{row};
  }
};

// The source of the factors in kernels with a norm. Several sequences are normalized already, and their type is T.
DEVICE auto normed(const T* x, const T* weight, const T* bias, int count) {
  if constexpr (SEQUENCES > 1) {
    return Rows{x, count};
  } else {
    return Norming(x, weight, bias);
  }
}
DEVICE auto normed(const float* x, const T* weight, const T* bias, int) { return NormingParts(x, weight, bias); }

// The factors of a lane in a chunk, for a group of sequences
struct Runs {
  Run halves[HALVES];

  template <class Factors> static DEVICE Runs load(const Factors& factors, int group, int chunk) {
    Runs runs;
    UNROLL for (int half = 0; half < HALVES; half++) {
      runs.halves[half] = factors.load(group * SIDE + Product::lane_row() + half * LANE_ROWS, first_k(chunk));
    }
    return runs;
  }
};

// Those of AHEAD chunks. On AMD they are on their way from memory together; else each is loaded when it is needed.
template <class Factors> struct Coming {
  static constexpr bool HELD = IN_ORDER && Factors::IN_MEMORY;
  Runs held[HELD ? AHEAD : 1][GROUPS];

  template <class ChunkOf> DEVICE void load(const Factors& factors, ChunkOf chunk) {  // chunk(j): the j-th of them
    if constexpr (HELD) {
      UNROLL for (int j = 0; j < AHEAD; j++) {
        UNROLL for (int group = 0; group < GROUPS; group++) held[j][group] = Runs::load(factors, group, chunk(j));
      }
    }
  }
  template <class Source> DEVICE Runs get(const Source& factors, int j, int group, int chunk) const {
    if constexpr (HELD) return held[j][group];
    else return Runs::load(factors, group, chunk);
  }
};

// sums [TILES_HERE, GROUPS] += the products of a chunk. runs_of(group): the factors; words(tile, half, pair): the word of
// W for that row of the lane and the pair of its run.
template <int TILES_HERE, class RunsOf, class Weights>
DEVICE void add_chunk(Product::Acc (&sums)[TILES_HERE][GROUPS], RunsOf runs_of, Weights words) {
  UNROLL for (int group = 0; group < GROUPS; group++) {
    Runs runs = runs_of(group);
    UNROLL for (int step = 0; step < STEPS; step++) {
      Product::B b;
      UNROLL for (int half = 0; half < HALVES; half++) {
        UNROLL for (int pair = 0; pair < PAIRS; pair++) b.w[half * PAIRS + pair] = runs.halves[half].w[step * PAIRS + pair];
      }
      UNROLL for (int tile = 0; tile < TILES_HERE; tile++) {
        Product::A a;
        UNROLL for (int half = 0; half < HALVES; half++) {
          UNROLL for (int pair = 0; pair < PAIRS; pair++) {
            a.w[pair * HALVES + half] = words(tile, half, step * PAIRS + pair);
          }
        }
        Product::multiply_add(sums[tile][group], a, b);
      }
    }
  }
}

// Products belong to all lanes of a warp. This keeps AMD's compilers from moving them, and what makes their operands, into
// a branch of some lanes, which needs the sums alone.
template <int TILES_HERE> DEVICE void by_all_lanes(Product::Acc (&sums)[TILES_HERE][GROUPS]) {
  UNROLL for (int tile = 0; tile < TILES_HERE; tile++) {
    UNROLL for (int group = 0; group < GROUPS; group++) pin(sums[tile][group].v);
  }
}

// Calls finish(s, column, sum) for each sequence s and column of this block: sum = factors W + added. begin() returns
// what the factors come from; added(s, column) is read early.
template <class Begin, class Added, class Finish>
DEVICE void by_columns(const T* w, int n, int count, Begin begin, Added added, Finish finish) {
  constexpr int OUTPUTS = SIDE * FILLED;  // of a tile
  static_assert(OUTPUTS <= THREADS, "a thread finishes one element of each tile");
  SHARED(float, meeting, 2 * WARPS * OUTPUTS);
  int self = thread_id(), first_column = block_x() / SPLIT * COLUMNS, part = block_x() % SPLIT;
  int lane_column = minimum(first_column + Product::lane_row() * PER, n - PER);
  uint32 words[AHEAD][RUN];
  auto source = begin();
  Coming<decltype(source)> coming;
  auto load_chunks = [&](int slot, int first) {
    auto chunk_of = [&](int j) { return slot * SPLIT + part + (first + j) * STRIDE; };
    coming.load(source, chunk_of);
    UNROLL for (int j = 0; j < AHEAD; j++) {
      int chunk = minimum(chunk_of(j), CHUNKS - 1), k = first_k(IN_ORDER ? 0 : chunk);
      const T* rows = IN_ORDER ? w + (index_t)chunk * CHUNK * n : w + lane_column;
      UNROLL for (int i = 0; i < RUN; i++) {
        if (IN_ORDER) {  // the rows of a chunk begin at an address of the warp
          int row = K % CHUNK ? minimum(k + i, K - 1 - chunk * CHUNK) : k + i;
          words[j][i] = *(const uint32*)((const char*)rows + (uint32)((row * n + lane_column) * sizeof(T)));
        } else {
          int row = K % CHUNK ? minimum(k + i, K - 1) : k + i;
          words[j][i] = *(const uint32*)(rows + (index_t)row * n);
        }
      }
    }
    separate();
  };

  if (!IN_ORDER) load_chunks(warp_id(), 0);

  // What this thread finishes: of each tile the row self % SIDE, in the column self / SIDE.
  int row = self % SIDE, its_column = first_column + row % LANE_ROWS * PER + row / LANE_ROWS;
  auto its_sequence = [&](int group) { return block_y() * SEQUENCES + group * SIDE + self / SIDE; };
  auto finishes = [&](int tile, int group) {
    return self < OUTPUTS && its_sequence(group) < count && its_column + tile * HALVES < n;
  };
  float totals[TILES][GROUPS], last[TILES][GROUPS];
  UNROLL for (int tile = 0; tile < TILES; tile++) {
    UNROLL for (int group = 0; group < GROUPS; group++) {
      totals[tile][group] = last[tile][group] = 0;
      if (IN_ORDER) {
        int column = minimum(its_column + tile * HALVES, n - 1);
        last[tile][group] = added(minimum(its_sequence(group), count - 1), column);
      } else if (finishes(tile, group)) {
        last[tile][group] = added(its_sequence(group), its_column + tile * HALVES);
      }
    }
  }
  if (IN_ORDER) load_chunks(of_warp(warp_id()), 0);

  auto factors = source.factors();
  int place = 0;  // the half of `meeting` that is free
  NO_UNROLL for (int turn = 0; turn < TURNS; turn++) {
    int slot = of_warp(turn * WARPS + warp_id());
    Product::Acc sums[TILES][GROUPS] = {};
    NO_UNROLL for (int first = 0; first < MINE; first += AHEAD) {
      if (turn + first > 0) load_chunks(slot, first);
      UNROLL for (int j = 0; j < AHEAD; j++) {
        int chunk = slot * SPLIT + part + (first + j) * STRIDE;
        if (!IN_ORDER && chunk >= CHUNKS) continue;
        auto runs_of = [&](int group) { return coming.get(factors, j, group, chunk); };
        add_chunk(sums, runs_of, [&](int tile, int half, int pair) {
          uint32 even = words[j][2 * pair], odd = words[j][2 * pair + 1];
          return tile * HALVES + half ? halves<true>(even, odd) : halves<false>(even, odd);
        });
      }
    }
    by_all_lanes(sums);
    // The slots of this turn meet in shared memory, tile by tile, and are added to the totals in their order.
    UNROLL for (int tile = 0; tile < TILES; tile++) {
      UNROLL for (int group = 0; group < GROUPS; group++) {
        const auto& its = meeting + place * WARPS * OUTPUTS;
        UNROLL for (int i = 0; i < Product::ELEMENTS; i++) {
          int column = Product::column(i);
          if (column < FILLED) its[warp_id() * OUTPUTS + column * SIDE + Product::row(i)] = sums[tile][group].v[i];
        }
        sync();
        if (self < OUTPUTS) {
          for (int warp = 0; warp < WARPS; warp++) totals[tile][group] += its[warp * OUTPUTS + self];
        }
        place = 1 - place;
      }
    }
  }
  UNROLL for (int tile = 0; tile < TILES; tile++) {
    UNROLL for (int group = 0; group < GROUPS; group++) {
      float sum = totals[tile][group] + last[tile][group];
      if (finishes(tile, group)) finish(its_sequence(group), its_column + tile * HALVES, sum);
    }
  }
}

// out [count, K] = layernorm(x), x [count, K].
// grid: count, block: WARP
KERNEL(WARP) normalize(const STREAM* x, const T* weight, const T* bias, T* out) {
  if (ONLY != NORMALIZE) return;
  int row = block_x();
  auto its = stream_row(x, row);
  Share<decltype(its)> share(its);
  auto store = [&](int k, Words<4> norms) { *(Words<4>*)(out + (index_t)row * K + k) = norms; };
  if constexpr (share.HELD) {  // all that the row needs arrives together
    Part<WARP> part(lane_id());
    UNROLL for (int i = 0; i < share.VECTORS; i++) {
      part.values[i] = __builtin_bit_cast(Words<4>, share.held[i]), part.load_norm(i, weight, bias);
    }
    separate_accesses();
    part.norms(Statistics(share), store);
  } else {
    Statistics statistics(share);
    for (int k = 8 * lane_id(); k < K; k += 8 * WARP) {
      store(k, statistics.norms(its.words(k / 8), eight(weight + k), eight(bias + k)));
    }
  }
}

// out += x W + bias, x [count, K]; out is [count, n] or, in parts, [count, PARTS, n]. The first part gets the bias.
// grid: PARTS * ceil(n / COLUMNS) x ceil(count / SEQUENCES), block: THREADS
KERNEL(THREADS) linear_add(const T* x, const T* w, const T* bias, STREAM* out, int n, int count) {
  if (ONLY != LINEAR_ADD) return;
  int part = block_x() % SPLIT;
  auto place = [&](int s, int column) { return ((index_t)s * SPLIT + part) * n + column; };
  auto added = [&](int s, int column) {
    float its_bias = to_float(bias[column]);
    return to_float(out[place(s, column)]) + (SPLIT == 1 ? its_bias : its_bias * (part == 0));
  };
  auto finish = [&](int s, int column, float sum) { out[place(s, column)] = from_float<STREAM>(sum); };
  by_columns(w, n, count, [&] { return Rows{x, count}; }, added, finish);
}

// out [count, n] = activation(layernorm(x) W + bias), x [count, K].
// grid: ceil(n / COLUMNS) x ceil(count / SEQUENCES), block: THREADS
KERNEL(THREADS) norm_linear(const STREAM* x, const T* norm_weight, const T* norm_bias, const T* w, const T* bias, T* out,
                            int n, int count) {
  if (ONLY != NORM_LINEAR) return;
  auto added = [&](int, int column) { return BIAS ? to_float(bias[column]) : 0; };
  auto finish = [&](int s, int column, float sum) { out[(index_t)s * n + column] = from_float<T>(ACTIVATION(sum)); };
  auto begin = [&] { return normed(x, norm_weight, norm_bias, count); };
  by_columns(w, n, count, begin, added, finish);
}

// The same for W [n, K]: out [count, n] = activation(layernorm(x) Wᵀ + bias).
// grid: ceil(n / (SIDE * WARPS)) x ceil(count / SEQUENCES), block: THREADS
KERNEL(THREADS) norm_linear_transposed(const STREAM* x, const T* norm_weight, const T* norm_bias, const T* w,
                                       const T* bias, T* out, int n, int count) {
  if (ONLY != NORM_LINEAR_TRANSPOSED) return;
  int first_column = (block_x() * WARPS + warp_id()) * SIDE;
  Run weights[AHEAD][HALVES];
  auto source = normed(x, norm_weight, norm_bias, count);
  Coming<decltype(source)> coming;
  auto load_chunks = [&](int first) {
    coming.load(source, [&](int j) { return first + j; });
    UNROLL for (int j = 0; j < AHEAD; j++) {
      int chunk = minimum(first + j, CHUNKS - 1);
      UNROLL for (int half = 0; half < HALVES; half++) {
        int column = minimum(first_column + Product::lane_row() + half * LANE_ROWS, n - 1);
        weights[j][half] = Run::load(w + (index_t)column * K, first_k(chunk));
      }
    }
    separate();
  };
  load_chunks(0);
  auto factors = source.factors();
  Product::Acc sums[1][GROUPS] = {};
  NO_UNROLL for (int first = 0; first < CHUNKS; first += AHEAD) {
    if (first > 0) load_chunks(first);
    UNROLL for (int j = 0; j < AHEAD; j++) {
      if (!IN_ORDER && first + j >= CHUNKS) continue;
      auto runs_of = [&](int group) { return coming.get(factors, j, group, first + j); };
      add_chunk(sums, runs_of, [&](int, int half, int pair) { return weights[j][half].w[pair]; });
    }
  }
  by_all_lanes(sums);
  UNROLL for (int group = 0; group < GROUPS; group++) {
    UNROLL for (int i = 0; i < Product::ELEMENTS; i++) {
      int its_column = Product::column(i), column = first_column + Product::row(i);
      int s = block_y() * SEQUENCES + group * SIDE + its_column;
      if (its_column >= FILLED || s >= count || column >= n) continue;
      float sum = sums[0][group].v[i] + (BIAS ? to_float(bias[column]) : 0);
      out[(index_t)s * n + column] = from_float<T>(ACTIVATION(sum));
    }
  }
}
