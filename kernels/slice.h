// Strips of rows times slices of shared memory, made of the tiles of tile.h or of Hopper's instruction for four warps
// (wgmma.h). attention.hip is written in these.
#include "wgmma.h"

namespace gpt {

// Bytes of a lane's registers that a warp's own rows and its sums may take together. With more, registers would spill.
DEVICE constexpr int held_bytes() {
#if defined(ON_CUDA) || LAYOUT == LAYOUT_MMA
  return 384;
#else
  return WARP == 64 ? 768 : 512;
#endif
}

// Rows of a matrix in global memory: row r begins at p + r * stride.
template <class P> struct Rows {
  P p;
  index_t stride;
};

// ROWS rows of a matrix in shared memory, as the right operands of a strip's products. A strip is the left operand of
// one product: the 16 rows of a warp or, if WIDE (on Hopper), the 64 rows of four neighboring warps. Then all four
// warps must take part. Either way a warp holds 16 of the rows, laid out as Tile says.
//
// `add_product` multiplies by words of two neighboring rows, and `multiply_transposed` by words of two neighboring
// columns. Without PAIRS the words in memory are of two columns, and on AMD `add_product` joins halves of two of them.
// With PAIRS they are of two rows, for `add_product` alone: for example, elements (6, 5) and (7, 5) are neighbors then,
// and a thread joins the words that it puts into the slice, once for all warps.
template <class Matrix, int ROWS, int COLUMNS, bool PAIRS = false> struct Slice {
  typedef Tile<Matrix> M;
  typedef typename M::Element T;
  static constexpr bool WIDE = HOPPER && sizeof(T) == 2;
  static constexpr int EDGE = M::EDGE, STRIP = WIDE ? 64 : EDGE, CHUNKS = COLUMNS / EDGE;
  static constexpr bool FLOATS = LAYOUT == LAYOUT_MMA && sizeof(T) == 4;  // tf32 or tf32x3
  static constexpr bool GROUPED = FLOATS || (LAYOUT > LAYOUT_MMA && sizeof(T) == 2);  // a lane's B has several rows
  // Elements from a row to the next, or with PAIRS from a pair to the next: 16 bytes more, so that they begin in
  // different banks
  static constexpr int STRIDE = (PAIRS ? 2 * COLUMNS : COLUMNS) + Vector<T>::SIZE;
  static constexpr int SIZE = (PAIRS ? ROWS / 2 : ROWS) * (WIDE ? COLUMNS : STRIDE);
  static_assert(!PAIRS || (GROUPED && !FLOATS), "only there a lane needs elements of two rows as a word");
  Shared<T> p;  // SIZE elements

  // If WIDE, a slice is divided into panels: as many as possible of 64 columns, then at most one of 32 and one of 16.
  // The panels lie one after the other, and each is stored row by row. For example, 112 columns are panels of 64, 32
  // and 16 columns, which begin at columns 0, 64 and 96. `panel` returns the first column of the panel that contains
  // column c, and `panel_width` returns the width of the panel that begins at column `first`.
  static DEVICE constexpr int panel(int c) {
    int first = c / 64 * 64;
    return COLUMNS - first == 48 && c - first >= 32 ? first + 32 : first;
  }
  static DEVICE constexpr int panel_width(int first) {
    return COLUMNS - first >= 64 ? 64 : COLUMNS - first >= 32 ? 32 : 16;
  }
  static_assert(!WIDE || ROWS * COLUMNS * sizeof(T) % 1024 == 0, "Hopper wants each slice to begin at a whole KiB");

  // The place of element (r, c): row by row. In a panel, groups of 16 bytes are swapped within a row, differently every
  // 128 bytes, as Hopper wants them.
  static DEVICE int place(int r, int c) {
    if (PAIRS) return r / 2 * STRIDE + 2 * c + r % 2;
    if (!WIDE) return r * STRIDE + c;
    int first = panel(c), width = panel_width(first);
    return ROWS * first + r * width + ((c - first) / 8 ^ (r * width / 64 & (width / 8 - 1))) * 8 + c % 8;
  }

  // Begins to copy rows first ... first + ROWS - 1. Rows from `rows` on and columns from `columns` on become zeros.
  // Each of THREADS threads copies WIDTH elements (1 or a vector) at a time. Neighboring threads take eight rows of a
  // column or, BY_PANELS, neighbors in a row, because these lie in different banks. Panels are copied one after the
  // other: this call copies the one that begins at column FROM, and calls itself for the next.
  template <int THREADS, int WIDTH, int FROM = 0>
  DEVICE void copy(Rows<const T*> from, int first, int rows, int columns) const {
    constexpr bool BY_PANELS = WIDE || FLOATS;
    constexpr int BREADTH = BY_PANELS ? panel_width(FROM) : COLUMNS, GROUPS = BREADTH / WIDTH, RUN = BY_PANELS ? 1 : 8;
    if constexpr (THREADS % (RUN * GROUPS) == 0) {  // then a thread keeps its column, and its place among eight rows
      constexpr int STEP = THREADS / GROUPS;
      int r = thread_id() / (RUN * GROUPS) * RUN + thread_id() % RUN, c = FROM + thread_id() / RUN % GROUPS * WIDTH;
      const T* element = from.p + (first + r) * from.stride + c;
      UNROLL for (int k = 0; k < ROWS; k += STEP) {
        if (ROWS % STEP && r + k >= ROWS) break;
        bool inside = first + r + k < rows && c < columns;
        int to = place(r, c) + k * (WIDE ? BREADTH : PAIRS ? STRIDE / 2 : STRIDE);
        copy_group<WIDTH>(to, element + k * from.stride, inside);
      }
    } else {
      for (int i = thread_id(); i < ROWS * GROUPS; i += THREADS) {
        int r = i / (RUN * GROUPS) * RUN + i % RUN, c = FROM + i / RUN % GROUPS * WIDTH;
        copy_group<WIDTH>(place(r, c), from.p + (first + r) * from.stride + c, first + r < rows && c < columns);
      }
    }
    if constexpr (FROM + BREADTH < COLUMNS) copy<THREADS, WIDTH, FROM + BREADTH>(from, first, rows, columns);
  }
  template <int WIDTH> DEVICE void copy_group(int to, const T* from, bool inside) const {
    if constexpr (WIDTH > 1) copy_vector(p + to, from, inside);
    else p[to] = inside ? *from : T{};
  }

  // The same in two halves, if copies are not asynchronous: `fetch` reads a thread's vectors into registers, and `put`
  // writes them to the slice. In between the thread does other work. Only the first USED columns are read. `clear` once
  // sets the others to 0. Rows from `rows` on become row `first`, because zeros would cost more instructions. If the slice
  // is WHOLE, there are no such rows.
  //
  // With PAIRS a thread's vectors 2 i and 2 i + 1 are of a pair of rows, and `put` joins their elements.
  template <int THREADS, int USED> struct Fetched {
    static constexpr int GROUPS = (USED + Vector<T>::SIZE - 1) / Vector<T>::SIZE;
    static constexpr int TOGETHER = PAIRS ? 2 : 1, UNITS = ROWS / TOGETHER * GROUPS;
    static constexpr int TURNS = (UNITS + THREADS - 1) / THREADS, COUNT = TOGETHER * TURNS;
    Vector<T> v[COUNT];

    // The place of the thread's vector number k, in the order of `copy`. In the last turn threads may be left over.
    static DEVICE int row(int k) {
      constexpr int EIGHT = 8 * GROUPS;
      int turn = k / TOGETHER, unit_row;
      if constexpr (THREADS % EIGHT == 0) {
        unit_row = thread_id() / EIGHT * 8 + thread_id() % 8 + turn * (THREADS / GROUPS);
      } else {
        unit_row = (thread_id() + turn * THREADS) / EIGHT * 8 + thread_id() % 8;
      }
      return TOGETHER * unit_row + k % TOGETHER;
    }
    // Threads that are left over read the last row, so that they ask for no cache line that others do not need.
    static DEVICE int row_to_read(int k) { return UNITS % THREADS ? minimum(row(k), ROWS - 1) : row(k); }
    static DEVICE int column(int k) {
      int i = THREADS % (8 * GROUPS) == 0 ? thread_id() : thread_id() + k / TOGETHER * THREADS;
      return i / 8 % GROUPS * Vector<T>::SIZE;
    }
  };
  template <bool WHOLE, int THREADS, int USED>
  DEVICE static void fetch(Fetched<THREADS, USED>& fetched, Rows<const T*> from, int first, int rows) {
    typedef Fetched<THREADS, USED> F;
    const char* start = (const char*)(from.p + first * from.stride);  // for all threads; offsets of 32 bits are theirs
    UNROLL for (int k = 0; k < F::COUNT; k++) {
      int r = F::row_to_read(k);
      uint32 column = F::column(k) * sizeof(T), row = r * (uint32)(from.stride * sizeof(T));
      fetched.v[k] = *(const Vector<T>*)(start + (WHOLE || first + r < rows ? row + column : column));
    }
  }

  // The same if registers keep the bytes from a slice's first row to each vector of a thread. If not, compilers compute
  // them again for each slice, in 64 bits, and keep as many numbers for that.
  template <int THREADS, int USED> struct Offsets {
    typedef Fetched<THREADS, USED> F;
    int bytes[F::COUNT];

    DEVICE void begin(Rows<const T*> from) {  // before the first slice
      UNROLL for (int k = 0; k < F::COUNT; k++) {
        bytes[k] = opaque((F::row_to_read(k) * (int)from.stride + F::column(k)) * (int)sizeof(T));
      }
    }
    // Before the last slice, if it has `rows` rows and that is less than ROWS: vectors of others become its first one.
    DEVICE void end(Rows<const T*> from, int rows) {
      UNROLL for (int k = 0; k < F::COUNT; k++) {
        if (bytes[k] >= rows * (int)(from.stride * sizeof(T))) bytes[k] = 0;
      }
    }
  };
  template <int THREADS, int USED>
  DEVICE static void fetch(Fetched<THREADS, USED>& fetched, const Offsets<THREADS, USED>& offsets,
                           Rows<const T*> from, int first) {
    const char* start = (const char*)(from.p + first * from.stride);
    UNROLL for (int k = 0; k < Fetched<THREADS, USED>::COUNT; k++) {
      fetched.v[k] = *(const Vector<T>*)(start + (uint32)offsets.bytes[k]);
    }
  }
  template <int THREADS, int USED> DEVICE void put(const Fetched<THREADS, USED>& fetched) const {
    typedef Fetched<THREADS, USED> F;
    constexpr int HALF = Vector<T>::SIZE / 2;
    UNROLL for (int k = 0; k < F::COUNT; k += F::TOGETHER) {
      int r = F::row(k), c = F::column(k);
      if (F::UNITS % THREADS && r >= ROWS) continue;
      if constexpr (PAIRS) {
        UNROLL for (int half = 0; half < 2; half++) {
          Vector<T> both;
          UNROLL for (int i = 0; i < HALF; i++) {
            both.v[2 * i] = fetched.v[k].v[half * HALF + i];
            both.v[2 * i + 1] = fetched.v[k + 1].v[half * HALF + i];
          }
          p.set_vector(place(r, c + half * HALF), both);
        }
      } else {
        p.set_vector(place(r, c), fetched.v[k]);
      }
    }
  }
  template <int THREADS, int USED> DEVICE void clear() const {
    constexpr int TOGETHER = PAIRS ? 2 : 1, GROUPS = TOGETHER * (COLUMNS - USED) / Vector<T>::SIZE;
    if constexpr (GROUPS > 0) {
      for (int i = thread_id(); i < ROWS / TOGETHER * GROUPS; i += THREADS) {
        p.set_vector(i / GROUPS * STRIDE + TOGETHER * USED + i % GROUPS * Vector<T>::SIZE, {});
      }
    }
  }

#if HOPPER
  // The operand whose first element is at row r, a multiple of 16, and column c
  DEVICE Descriptor describe(int r, int c) const {
    int from = panel(c), row_bytes = panel_width(from) * (int)sizeof(T);
    uint32 swizzle = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
    uint32 offset = (ROWS * from + r * panel_width(from) + c - from) * (int)sizeof(T);
    uint32 address = (uint32)__cvta_generic_to_shared(p.p);
    return {(1u << 16 | address >> 4) + (offset >> 4), swizzle << 30 | 8 * row_bytes >> 4};
  }
  // Replaces rows first ... first + 15 by a warp's sum.
  DEVICE void put_rows(const typename M::Acc (&sum)[CHUNKS], int first) const {
    UNROLL for (int i = 0; i < CHUNKS; i++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e += 2) {
        uint32* word = (uint32*)(p + place(first + M::row(e), 16 * i + M::column(e))).p;
        *word = pack(sum[i].v[e], sum[i].v[e + 1]);
      }
    }
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
  }
  // One warp writes rows first ... first + 15 to the rows of `to` from `to_first` on. Rows from `rows` and columns from
  // `columns` on, a multiple of a vector, are left out.
  DEVICE void write_rows(Rows<T*> to, int first, int to_first, int rows, int columns) const {
    constexpr int WIDTH = Vector<T>::SIZE, GROUPS = COLUMNS / WIDTH;
    UNROLL for (int i = lane_id(); i < 16 * GROUPS; i += WARP) {
      int r = i / GROUPS, c = i % GROUPS * WIDTH;
      if (to_first + r >= rows || c >= columns) continue;
      *(Vector<T>*)(to.p + (to_first + r) * to.stride + c) = p.vector(place(first + r, c));
    }
  }
#endif

