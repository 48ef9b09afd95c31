// Matrix products on the matrix unit, whosever it is: a warp's 16 x 16 x 16 tile, and strips of rows times slices of
// shared memory, which are made of tiles or, on Hopper, of that GPU's own instruction for four warps.
#include "common.h"

namespace gpt {

// ---- the tile -------------------------------------------------------------------------------------------------------

// Tile<T> is a product of 16 x 16 matrices by one warp, accumulated in float32: C += A B, for T bf16 (on the matrix
// unit), tf32 (on NVIDIA's, and only what attention takes) or float (everywhere). Its members:
//   Element                         what matrices are made of in memory
//   A, B, Acc                       a lane's part of each matrix
//   load_a(p, stride)               A(m, k) = p[m * stride + k]; load_a_transposed: A(m, k) = p[k * stride + m]
//   load_b(p, stride)               B(k, n) = p[k * stride + n]; load_b_transposed: B(k, n) = p[n * stride + k]
//   multiply_add(acc, a, b)
//   to_a(acc)                       an accumulator as the next product's A, with no shared memory between
//   ELEMENTS, column(i)             how many elements of an accumulator a lane has, and the column of element i
//   SLOTS, slot(i), slot_row(s)     the rows a lane has a part of, which of them element i is in, and where they are
//   row(i)                          slot_row(slot(i))
//   row_sum(v), row_max(v)          over the lanes that hold parts of one row, for one slot
//   add_dots(sums, a, b)            adds to a sum per slot what this lane has of the dot products of a's and b's rows
// On AMD the instruction gets A and B swapped, so that what a lane accumulates are parts of one row, as in its A.
template <class T> struct Tile;
struct tf32 {};  // float32, of whose mantissas products take 10 bits

DEVICE int lane_low() { return lane_id() % 16; }
DEVICE int lane_high() { return lane_id() / 16; }

#if LAYOUT
// Where a lane's values stand: what depends on the lane, plus constant steps, which addresses can take as offsets. A
// word is two bf16 of neighboring k.
struct Bf16Layout {
#if LAYOUT == LAYOUT_MMA
  static constexpr int WORDS = 4, ELEMENTS = 8, SLOTS = 2;
  static DEVICE int lane_row() { return lane_id() / 4; }
  static DEVICE int lane_k() { return lane_id() % 4 * 2; }
  static DEVICE constexpr int a_row_step(int j) { return 8 * (j % 2); }
  static DEVICE constexpr int a_k_step(int j) { return 8 * (j / 2); }
  static DEVICE constexpr int b_column_step(int j) { return 8 * (j / 2); }
  static DEVICE constexpr int b_k_step(int j) { return 8 * (j % 2); }
  static DEVICE int slot(int i) { return i / 2 % 2; }
  static DEVICE int slot_row(int s) { return lane_row() + 8 * s; }
  static DEVICE int column(int i) { return lane_k() + i % 2 + 8 * (i / 4); }
#else
#if LAYOUT == LAYOUT_MFMA
  static constexpr int WORDS = 2, ELEMENTS = 4, SLOTS = 1;
  static DEVICE int lane_k() { return 4 * lane_high(); }
  static DEVICE int column(int i) { return 4 * lane_high() + i; }
#elif LAYOUT == LAYOUT_WMMA11
  static constexpr int WORDS = 8, ELEMENTS = 8, SLOTS = 1;
  static DEVICE int lane_k() { return 0; }
  static DEVICE int column(int i) { return 2 * i + lane_high(); }
#else
  static constexpr int WORDS = 4, ELEMENTS = 8, SLOTS = 1;
  static DEVICE int lane_k() { return 8 * lane_high(); }
  static DEVICE int column(int i) { return 8 * lane_high() + i; }
#endif
  static DEVICE int lane_row() { return lane_low(); }
  static DEVICE constexpr int a_row_step(int) { return 0; }
  static DEVICE constexpr int a_k_step(int j) { return 2 * j; }
  static DEVICE constexpr int b_column_step(int) { return 0; }
  static DEVICE constexpr int b_k_step(int j) { return 2 * j; }
  static DEVICE int slot(int) { return 0; }
  static DEVICE int slot_row(int) { return lane_row(); }
#endif
  static DEVICE int row(int i) { return slot_row(slot(i)); }
  static DEVICE int a_row(int j) { return lane_row() + a_row_step(j); }
  static DEVICE int a_k(int j) { return lane_k() + a_k_step(j); }
  static DEVICE int b_column(int j) { return lane_row() + b_column_step(j); }
  static DEVICE int b_k(int j) { return lane_k() + b_k_step(j); }

#if LAYOUT == LAYOUT_MMA
  static DEVICE float row_sum(float v) {
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
  }
  static DEVICE float row_max(float v) {
    v = maximum(v, shuffle_xor(v, 1));
    return maximum(v, shuffle_xor(v, 2));
  }
#else
  static DEVICE float row_sum(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v += shuffle_xor(v, mask);
    return v;
  }
  static DEVICE float row_max(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v = maximum(v, shuffle_xor(v, mask));
    return v;
  }
#endif
};

template <> struct Tile<bf16> : Bf16Layout {
  typedef bf16 Element;
  struct A {
    uint32 w[WORDS];
  };
  struct B {
    uint32 w[WORDS];
  };
  struct Acc {
    float v[ELEMENTS];
  };

  template <bool EVEN> static DEVICE A load_a(Window<bf16, EVEN> p, int stride) {
    A a;
    UNROLL for (int j = 0; j < WORDS; j++) a.w[j] = p.word(a_row(j) * stride + a_k(j));
    return a;
  }
#if defined(ON_CUDA)
  // ldmatrix hands lane l's address to matrix l / 8, row l % 8: the four 8 x 8 quarters in the order of the words.
  static DEVICE A load_a(Shared<bf16> p, int stride) {
    A a;
    ldmatrix(a.w, p + (lane_low() * stride + 8 * lane_high()));
    return a;
  }
  static DEVICE A load_a_transposed(Shared<bf16> p, int stride) {
    A a;
    ldmatrix_transposed(a.w, p + ((lane_id() % 8 + 8 * lane_high()) * stride + 8 * (lane_id() / 8 % 2)));
    return a;
  }
  static DEVICE B load_b(Shared<bf16> p, int stride) {
    B b;
    ldmatrix_transposed(b.w, p + (lane_low() * stride + 8 * lane_high()));
    return b;
  }
  static DEVICE B load_b_transposed(Shared<bf16> p, int stride) {
    B b;
    ldmatrix(b.w, p + ((lane_id() % 8 + 8 * lane_high()) * stride + 8 * (lane_id() / 8 % 2)));
    return b;
  }
  static DEVICE void ldmatrix(uint32* w, Shared<bf16> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"((uint32)__cvta_generic_to_shared(row.p)) : "memory");
  }
  static DEVICE void ldmatrix_transposed(uint32* w, Shared<bf16> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"((uint32)__cvta_generic_to_shared(row.p)) : "memory");
  }
  static DEVICE void multiply_add(Acc& c, A a, B b) {
    UNROLL for (int half = 0; half < 2; half++) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c.v[4 * half]), "+f"(c.v[4 * half + 1]), "+f"(c.v[4 * half + 2]), "+f"(c.v[4 * half + 3])
          : "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "r"(b.w[2 * half]), "r"(b.w[2 * half + 1]));
    }
  }
