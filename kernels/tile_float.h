// The tiles of matrices of float32: tf32 and tf32x3 on the matrix unit of NVIDIA's GPUs, and float by plain
// multiply-adds on every GPU.
#include "tile.h"

namespace gpt {

#if LAYOUT == LAYOUT_MMA
// Float32 in memory, on a matrix unit whose instructions take tf32 and 8 of the 16 k: A's words 0 to 3 and B's words 0,
// 1, 4 and 5 are for the first of them. Accumulators have neighboring columns in a lane, as with bf16, but operands
// columns 4 apart. That permutes k, and it permutes k in the same way for to_a and load_b_group, so their products are
// right; load_a and load_b_transposed keep the order of memory.
struct Tf32Layout : Bf16Layout {
  static constexpr int WORDS = 8;
  static DEVICE int lane_k() { return lane_id() % 4; }
  static DEVICE int a_row(int j) { return lane_row() + 8 * (j % 2); }
  static DEVICE int a_k(int j) { return lane_k() + 4 * (j / 2); }
  static DEVICE int b_column(int j) { return lane_row() + 8 * (j / 4); }
  static DEVICE int b_k(int j) { return lane_k() + 4 * (j % 4); }
};

// N floats that a thread reads from shared memory at once, at a multiple of their size
template <int N> struct alignas(4 * N) Adjacent {
  float v[N];

#if defined(EXECUTOR)
  static Adjacent load(Shared<float> from) {
    Adjacent floats;
    for (int i = 0; i < N; i++) floats.v[i] = from[i];
    return floats;
  }
#else
  static DEVICE Adjacent load(Shared<float> from) { return *(const Adjacent*)from.p; }
#endif
};

// What tf32 and tf32x3 have in common: all but `multiply_add`
struct FloatTile : Tf32Layout {
  typedef float Element;
  static constexpr int AT_ONCE = 4;  // right operands that registers have room for
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
  // The operands of GROUP products: column c of operand t is column GROUP c + t. So a lane reads neighbors in each row.
  template <int GROUP> static DEVICE void load_b_group(B (&b)[GROUP], Shared<float> p, int stride) {
    p = p + (2 * lane_k() * stride + GROUP * lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      auto row = Adjacent<GROUP>::load(p + ((8 * (j / 2 % 2) + j % 2) * stride + GROUP * 8 * (j / 4)));
      UNROLL for (int t = 0; t < GROUP; t++) b[t].v[j] = row.v[t];
    }
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
  // ldmatrix takes the 16 bytes of a row for eight bf16. A lane gets four of the bytes, and they are a float.
  static DEVICE A load_a(Shared<float> p, int stride) {
    A a;
    UNROLL for (int step = 0; step < 2; step++) {
      ldmatrix(a.v + 4 * step, p + (lane_low() * stride + 4 * lane_high() + 8 * step));
    }
    return a;
  }
  static DEVICE B load_b_transposed(Shared<float> p, int stride) {
    B b;
    UNROLL for (int half = 0; half < 2; half++) {
      ldmatrix(b.v + 4 * half, p + ((8 * half + lane_id() % 8) * stride + 4 * (lane_id() / 8)));
    }
    return b;
  }
  static DEVICE void ldmatrix(float* v, Shared<float> row) {
    uint32 w[4];
    Tile<bf16>::ldmatrix(w, Shared<bf16>{(bf16*)row.p});
    UNROLL for (int j = 0; j < 4; j++) v[j] = float_of(w[j]);
  }
  // Adds a b to `first` (the first 8 k) and `last` (the last 8), which may be the same sum. The operands are tf32: the
  // unit ignores the 13 lower bits.
  static DEVICE void multiply_add_tf32(Acc& first, Acc& last, const uint32 (&a)[WORDS], const uint32 (&b)[WORDS]) {
    UNROLL for (int i = 0; i < 4; i++) {
      int half = 4 * (i % 2), step = i / 2;
      Acc& c = step ? last : first;
      asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c.v[half]), "+f"(c.v[half + 1]), "+f"(c.v[half + 2]), "+f"(c.v[half + 3])
          : "r"(a[4 * step]), "r"(a[4 * step + 1]), "r"(a[4 * step + 2]), "r"(a[4 * step + 3]),
            "r"(b[half + 2 * step]), "r"(b[half + 2 * step + 1]));
    }
  }
#else
  static B load_b_transposed(Shared<float> p, int stride) {
    B b;
    for (int j = 0; j < WORDS; j++) b.v[j] = p[b_column(j) * stride + b_k(j)];
    return b;
  }
  static void multiply_add_tf32(Acc& first, Acc& last, const uint32 (&a)[WORDS], const uint32 (&b)[WORDS]) {
    executor::multiply_add_tf32<Tf32Layout>(first.v, last.v, a, b);
  }
#endif
};