  // Begins acc = A Bᵀ: A is the strip whose columns 16 i to 16 i + 15 are a[i], B the N rows from `first` on.
  template <int N, class Strip>
  DEVICE void multiply_transposed(typename M::Acc (&acc)[N / EDGE], const Strip& a, int first) const {
    static_assert(!PAIRS, "words of two columns");
    if constexpr (FLOATS) {  // a comes from shared memory, too: each part of it is read once. Two chunks share Sums.
      UNROLL for (int t = 0; t < N / EDGE; t++) acc[t] = {};
      UNROLL for (int from = 0; from < CHUNKS; from += 2) {
        typename M::Sums sums[N / EDGE];
        UNROLL for (int t = 0; t < N / EDGE; t++) sums[t] = M::begin(acc[t]);
        UNROLL for (int j = 0; j < 2; j++) {
          int i = from + j;
          if (i == CHUNKS) break;
          typename M::A chunk = a[i];
          UNROLL for (int t = 0; t < N / EDGE; t++) {
            auto operand = M::load_b_transposed(p + ((first + EDGE * t) * STRIDE + EDGE * i), STRIDE);
            M::multiply_add(sums[t], chunk, operand);
          }
        }
        UNROLL for (int t = 0; t < N / EDGE; t++) M::end(acc[t], sums[t]);
      }
      return;
    }
#if HOPPER
    if constexpr (WIDE) {
      static_assert(N == 64, "the form that stands in wgmma.h");
      products_begin();
      UNROLL for (int i = 0; i < CHUNKS; i++) wgmma_shared(acc, a.describe(i), describe(first, 16 * i), i > 0);
      products_begun();
      return;
    }
#endif
    UNROLL for (int t = 0; t < N / EDGE; t++) {
      acc[t] = {};
      UNROLL for (int i = 0; i < CHUNKS; i++) {
        M::multiply_add(acc[t], a[i], M::load_b_transposed(p + ((first + EDGE * t) * STRIDE + EDGE * i), STRIDE));
        in_order(acc[t]);
      }
    }
  }