#else
  static DEVICE A load_a(Shared<bf16> p, int stride) {
    A a;
    p = p + (lane_row() * stride + lane_k());
    UNROLL for (int j = 0; j < WORDS; j++) a.w[j] = p.word(a_row_step(j) * stride + a_k_step(j));
    return a;
  }
  static DEVICE A load_a_transposed(Shared<bf16> p, int stride) {
    A a;
    p = p + (lane_k() * stride + lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      int at = a_k_step(j) * stride + a_row_step(j);
      a.w[j] = pack(p[at], p[at + stride]);
    }
    return a;
  }
  static DEVICE B load_b(Shared<bf16> p, int stride) {
    B b;
    p = p + (lane_k() * stride + lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      int at = b_k_step(j) * stride + b_column_step(j);
      b.w[j] = pack(p[at], p[at + stride]);
    }
    return b;
  }
  static DEVICE B load_b_transposed(Shared<bf16> p, int stride) {
    B b;
    p = p + (lane_row() * stride + lane_k());
    UNROLL for (int j = 0; j < WORDS; j++) b.w[j] = p.word(b_column_step(j) * stride + b_k_step(j));
    return b;
  }
#if defined(EXECUTOR)
  static void multiply_add(Acc& c, A a, B b) { executor::multiply_add<Bf16Layout>(c.v, a.w, b.w); }
