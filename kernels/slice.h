// Strips of rows times slices of shared memory, made of the tiles of tile.h or, on Hopper, of that GPU's own
// instruction for four warps (wgmma). attention.hip is written in these.
#include "tile.h"

namespace gpt {

#if defined(ON_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

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

#if HOPPER
// d += a b (PTX ISA, "wgmma.mma_async"), N columns of b and d, 8 registers of d for each 16 of them. `b` is a
// descriptor of b's place. d is overwritten if `add` is 0. TRANSPOSED: b's columns are contiguous in memory, not its
// rows.
#define D8(t)                                                                                            \
  "+f"(d[t].v[0]), "+f"(d[t].v[1]), "+f"(d[t].v[2]), "+f"(d[t].v[3]), "+f"(d[t].v[4]), "+f"(d[t].v[5]), \
      "+f"(d[t].v[6]), "+f"(d[t].v[7])
#define R16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R32 R16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R64 R32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA(n, registers, a0, a1, a2, a3, b_, add_, transposed_)                                             \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " add_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" \
  registers "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_ ", p, 1, 1, " transposed_ ";\n}"
#define OPERANDS "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "l"(b), "r"(add), "n"(TRANSPOSED)
template <int N, int TRANSPOSED> DEVICE void wgmma(Tile<bf16>::Acc* d, Tile<bf16>::A a, uint64 b, int add) {
  static_assert(N == 16 || N == 32 || N == 64, "the forms that stand here");
  if constexpr (N == 16) {
    asm volatile(WGMMA("16", R16, "%8", "%9", "%10", "%11", "%12", "%13", "%14") : D8(0) : OPERANDS : "memory");
  } else if constexpr (N == 32) {
    asm volatile(WGMMA("32", R32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
                 : D8(0), D8(1) : OPERANDS : "memory");
  } else {
    asm volatile(WGMMA("64", R64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
                 : D8(0), D8(1), D8(2), D8(3) : OPERANDS : "memory");
  }
}
#endif

// Waits for all products that were begun; then the sums `acc` may be used.
//
// The left operand of a product must not live in registers from one round of a loop to the next: ptxas 12.9 and 13.0
// give such registers away (seen with heads of 64).
template <class Acc, int N> DEVICE void products_done(Acc (&acc)[N]) {
#if HOPPER
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (auto& v : acc[i].v) asm volatile("" : "+f"(v)::"memory");  // no earlier
  }
#endif
}

// ROWS rows of a matrix in shared memory, as the right operands of a strip's products. A strip is the rows that one
// product takes: a warp's 16 or, if WIDE (on Hopper), the 64 of four neighboring warps, which then must all take part.
// Either way a warp holds 16 of the rows, laid out as Tile says.
template <class Matrix, int ROWS, int COLUMNS> struct Slice {
  typedef Tile<Matrix> M;
  typedef typename M::Element T;
  static constexpr bool WIDE = HOPPER && sizeof(T) == 2 && (COLUMNS == 16 || COLUMNS == 32 || COLUMNS == 64);
  static constexpr int STRIP = WIDE ? 64 : 16, CHUNKS = COLUMNS / 16;
  static constexpr int STRIDE = COLUMNS + Vector<T>::SIZE;  // 16 bytes more, so that rows begin in different banks
  static constexpr int SIZE = ROWS * (WIDE ? COLUMNS : STRIDE), ROW_BYTES = COLUMNS * sizeof(T);
  Shared<T> p;  // SIZE elements

  // Element (r, c): row by row. If WIDE, groups of 16 bytes are swapped within a row, differently every 128 bytes, as
  // Hopper wants them.
  static DEVICE int place(int r, int c) {
    return WIDE ? r * COLUMNS + (c / 8 ^ r * ROW_BYTES / 128 % (COLUMNS / 8)) * 8 + c % 8 : r * STRIDE + c;
  }

  // Begins to copy rows first ... first + ROWS - 1, with zeros for rows from `rows` and columns from `columns` on.
  // THREADS threads copy WIDTH elements (1 or a vector) at a time, eight rows of a column first, because those are in
  // different banks.
  template <int THREADS, int WIDTH> DEVICE void copy(Rows<const T*> from, int first, int rows, int columns) const {
    constexpr int GROUPS = COLUMNS / WIDTH, EIGHT = 8 * GROUPS;
    if constexpr (THREADS % EIGHT == 0) {  // then a thread keeps its column
      constexpr int STEP = THREADS / GROUPS;
      int r = thread_id() / EIGHT * 8 + thread_id() % 8, c = thread_id() / 8 % GROUPS * WIDTH;
      const T* element = from.p + (first + r) * from.stride + c;
      UNROLL for (int k = 0; k < ROWS; k += STEP) {
        if (ROWS % STEP && r + k >= ROWS) break;
        bool inside = first + r + k < rows && c < columns;
        copy_group<WIDTH>(place(r, c) + k * (WIDE ? COLUMNS : STRIDE), element + k * from.stride, inside);
      }
    } else {
      for (int i = thread_id(); i < ROWS * GROUPS; i += THREADS) {
        int r = i / EIGHT * 8 + i % 8, c = i / 8 % GROUPS * WIDTH;
        copy_group<WIDTH>(place(r, c), from.p + (first + r) * from.stride + c, first + r < rows && c < columns);
      }
    }
  }
  template <int WIDTH> DEVICE void copy_group(int to, const T* from, bool inside) const {
    if constexpr (WIDTH > 1) copy_vector(p + to, from, inside);
    else p[to] = inside ? *from : T{};
  }

  // The same in two halves, if copies are not asynchronous: `fetch` reads a thread's vectors into registers, and `put`
  // writes them to the slice. In between the thread does other work.
  template <int THREADS> struct Fetched {
    static constexpr int GROUPS = COLUMNS / Vector<T>::SIZE, COUNT = (ROWS * GROUPS + THREADS - 1) / THREADS;
    Vector<T> v[COUNT];
  };
  template <int THREADS>
  DEVICE static void fetch(Fetched<THREADS>& fetched, Rows<const T*> from, int first, int rows, int columns) {
    UNROLL for (int k = 0; k < Fetched<THREADS>::COUNT; k++) {
      int r = row_of<THREADS>(k), c = column_of<THREADS>(k);
      fetched.v[k] = {};
      if (first + r < rows && c < columns) fetched.v[k] = *(const Vector<T>*)(from.p + (first + r) * from.stride + c);
    }
  }
  template <int THREADS> DEVICE void put(const Fetched<THREADS>& fetched) const {
    UNROLL for (int k = 0; k < Fetched<THREADS>::COUNT; k++) {
      int r = row_of<THREADS>(k), c = column_of<THREADS>(k);
      if (ROWS * Fetched<THREADS>::GROUPS % THREADS == 0 || r < ROWS) p.set_vector(place(r, c), fetched.v[k]);
    }
  }
  // The place of a thread's vector number k, in the order of `copy`
  template <int THREADS> DEVICE static int row_of(int k) {
    constexpr int GROUPS = Fetched<THREADS>::GROUPS, EIGHT = 8 * GROUPS;
    if constexpr (THREADS % EIGHT == 0) return thread_id() / EIGHT * 8 + thread_id() % 8 + k * (THREADS / GROUPS);
    else return (thread_id() + k * THREADS) / EIGHT * 8 + thread_id() % 8;
  }
  template <int THREADS> DEVICE static int column_of(int k) {
    constexpr int GROUPS = Fetched<THREADS>::GROUPS;
    int i = THREADS % (8 * GROUPS) == 0 ? thread_id() : thread_id() + k * THREADS;
    return i / 8 % GROUPS * Vector<T>::SIZE;
  }

#if HOPPER
  // Rows first ... first + 15 and their columns from 16 chunk on, as a left operand
  DEVICE typename M::A rows(int first, int chunk) const {
    typename M::A a;
    M::ldmatrix(a.w, p + place(first + lane_low(), 16 * chunk + 8 * lane_high()));
    return a;
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
  DEVICE void multiply_transposed(typename M::Acc (&acc)[N / 16], const Strip& a, int first) const {
#if HOPPER
    if constexpr (WIDE) {
      typename M::A left[CHUNKS];
      UNROLL for (int i = 0; i < CHUNKS; i++) left[i] = a[i];
      begin();
      UNROLL for (int i = 0; i < CHUNKS; i++) wgmma<N, 0>(acc, left[i], describe(first, 16 * i), i > 0);
      commit();
      return;
    }
#endif
    UNROLL for (int t = 0; t < N / 16; t++) {
      acc[t] = {};
      UNROLL for (int i = 0; i < CHUNKS; i++) {
        M::multiply_add(acc[t], a[i], M::load_b_transposed(p + ((first + 16 * t) * STRIDE + 16 * i), STRIDE));
        in_order(acc[t]);
      }
    }
  }

  // Begins acc += A B: A is the strip in `left`, the sums of an earlier product, B the N rows from `first` on.
  template <int N>
  DEVICE void add_product(typename M::Acc (&acc)[CHUNKS], const typename M::Acc (&left)[N / 16], int first) const {
#if HOPPER
    if constexpr (WIDE) {
      typename M::A a[N / 16];
      UNROLL for (int t = 0; t < N / 16; t++) a[t] = M::to_a(left[t]);
      begin();
      UNROLL for (int t = 0; t < N / 16; t++) wgmma<COLUMNS, 1>(acc, a[t], describe(first + 16 * t, 0), 1);
      commit();
      return;
    }
#endif
    UNROLL for (int t = 0; t < N / 16; t++) {
      typename M::A a = M::to_a(left[t]);
      UNROLL for (int i = 0; i < CHUNKS; i++) {
        M::multiply_add(acc[i], a, M::load_b(p + ((first + 16 * t) * STRIDE + 16 * i), STRIDE));
        in_order(acc[i]);
      }
    }
  }

 private:
  // Keeps one product after the other, so that few operands are in registers at a time. CDNA has registers enough, and
  // its compiler uses them to read operands early.
  static DEVICE void in_order(typename M::Acc& sum) {
    if constexpr (LAYOUT != LAYOUT_MFMA || sizeof(T) > 2) pin(sum.v);
  }

#if HOPPER
  // The operand whose first element is at row r and column c; PTX ISA, "matrix descriptor".
  DEVICE uint64 describe(int r, int c) const {
    constexpr uint64 SWIZZLE = ROW_BYTES == 128 ? 1 : ROW_BYTES == 64 ? 2 : 3;
    uint32 address = (uint32)__cvta_generic_to_shared(p.p) + r * ROW_BYTES + c * (int)sizeof(T);
    return SWIZZLE << 62 | (uint64)(8 * ROW_BYTES >> 4) << 32 | (1u << 16 | address >> 4);
  }
  static DEVICE void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  static DEVICE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
#endif
};

}  // namespace gpt

using namespace gpt;