  // Begins acc += A B: A is the strip in `left`, the sums of an earlier product, B the N rows from `first` on.
  template <int N>
  DEVICE void add_product(typename M::Acc (&acc)[CHUNKS], const typename M::Acc (&left)[N / EDGE], int first) const {
#if HOPPER
    if constexpr (WIDE) {
      typename M::A a[N / 16];
      UNROLL for (int t = 0; t < N / 16; t++) a[t] = M::to_a(left[t]);
      products_begin();
      add_panels<N>(acc, a, first);
      products_begun();
      return;
    }
#endif
    UNROLL for (int t = 0; t < N / EDGE; t++) add_groups(acc, M::to_a(left[t]), first + EDGE * t);
  }

  // The column of the product that is column c of tile i of `add_product`'s sums. If a lane needs elements of several
  // rows and they are not PAIRS, tiles are grouped: a lane reads neighboring columns of each row, one for each tile of a
  // group. For example, 7 tiles may be groups of 4, 2 and 1. Columns 0 to 3 are then the first columns of tiles 0 to 3,
  // column 64 is that of tile 4, and column 96 that of tile 6.
  static DEVICE constexpr int sum_column(int i, int c) {
    if (PAIRS) return EDGE * i + c;
    int from = 0;
    while (i >= from + group(from)) from += group(from);
    return EDGE * from + c * group(from) + i - from;
  }
  // The tiles of the group that begins with tile `from`
  static DEVICE constexpr int group(int from) {
    int left = CHUNKS - from;
    return left >= 4 && at_once() == 4 ? 4 : left >= 2 && at_once() >= 2 ? 2 : 1;
  }
  // Operands that registers have room for. RDNA 3 has each value of an operand in two lanes, and so takes half as many,
  // and heads of more than 64 take half as many on RDNA.
  static DEVICE constexpr int at_once() {
    if constexpr (FLOATS) return M::AT_ONCE;
    else if constexpr (!GROUPED) return 1;
    else return LAYOUT == LAYOUT_MFMA ? 4 : (LAYOUT == LAYOUT_WMMA11 ? 2 : 4) / (CHUNKS > 4 ? 2 : 1);
  }