#else
  typedef short Words __attribute__((ext_vector_type(2 * WORDS)));
  typedef float Elements __attribute__((ext_vector_type(ELEMENTS)));
  static DEVICE void multiply_add(Acc& c, A a, B b) {
    Words x = __builtin_bit_cast(Words, a), y = __builtin_bit_cast(Words, b);
    Elements z = __builtin_bit_cast(Elements, c);
#if LAYOUT == LAYOUT_MFMA
    z = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(y, x, z, 0, 0, 0);
#elif LAYOUT == LAYOUT_WMMA11
    z = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(y, x, z);
#else
    z = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(y, x, z);
#endif
    c = __builtin_bit_cast(Acc, z);
  }
#endif
#endif

  static DEVICE A to_a(Acc c) {
    A a;
#if LAYOUT == LAYOUT_MMA
    UNROLL for (int j = 0; j < WORDS; j++) {
      int i = 4 * (j / 2) + 2 * (j % 2);
      a.w[j] = pack(c.v[i], c.v[i + 1]);
    }
#elif LAYOUT == LAYOUT_WMMA11  // the other half of the row is in the lane 16 away
    bool upper = lane_high();
    UNROLL for (int j = 0; j < WORDS; j++) {
      float mine = c.v[j], other = shuffle_xor(mine, 16);
      a.w[j] = upper ? pack(other, mine) : pack(mine, other);
    }
#else
    UNROLL for (int j = 0; j < WORDS; j++) a.w[j] = pack(c.v[2 * j], c.v[2 * j + 1]);
#endif
    return a;
  }

  static DEVICE void add_dots(float* sums, A a, A b) {
    UNROLL for (int j = 0; j < WORDS; j++) {
      float low = to_float(bf16{(unsigned short)a.w[j]}) * to_float(bf16{(unsigned short)b.w[j]});
      float high = float_of(a.w[j] & 0xffff0000u) * float_of(b.w[j] & 0xffff0000u);
      bool once = LAYOUT != LAYOUT_WMMA11 || lane_high() == j / 4;  // there two lanes have the whole row each
      if (once) sums[LAYOUT == LAYOUT_MMA ? j % 2 : 0] += low + high;
    }
  }

};
#endif  // LAYOUT

#if LAYOUT == LAYOUT_MMA
// Float32 in memory, rounded to tf32 on the way into the matrix unit, whose instructions take 8 of the 16 k: the first
// operands' in words 0 to 3, or 0, 1, 4 and 5. Sums lie as bf16's do, so a lane has neighboring columns of them where
// as an A it would have columns 4 apart. Nobody minds: to_a leaves k in the order of the sums, which load_b takes too;
// load_a and load_b_transposed keep the order of memory.
struct Tf32Layout : Bf16Layout {
  static constexpr int WORDS = 8;
  static DEVICE int lane_k() { return lane_id() % 4; }
  static DEVICE int a_row(int j) { return lane_row() + 8 * (j % 2); }
  static DEVICE int a_k(int j) { return lane_k() + 4 * (j / 2); }
  static DEVICE int b_column(int j) { return lane_row() + 8 * (j / 4); }
  static DEVICE int b_k(int j) { return lane_k() + 4 * (j % 4); }
};

template <> struct Tile<tf32> : Tf32Layout {
  typedef float Element;
  struct A {
    float v[WORDS];
  };
  struct B {
    float v[WORDS];
  };
  struct Acc {
    float v[ELEMENTS];
  };

  template <class P> static DEVICE A load_a(P p, int stride) {
    A a;
    UNROLL for (int j = 0; j < WORDS; j++) a.v[j] = p[a_row(j) * stride + a_k(j)];
    return a;
  }
  static DEVICE B load_b(Shared<float> p, int stride) {
    B b;
    p = p + (2 * lane_k() * stride + lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) b.v[j] = p[(8 * (j / 2 % 2) + j % 2) * stride + 8 * (j / 4)];
    return b;
  }
  static DEVICE A to_a(const Acc& c) {
    A a;
    UNROLL for (int j = 0; j < WORDS; j++) a.v[j] = c.v[j / 4 * 4 + j % 2 * 2 + j / 2 % 2];
    return a;
  }
  static DEVICE void add_dots(float* sums, const A& a, const A& b) {
    UNROLL for (int j = 0; j < WORDS; j++) sums[j % 2] += a.v[j] * b.v[j];
  }

#if defined(ON_CUDA)
  // To ldmatrix the 16 bytes of a row are eight bf16; a lane gets four bytes of them, which are a float.
  static DEVICE B load_b_transposed(Shared<float> p, int stride) {
    B b;
    UNROLL for (int half = 0; half < 2; half++) {
      uint32 w[4];
      const float* row = (p + ((8 * half + lane_id() % 8) * stride + 4 * (lane_id() / 8))).p;
      Tile<bf16>::ldmatrix(w, Shared<bf16>{(bf16*)row});
      UNROLL for (int j = 0; j < 4; j++) b.v[4 * half + j] = float_of(w[j]);
    }
    return b;
  }
  static DEVICE uint32 rounded(float v) {
    uint32 w;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(w) : "f"(v));
    return w;
  }
  static DEVICE void multiply_add(Acc& c, const A& a, const B& b) {
    uint32 x[WORDS], y[WORDS];
    UNROLL for (int j = 0; j < WORDS; j++) x[j] = rounded(a.v[j]), y[j] = rounded(b.v[j]);
    UNROLL for (int i = 0; i < 4; i++) {
      int half = 4 * (i / 2), step = i % 2;
      asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c.v[half]), "+f"(c.v[half + 1]), "+f"(c.v[half + 2]), "+f"(c.v[half + 3])
          : "r"(x[4 * step]), "r"(x[4 * step + 1]), "r"(x[4 * step + 2]), "r"(x[4 * step + 3]),
            "r"(y[half + 2 * step]), "r"(y[half + 2 * step + 1]));
    }
  }