template <> struct Tile<tf32> : FloatTile {
  static DEVICE void multiply_add(Acc& c, const A& a, const B& b) {
    uint32 x[WORDS], y[WORDS];
    UNROLL for (int j = 0; j < WORDS; j++) x[j] = rounded(a.v[j]), y[j] = rounded(b.v[j]);
    multiply_add_tf32(c, c, x, y);
  }
  typedef Acc Sums;
  static DEVICE Sums begin(const Acc& c) { return c; }
  static DEVICE void end(Acc& c, const Sums& sums) { c = sums; }
  // x (1 + 2^-11), of which the unit cuts less than 2^-10 of the power of two below it: off by 2^-11 x at most. NVIDIA's
  // own conversion, to nearest, is up to four instructions on Hopper, and these were two thirds of a kernel's.
  static DEVICE uint32 rounded(float v) { return bits_of(v * (1 + 1.0f / 2048)); }
};

// Each number is the sum of two of tf32: `high`, which is rounded to nearest, and the rest. The rest has up to 12 bits,
// of which the unit takes 11. So a number is off by 2^-23 of itself at most, and a product by 2^-21, because the product
// of the two rests is left out, too (Ootomo & Yokota 2022). The unit cuts its sums instead of rounding them, which would
// add up along a row. Therefore the products of one or two tiles are summed from 0, and float32 adds these sums to c.
template <> struct Tile<tf32x3> : FloatTile {
  static DEVICE void multiply_add(Acc& c, const A& a, const B& b) {
    Acc sum = {};
    multiply_add(sum, sum, a, b);
    UNROLL for (int i = 0; i < ELEMENTS; i++) c.v[i] += sum.v[i];
  }
  // Sums of the first 8 k of some products, and of the last 8. On Hopper an instruction waits 24 clocks for the one before
  // it that adds to the same sum.
  struct Sums {
    Acc first, last;
  };
  static DEVICE Sums begin(const Acc&) { return {}; }
  static DEVICE void multiply_add(Sums& sums, const A& a, const B& b) { multiply_add(sums.first, sums.last, a, b); }
  static DEVICE void end(Acc& c, const Sums& sums) {
    UNROLL for (int i = 0; i < ELEMENTS; i++) c.v[i] += sums.first.v[i] + sums.last.v[i];
  }

 private:
  struct Parts {
    uint32 high[WORDS], low[WORDS];

    DEVICE explicit Parts(const float (&v)[WORDS]) {
      UNROLL for (int j = 0; j < WORDS; j++) {
        high[j] = bits_of(v[j]) + 0x1000u;  // a NaN may become a number here, but the rest is NaN then
        low[j] = bits_of(v[j] - float_of(high[j] & 0xffffe000u));
      }
    }
  };
  static DEVICE void multiply_add(Acc& first, Acc& last, const A& a, const B& b) {
    Parts x(a.v), y(b.v);
    multiply_add_tf32(first, last, x.low, y.high);
    multiply_add_tf32(first, last, x.high, y.low);
    multiply_add_tf32(first, last, x.high, y.high);
  }
};
#endif

// In float32 by plain multiply-adds. A lane has its whole row of A, and reads its columns of B straight from shared
// memory. The lanes of half a warp (or a quarter, if it is 64 wide) read the same addresses, which shared memory serves
// at once.
template <> struct Tile<float> {
  typedef float Element;
  static constexpr int EDGE = 16, ELEMENTS = 256 / WARP, SLOTS = 1;
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
  // Elements i ... i + 3. For clang a vector of its own kind is one load. An array is four, until late in the compilation,
  // and then attention takes three times as long to compile.
#if defined(ON_AMD)
  typedef float Float4 __attribute__((ext_vector_type(4)));
  struct Four {
    Float4 v;
  };
  static DEVICE Four four(Shared<float> p, int i) { return *(const Four*)(p.p + i); }
#else
  static DEVICE Vector<float> four(Shared<float> p, int i) { return p.vector(i); }
#endif
  static DEVICE B<false> load_b(Shared<float> p, int stride) { return B<false>{p, stride}; }
  static DEVICE B<true> load_b_transposed(Shared<float> p, int stride) { return B<true>{p, stride}; }

  static DEVICE void multiply_add(Acc& c, const A& a, B<false> b) {
    Shared<float> p = b.p + column(0);
    UNROLL for (int k = 0; k < 16; k++) {
      UNROLL for (int i = 0; i < ELEMENTS; i += 4) {
        auto row = four(p, k * b.stride + i);
        UNROLL for (int e = 0; e < 4; e++) c.v[i + e] += a.v[k] * row.v[e];
      }
      if (k % 4 == 3) pin(c.v);
    }
  }
  static DEVICE void multiply_add(Acc& c, const A& a, B<true> b) {
    Shared<float> p = b.p + column(0) * b.stride;
    UNROLL for (int i = 0; i < ELEMENTS; i++) {
      UNROLL for (int k = 0; k < 16; k += 4) {
        auto part = four(p, i * b.stride + k);
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
    if (lane_high() == 0) sums[0] += sum;  // each lane of the row has the whole sum
  }
  static DEVICE float row_sum(float v) { return sum_16_apart(v); }
  static DEVICE float row_max(float v) { return max_16_apart(v); }
};

}  // namespace gpt

using namespace gpt;