  // If FLOATS: a warp writes `add_product`'s sums, from tile FROM on, to the rows of `to` from `first` on. Rows from
  // `rows` and columns from `columns` on, a multiple of a vector, are left out. A lane writes vectors, because it has
  // neighboring columns of a group.
  template <int FROM = 0>
  static DEVICE void write_sums(const typename M::Acc (&acc)[CHUNKS], Rows<T*> to, int first, int rows, int columns) {
    constexpr int GROUP = group(FROM), RUN = 2 * GROUP, PART = RUN < Vector<T>::SIZE ? RUN : Vector<T>::SIZE;
    UNROLL for (int e = 0; e < M::ELEMENTS; e += 2) {
      int row = first + M::row(e), column = sum_column(FROM, M::column(e));
      UNROLL for (int from = 0; from < RUN; from += PART) {
        Floats<PART> part;
        UNROLL for (int i = 0; i < PART; i++) part.v[i] = acc[FROM + (from + i) % GROUP].v[e + (from + i) / GROUP];
        if (row < rows && column + from < columns) part.store(to.p + row * to.stride + column + from);
      }
    }
    if constexpr (FROM + GROUP < CHUNKS) write_sums<FROM + GROUP>(acc, to, first, rows, columns);
  }

 private:
  // acc += A B, where B are the EDGE rows from `first` on
  template <int FROM = 0>
  DEVICE void add_groups(typename M::Acc (&acc)[CHUNKS], const typename M::A& a, int first) const {
    constexpr int GROUP = group(FROM);
    Shared<T> rows = p + (PAIRS ? first / 2 * STRIDE + 2 * EDGE * FROM : first * STRIDE + EDGE * FROM);
    if constexpr (PAIRS) {
      typename M::B b[GROUP];
      UNROLL for (int i = 0; i < GROUP; i++) {
        b[i] = M::load_b_pairs(rows + 2 * EDGE * i, STRIDE);
        separate_accesses();  // else the compiler joins loads of two operands to one, and then moves their registers
      }
      UNROLL for (int i = 0; i < GROUP; i++) {
        M::multiply_add(acc[FROM + i], a, b[i]);
        in_order(acc[FROM + i]);
      }
    } else if constexpr (GROUP == 1 && !FLOATS) {
      M::multiply_add(acc[FROM], a, M::load_b(rows, STRIDE));
      in_order(acc[FROM]);
    } else {
      typename M::B b[GROUP];
      M::template load_b_group<GROUP>(b, rows, STRIDE);
      UNROLL for (int i = 0; i < GROUP; i++) {
        M::multiply_add(acc[FROM + i], a, b[i]);
        in_order(acc[FROM + i]);
      }
    }
    if constexpr (FROM + GROUP < CHUNKS) add_groups<FROM + GROUP>(acc, a, first);
  }