#else
  static B load_b_transposed(Shared<float> p, int stride) {
    B b;
    for (int j = 0; j < WORDS; j++) b.v[j] = p[b_column(j) * stride + b_k(j)];
    return b;
  }
  static void multiply_add(Acc& c, const A& a, const B& b) { executor::multiply_add_tf32<Tf32Layout>(c.v, a.v, b.v); }
#endif
};
#endif

// In float32 by plain multiply-adds. A lane has all of its row of A, and reads the part of B that it needs from where
// it lies: lanes of one half (or quarter) warp read the same addresses, which shared memory serves at once.
template <> struct Tile<float> {
  typedef float Element;
  static constexpr int ELEMENTS = 256 / WARP, SLOTS = 1;
  struct A {
    float v[16];
  };
  template <bool TRANSPOSED> struct B {
    Shared<float> p;
    int stride;
  };
  struct Acc {
    float v[ELEMENTS];
  };
  static DEVICE int slot(int) { return 0; }
  static DEVICE int slot_row(int) { return lane_low(); }
  static DEVICE int row(int) { return lane_low(); }
  static DEVICE int column(int i) { return ELEMENTS * lane_high() + i; }

  template <class P> static DEVICE A load_a(P p, int stride) {
    A a;
    UNROLL for (int k = 0; k < 16; k++) a.v[k] = p[lane_low() * stride + k];
    return a;
  }
  template <class P> static DEVICE A load_a_transposed(P p, int stride) {
    A a;
    UNROLL for (int k = 0; k < 16; k++) a.v[k] = p[k * stride + lane_low()];
    return a;
  }
  static DEVICE B<false> load_b(Shared<float> p, int stride) { return B<false>{p, stride}; }
  static DEVICE B<true> load_b_transposed(Shared<float> p, int stride) { return B<true>{p, stride}; }

  static DEVICE void multiply_add(Acc& c, const A& a, B<false> b) {
    Shared<float> p = b.p + column(0);
    UNROLL for (int k = 0; k < 16; k++) {
      UNROLL for (int i = 0; i < ELEMENTS; i += 4) {
        Vector<float> row = p.vector(k * b.stride + i);
        UNROLL for (int e = 0; e < 4; e++) c.v[i + e] += a.v[k] * row.v[e];
      }
      if (k % 4 == 3) pin(c.v);
    }
  }
  static DEVICE void multiply_add(Acc& c, const A& a, B<true> b) {
    Shared<float> p = b.p + column(0) * b.stride;
    UNROLL for (int i = 0; i < ELEMENTS; i++) {
      UNROLL for (int k = 0; k < 16; k += 4) {
        Vector<float> part = p.vector(i * b.stride + k);
        UNROLL for (int e = 0; e < 4; e++) c.v[i] += a.v[k + e] * part.v[e];
      }
      if (i % 2 == 1) pin(c.v);
    }
  }
  static DEVICE A to_a(const Acc& c) {
    A a;
    UNROLL for (int k = 0; k < 16; k++) a.v[k] = shuffle(c.v[k % ELEMENTS], lane_low() + 16 * (k / ELEMENTS));
    return a;
  }
  static DEVICE void add_dots(float* sums, const A& a, const A& b) {
    float sum = 0;
    UNROLL for (int k = 0; k < 16; k++) sum += a.v[k] * b.v[k];
    if (lane_high() == 0) sums[0] += sum;  // every lane of the row has all of it
  }
  static DEVICE float row_sum(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v += shuffle_xor(v, mask);
    return v;
  }
  static DEVICE float row_max(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v = maximum(v, shuffle_xor(v, mask));
    return v;
  }
};


