// A product of small square matrices by one warp, on the matrix unit of each GPU: where each lane's values stand, how
// they are loaded, and how they are multiplied. Here are the tiles of bf16; tile_float.h has those of float32. slice.h
// makes larger products of them.
#include "common.h"

namespace gpt {

// ---- the tile -------------------------------------------------------------------------------------------------------

// Tile<T> is a product of square matrices by one warp, accumulated in float32: C += A B. T is bf16 (on every matrix
// unit), wide_bf16 (on CDNA's), tf32 or tf32x3 (on NVIDIA's) or float (everywhere). The matrices are 16 x 16; those of
// wide_bf16 are 32 x 32. wide_bf16, tf32 and tf32x3 have only the members that attention needs. The members are:
//   Element                         the type of the matrices in memory
//   EDGE                            the rows and the columns of each matrix
//   A, B, Acc                       a lane's part of each matrix
//   load_a(p, stride)               A(m, k) = p[m * stride + k]; load_a_transposed: A(m, k) = p[k * stride + m]
//   load_b(p, stride)               B(k, n) = p[k * stride + n]; load_b_transposed: B(k, n) = p[n * stride + k]
//   multiply_add(acc, a, b)
//   begin(acc), multiply_add(sums, a, b), end(acc, sums)  adds a few products (of tf32 and tf32x3, which have Sums)
//   to_a(acc)                       an accumulator as the next product's A, with no shared memory between
//   ELEMENTS, column(i)             the number of an accumulator's elements in a lane, and the column of element i
//   SLOTS, slot(i), slot_row(s)     the number of rows that a lane has elements of, the slot of element i, a slot's row
//   row(i)                          slot_row(slot(i))
//   row_sum(v), row_max(v)          over the lanes that share a row, for one slot
//   add_dots(sums, a, b)            adds this lane's share of the dot products of a's and b's rows to a sum per slot
// For example, on NVIDIA lane 5 has ELEMENTS = 8 elements in SLOTS = 2 rows: rows 1 and 9, and of each the columns 2,
// 3, 10 and 11. On AMD the instruction gets A and B swapped, so that a lane accumulates elements of a single row, as in
// its A.
template <class T> struct Tile;
struct tf32 {};       // float32 in memory; products take 10 bits of its mantissas
struct tf32x3 {};     // float32 in memory; products take almost all bits, by three products of tf32
template <class Matrix> constexpr bool IS_SPLIT = false;  // whether each number is two of tf32
template <> constexpr bool IS_SPLIT<tf32x3> = true;
struct wide_bf16 {};  // bf16 in memory

DEVICE int lane_low() { return lane_id() % 16; }
DEVICE int lane_high() { return lane_id() / 16; }

// Over the lanes whose numbers differ by multiples of 16
DEVICE float sum_16_apart(float v) {
  for (int mask = 16; mask < WARP; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}
DEVICE float max_16_apart(float v) {
  for (int mask = 16; mask < WARP; mask *= 2) v = maximum(v, shuffle_xor(v, mask));
  return v;
}

#if LAYOUT
// The places of a lane's values: a place that depends on the lane, plus constant steps, which become offsets of
// addresses. A word is two bf16 of neighboring k.
struct Bf16Layout {
  static constexpr int EDGE = 16;
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
  static DEVICE float row_sum(float v) { return sum_16_apart(v); }
  static DEVICE float row_max(float v) { return max_16_apart(v); }
#endif
  // The k of a lane's words of B, and their steps, in `load_b` and `to_a`
  static DEVICE int lane_sum_k() { return lane_k(); }
  static DEVICE constexpr int sum_k_step(int j) { return b_k_step(j); }
};

#if LAYOUT == LAYOUT_MFMA
// CDNA's product of 32 x 32 matrices: an operand that a lane reads serves twice as many products as one of 16 x 16. Two
// lanes share a row. Of an accumulator's row, lane 0 has columns 0 to 3, 8 to 11, 16 to 19 and 24 to 27, and lane 32
// has the others. `to_a` and `load_b` take k in this order, `load_a` and `load_b_transposed` take 16 neighbors in each
// lane. Both orders are right, because a product's operands have the same.
struct WideLayout {
  static constexpr int EDGE = 32, WORDS = 8, ELEMENTS = 16, SLOTS = 1;
  static DEVICE int lane_row() { return lane_id() % 32; }
  static DEVICE int lane_half() { return lane_id() / 32; }
  static DEVICE int lane_k() { return 16 * lane_half(); }
  static DEVICE constexpr int b_column_step(int) { return 0; }
  static DEVICE int lane_sum_k() { return 4 * lane_half(); }
  static DEVICE constexpr int sum_k_step(int j) { return 8 * (j / 2) + 2 * (j % 2); }
  static DEVICE int slot(int) { return 0; }
  static DEVICE int slot_row(int) { return lane_row(); }
  static DEVICE int row(int) { return lane_row(); }
  static DEVICE int column(int i) { return 4 * lane_half() + 8 * (i / 4) + i % 4; }
  static DEVICE int a_row(int) { return lane_row(); }
  static DEVICE int a_k(int j) { return lane_k() + 2 * j; }
  static DEVICE int b_column(int) { return lane_row(); }
  static DEVICE int b_k(int j) { return lane_k() + 2 * j; }
  static DEVICE float row_sum(float v) { return v + shuffle_xor(v, 32); }
  static DEVICE float row_max(float v) { return maximum(v, shuffle_xor(v, 32)); }
};
#endif

// N words of two bf16 each, which a thread reads or writes in shared memory at once, at a multiple of their size
template <int N> struct alignas(4 * N) Words {
  uint32 w[N];

#if defined(EXECUTOR)
  static Words load(Shared<bf16> from) {
    Words words;
    for (int i = 0; i < N; i++) words.w[i] = from.word(2 * i);
    return words;
  }
  void store(Shared<bf16> to) const {
    for (int i = 0; i < 2 * N; i++) to[i] = bf16{(unsigned short)(w[i / 2] >> 16 * (i % 2))};
  }
#else
  static DEVICE Words load(Shared<bf16> from) { return *(const Words*)from.p; }
  DEVICE void store(Shared<bf16> to) const { *(Words*)to.p = *this; }
#endif
};

// The low or the high halves of two words as one word, the first word's in its low half
template <bool HIGH> DEVICE uint32 halves(uint32 first, uint32 second) {
#if defined(ON_AMD)
  return __builtin_amdgcn_perm(second, first, HIGH ? 0x07060302 : 0x05040100);
#else
  return HIGH ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
#endif
}

template <class Layout> struct Bf16Tile : Layout {
  typedef bf16 Element;
  static constexpr int EDGE = Layout::EDGE, WORDS = Layout::WORDS, ELEMENTS = Layout::ELEMENTS;
  using Layout::a_k, Layout::a_row, Layout::b_column_step, Layout::lane_k, Layout::lane_row, Layout::lane_sum_k;
  using Layout::sum_k_step;
  struct A {
    uint32 w[WORDS];
  };
  struct B {
    uint32 w[WORDS];
  };
  struct Acc {
    float v[ELEMENTS];
  };

  template <bool EVEN> static DEVICE A load_a(Window<bf16, EVEN, EDGE> p, int stride) {
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
#if LAYOUT == LAYOUT_MMA
    UNROLL for (int j = 0; j < WORDS; j++) a.w[j] = p.word(Layout::a_row_step(j) * stride + Layout::a_k_step(j));
#else
    read_neighbors(a.w, p);
#endif
    return a;
  }
  static DEVICE A load_a_transposed(Shared<bf16> p, int stride) {
    A a;
    p = p + (lane_k() * stride + lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      int at = Layout::a_k_step(j) * stride + Layout::a_row_step(j);
      a.w[j] = pack(p[at], p[at + stride]);
    }
    return a;
  }
  static DEVICE B load_b(Shared<bf16> p, int stride) {
    B b;
    p = p + (lane_sum_k() * stride + lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      int at = sum_k_step(j) * stride + b_column_step(j);
      b.w[j] = pack(p[at], p[at + stride]);
    }
    return b;
  }
  static DEVICE void read_neighbors(uint32 (&w)[WORDS], Shared<bf16> p) {
    constexpr int AT_ONCE = WORDS < 4 ? WORDS : 4;  // 16 bytes at most
    UNROLL for (int j = 0; j < WORDS; j += AT_ONCE) {
      auto words = Words<AT_ONCE>::load(p + 2 * j);
      UNROLL for (int i = 0; i < AT_ONCE; i++) w[j + i] = words.w[i];
    }
  }
  // B(k, n) of words of two rows: rows 2 i and 2 i + 1 of column n are a word at p[i * stride + 2 n].
  static DEVICE B load_b_pairs(Shared<bf16> p, int stride) {
    B b;
    p = p + (lane_sum_k() / 2 * stride + 2 * lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) b.w[j] = p.word(sum_k_step(j) / 2 * stride);
    return b;
  }
  // The operands of GROUP products: column c of operand t is column GROUP c + t. So a lane reads neighbors in each row.
  template <int GROUP> static DEVICE void load_b_group(B (&b)[GROUP], Shared<bf16> p, int stride) {
    p = p + (lane_sum_k() * stride + GROUP * lane_row());
    UNROLL for (int j = 0; j < WORDS; j++) {
      auto row = Words<GROUP / 2>::load(p + sum_k_step(j) * stride);
      auto next = Words<GROUP / 2>::load(p + (sum_k_step(j) + 1) * stride);
      UNROLL for (int t = 0; t < GROUP / 2; t++) {
        b[2 * t].w[j] = halves<false>(row.w[t], next.w[t]);
        b[2 * t + 1].w[j] = halves<true>(row.w[t], next.w[t]);
      }
    }
  }
  static DEVICE B load_b_transposed(Shared<bf16> p, int stride) {
    B b;
    p = p + (lane_row() * stride + lane_k());
#if LAYOUT == LAYOUT_MMA
    UNROLL for (int j = 0; j < WORDS; j++) b.w[j] = p.word(b_column_step(j) * stride + Layout::b_k_step(j));
#else
    read_neighbors(b.w, p);
#endif
    return b;
  }
#if defined(EXECUTOR)
  static void multiply_add(Acc& c, A a, B b) { executor::multiply_add<Layout>(c.v, a.w, b.w); }
#else
  typedef float Elements __attribute__((ext_vector_type(ELEMENTS)));
  static DEVICE void multiply_add(Acc& c, A a, B b) {
    Elements z = __builtin_bit_cast(Elements, c);
    UNROLL for (int j = 0; j < WORDS; j += AT_ONCE) {
      auto x = part(a.w + j), y = part(b.w + j);
#if defined(__gfx950__)
      typedef __bf16 Eight __attribute__((ext_vector_type(8)));
      if constexpr (EDGE == 32) {
        z = __builtin_amdgcn_mfma_f32_32x32x16_bf16(
            __builtin_bit_cast(Eight, y), __builtin_bit_cast(Eight, x), z, 0, 0, 0);
      } else z = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(y, x, z, 0, 0, 0);
#elif LAYOUT == LAYOUT_MFMA
      if constexpr (EDGE == 32) z = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(y, x, z, 0, 0, 0);
      else z = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(y, x, z, 0, 0, 0);
#elif LAYOUT == LAYOUT_WMMA11
      z = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(y, x, z);
#else
      z = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(y, x, z);
#endif
    }
    c = __builtin_bit_cast(Acc, z);
  }

  // The words that an instruction takes. CDNA 4 (gfx950) has one for twice as many, at twice the rate.
#if defined(__gfx950__)
  static constexpr int AT_ONCE = EDGE == 32 ? 4 : 2;
#else
  static constexpr int AT_ONCE = LAYOUT == LAYOUT_MFMA ? 2 : WORDS;
#endif
  typedef short Part __attribute__((ext_vector_type(2 * AT_ONCE)));
  static DEVICE Part part(const uint32* w) {
    Words<AT_ONCE> words;
    UNROLL for (int i = 0; i < AT_ONCE; i++) words.w[i] = w[i];
    return __builtin_bit_cast(Part, words);
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
#elif LAYOUT == LAYOUT_WMMA11  // a row's other half is in the lane 16 away
    // The lanes of a pair have the even and the odd columns: 2 j and 2 j + 2, or 2 j + 1 and 2 j + 3.
    uint32 lower_halves = lane_high() ? 0x01000504u : 0x05040100u, upper_halves = lane_high() ? 0x03020706u : 0x07060302u;
    UNROLL for (int j = 0; j < WORDS; j += 2) {
      uint32 mine = pack(c.v[j], c.v[j + 1]), other = bits_of(shuffle_xor(float_of(mine), 16));
      a.w[j] = permute_bytes(other, mine, lower_halves);
      a.w[j + 1] = permute_bytes(other, mine, upper_halves);
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
      bool once = LAYOUT != LAYOUT_WMMA11 || lane_high() == j / 4;  // on RDNA 3 two lanes have the whole row each
      if (once) sums[LAYOUT == LAYOUT_MMA ? j % 2 : 0] += low + high;
    }
  }
};
template <> struct Tile<bf16> : Bf16Tile<Bf16Layout> {};
#if LAYOUT == LAYOUT_MFMA
template <> struct Tile<wide_bf16> : Bf16Tile<WideLayout> {};
#endif
#endif  // LAYOUT

}  // namespace gpt

using namespace gpt;