  // Stops the compiler from reordering products, so that few operands are in registers at a time. CDNA has registers
  // enough, and its compiler uses them to read operands early.
  static DEVICE void in_order(typename M::Acc& sum) {
    if constexpr (LAYOUT != LAYOUT_MFMA || sizeof(T) > 2) pin(sum.v);
  }

#if HOPPER
  template <int N, int FROM = 0>
  DEVICE void add_panels(typename M::Acc (&acc)[CHUNKS], const typename M::A (&a)[N / 16], int first) const {
    constexpr int BREADTH = panel_width(FROM);
    UNROLL for (int t = 0; t < N / 16; t++) wgmma<BREADTH>(acc + FROM / 16, a[t], describe(first + 16 * t, FROM));
    if constexpr (FROM + BREADTH < COLUMNS) add_panels<N, FROM + BREADTH>(acc, a, first);
  }
#endif
};

// The algebra of a strip's sums. A lane has elements of M::SLOTS of its rows.

// The largest of `largest` and the elements of row s, in all lanes
template <class M, int N> DEVICE float row_max(const typename M::Acc (&tiles)[N], int s, float largest) {
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
      if (M::slot(e) == s) largest = maximum(largest, tiles[i].v[e]);
    }
  }
  return M::row_max(largest);
}

// Each row times its factor
template <class M, int N> DEVICE void scale_rows(typename M::Acc (&tiles)[N], const float (&factors)[M::SLOTS]) {
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (int e = 0; e < M::ELEMENTS; e++) tiles[i].v[e] *= factors[M::slot(e)];
  }
}