// ---- strips and slices ----------------------------------------------------------------------------------------------

#if defined(ON_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// Rows of a matrix in global memory: row r begins at p + r * stride.
template <class P> struct Rows {
  P p;
  index_t stride;
};

#if HOPPER
// d += a b for 16 columns of b after another, 8 registers of d for each; PTX ISA, "wgmma.mma_async". `b` describes
// where b lies; where not `add`, d is overwritten; TRANSPOSED: whether b's columns are what is contiguous.
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
  static_assert(N == 16 || N == 32 || N == 64, "as many columns as there are forms of");
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

// Waits for all products that were begun, after which the sums `acc` may be used.
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

// ROWS rows of a matrix in shared memory, as the right operands of a strip's products. A strip is as many rows as one
// product takes: a warp's 16, or, WIDE, on Hopper the 64 of four neighboring warps, which then all have to be there.
// Either way a warp holds 16 of the rows, in the parts that Tile says.
template <class Matrix, int ROWS, int COLUMNS> struct Slice {
  typedef Tile<Matrix> M;
  typedef typename M::Element T;
  static constexpr bool WIDE = HOPPER && sizeof(T) == 2 && (COLUMNS == 16 || COLUMNS == 32 || COLUMNS == 64);
  static constexpr int STRIP = WIDE ? 64 : 16, CHUNKS = COLUMNS / 16;
  static constexpr int STRIDE = COLUMNS + Vector<T>::SIZE;  // 16 bytes more, so that rows begin in different banks
  static constexpr int SIZE = ROWS * (WIDE ? COLUMNS : STRIDE), ROW_BYTES = COLUMNS * sizeof(T);
  Shared<T> p;  // SIZE elements

  // Row by row; where WIDE the 16 bytes of a row in another order from 128 bytes to 128 bytes, as Hopper wants them
  static DEVICE int place(int r, int c) {
    return WIDE ? r * COLUMNS + (c / 8 ^ r * ROW_BYTES / 128 % (COLUMNS / 8)) * 8 + c % 8 : r * STRIDE + c;
  }

  // Begins to copy rows first ... first + ROWS - 1, with zeros for rows from `rows` and columns from `columns` on, by
  // THREADS threads, WIDTH elements at a time, 1 or a vector: eight rows of a column first, for those are in different
  // banks.
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

#if HOPPER
  // Rows first ... first + 15 as a left operand
  DEVICE typename M::A rows(int first, int chunk) const {
    typename M::A a;
    M::ldmatrix(a.w, p + place(first + lane_low(), 16 * chunk + 8 * lane_high()));
    return a;
  }
  // A warp's sum in place of those rows
  DEVICE void put_rows(const typename M::Acc (&sum)[CHUNKS], int first) const {
    UNROLL for (int i = 0; i < CHUNKS; i++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e += 2) {
        uint32* word = (uint32*)(p + place(first + M::row(e), 16 * i + M::column(e))).p;
        *word = pack(sum[i].v[e], sum[i].v[e + 1]);
      }
    }
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
  }
  // Those rows, by one warp, to rows of `to` from `to_first` on, but for rows from `rows` and columns from `columns`
  // on, which must be whole vectors
  DEVICE void write_rows(Rows<T*> to, int first, int to_first, int rows, int columns) const {
    constexpr int WIDTH = Vector<T>::SIZE, GROUPS = COLUMNS / WIDTH;
    UNROLL for (int i = lane_id(); i < 16 * GROUPS; i += WARP) {
      int r = i / GROUPS, c = i % GROUPS * WIDTH;
      if (to_first + r >= rows || c >= columns) continue;
      *(Vector<T>*)(to.p + (to_first + r) * to.stride + c) = p.vector(place(first + r, c));
    }
  }
#endif

  // Begins acc = the strip whose columns 16 i to 16 i + 15 are a[i], times the transpose of N rows from `first` on.
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
        pin(acc[t].v);
      }
    }
  }

  // Begins acc += the strip in `left`, as sums of other products, times N rows from `first` on.
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
        pin(acc[i].v);
      }
    }
  }

#if HOPPER
 private:
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