// All rows times one factor
template <class M, int N> DEVICE void scale_all(typename M::Acc (&tiles)[N], float factor) {
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (int e = 0; e < M::ELEMENTS; e++) tiles[i].v[e] *= factor;
  }
}

#if LAYOUT > LAYOUT_MMA
// 2^(exponent v - shift) in place of each element v of a tile of which a lane has a single row. Adds them to `sums`, those
// of even elements to the first. It takes two elements at a time, because CDNA has instructions for them.
template <class M> DEVICE void exponentials(typename M::Acc& tile, float exponent, float shift, Float2& sums) {
  UNROLL for (int e = 0; e < M::ELEMENTS; e += 2) {
    Float2 v = fma(Float2{tile.v[e], tile.v[e + 1]}, Float2{exponent, exponent}, Float2{-shift, -shift});
    v = Float2{exp2_fast(v[0]), exp2_fast(v[1])};
    tile.v[e] = v[0], tile.v[e + 1] = v[1];
    sums += v;
  }
}

// The softmax of a strip's rows whose elements v come a slice at a time (online softmax), if a lane has elements of a
// single row. Its results do not depend on the number m that is taken from each element, so m need not be the row's
// maximum: exp(v - m) only has to be in float32's range. m follows the maximum when an exponential would be larger than
// 2^8, which is seldom after the first slice. Only then the sums so far shrink. (FlashAttention-4 does so, too.)
template <class M> struct Softmax {
  static constexpr float ROOM = 8;
  float exponent;      // exp(v) = 2^(exponent v), because v is not scaled yet
  float shift, limit;  // shift = exponent m; limit is the largest element that there is room for
  Float2 sums;         // of the row's exponentials in this lane

  DEVICE Softmax(float exponent) : exponent(exponent), shift(-infinity()), limit(-infinity()), sums{} {}
  // Before `exponentials` of these tiles. `products` are the sums of the products with all exponentials so far.
  template <int N, int P> DEVICE void make_room(const typename M::Acc (&tiles)[N], typename M::Acc (&products)[P]) {
    float largest = row_max<M>(tiles, 0, limit);
    if (largest > limit) {
      float factor = exp2_fast(shift - largest * exponent);
      shift = largest * exponent, limit = largest + ROOM * reciprocal(exponent);
      sums *= Float2{factor, factor};
      scale_all<M>(products, factor);
    }
  }
  DEVICE void exponentials(typename M::Acc& tile) { gpt::exponentials<M>(tile, exponent, shift, sums); }
  DEVICE float sum() const { return sums[0] + sums[1]; }
};
#endif

}  // namespace gpt

using namespace gpt;
