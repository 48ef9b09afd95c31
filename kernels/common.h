// What every kernel needs and no two compilers agree on: thread numbers, barriers, shuffles, fast math, bf16, shared
// memory, and the 16 x 16 x 16 matrix tile. No vendor header is included: all of it rests on compiler builtins.
//
// One source, four compilers: NVRTC (NVIDIA), hiprtc and clang (AMD), and the host's C++ compiler, under which the tests
// run every kernel (EXECUTOR, whose own header stands in for the GPU).
//
// The warp is 64 lanes wide on CDNA (gfx9) and 32 on RDNA and NVIDIA: kernels say WARP and never a number.

#if defined(EXECUTOR)
#include "executor.h"  // defines WARP and LAYOUT, as told on its command line
#elif defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define ON_CUDA 1
#define WARP 32
#else
#define ON_AMD 1
#if defined(__GFX9__)
#define WARP 64
#else
#define WARP 32
#endif
#endif

// How a bf16 tile lies in a warp's registers; gpt/ops/targets.py has the same list.
#define LAYOUT_MMA 1     // NVIDIA, sm_80 and later: mma.sync
#define LAYOUT_MFMA 2    // CDNA 2 and 3
#define LAYOUT_WMMA11 3  // RDNA 3
#define LAYOUT_WMMA12 4  // RDNA 4
#if !defined(LAYOUT)
#if defined(ON_CUDA) && __CUDA_ARCH__ >= 800
#define LAYOUT LAYOUT_MMA
#elif defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__) || defined(__gfx950__)
#define LAYOUT LAYOUT_MFMA
#elif defined(__GFX11__)
#define LAYOUT LAYOUT_WMMA11
#elif defined(__GFX12__)
#define LAYOUT LAYOUT_WMMA12
#else
#define LAYOUT 0  // no matrix unit for bf16: fp32 kernels only
#endif
#endif

#if !defined(EXECUTOR)
#if defined(ON_AMD)
#ifndef __global__
#define __global__ __attribute__((global))
#endif
#ifndef __device__
#define __device__ __attribute__((device))
#endif
#ifndef __shared__
#define __shared__ __attribute__((shared))
#endif
// clang ignores __launch_bounds__ where no HIP header defines it, and then assumes 1024 threads and spills.
#define BLOCK_OF(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#else
#define BLOCK_OF(threads) __launch_bounds__(threads)
#endif
#define KERNEL(threads) extern "C" __global__ BLOCK_OF(threads) void
#define DEVICE __device__ inline __attribute__((always_inline))
#if defined(ON_CUDA)
#undef DEVICE
#define DEVICE __device__ __forceinline__
#endif
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#endif

namespace gpt {

typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long index_t;  // of elements: rows x vocabulary can pass 2^31

// ---- threads, barriers, shuffles ------------------------------------------------------------------------------------

#if defined(ON_CUDA)
DEVICE int thread_id() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE void sync() { __syncthreads(); }
DEVICE float shuffle(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
#elif defined(ON_AMD)
DEVICE int thread_id() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE int block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE int block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE void sync() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
DEVICE float shuffle(float v, int lane) {
  return __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute(lane << 2, __builtin_bit_cast(int, v)));
}
#else
using executor::block_x;
using executor::block_y;
using executor::shuffle;
using executor::sync;
using executor::thread_id;
#endif

// Nothing that makes or uses the values moves over this, nor does any access to memory. AMD's compiler otherwise moves the
// loads of a whole unrolled loop to its front, and products away from their operands, and runs out of registers.
template <int N> DEVICE void pin(float (&values)[N]) {
#if defined(ON_AMD)
  UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+v"(values[i])::"memory");
#endif
}

// A number that the compiler cannot see through, so that what is read at an address made with it is read there and then
// and not kept in registers from before a loop on.
DEVICE int opaque(int number) {
#if defined(ON_AMD)
  asm volatile("" : "+v"(number));
#elif defined(ON_CUDA)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

DEVICE int lane_id() { return thread_id() % WARP; }
DEVICE int warp_id() { return thread_id() / WARP; }
DEVICE float shuffle_xor(float v, int mask) { return shuffle(v, lane_id() ^ mask); }

// ---- arithmetic -----------------------------------------------------------------------------------------------------

#if defined(ON_CUDA)
DEVICE uint32 bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(uint32 bits) { return __uint_as_float(bits); }
DEVICE float exp2_fast(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
DEVICE float log2_of(float v) { return log2f(v); }
DEVICE float rsqrt_of(float v) { return rsqrtf(v); }
DEVICE float sqrt_of(float v) { return sqrtf(v); }
DEVICE double sqrt_of(double v) { return sqrt(v); }
#else
DEVICE uint32 bits_of(float v) { return __builtin_bit_cast(uint32, v); }
DEVICE float float_of(uint32 bits) { return __builtin_bit_cast(float, bits); }
DEVICE float exp2_fast(float v) { return __builtin_exp2f(v); }
DEVICE float log2_of(float v) { return __builtin_log2f(v); }
#if defined(ON_AMD)
DEVICE float rsqrt_of(float v) { return __builtin_amdgcn_rsqf(v); }
#else
DEVICE float rsqrt_of(float v) { return 1 / __builtin_sqrtf(v); }
#endif
DEVICE float sqrt_of(float v) { return __builtin_sqrtf(v); }
DEVICE double sqrt_of(double v) { return __builtin_sqrt(v); }
#endif

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

DEVICE float infinity() { return float_of(0x7f800000u); }
DEVICE bool is_finite(float v) { return (bits_of(v) & 0x7f800000u) != 0x7f800000u; }
DEVICE float maximum(float a, float b) { return a > b ? a : b; }
DEVICE float minimum(float a, float b) { return a < b ? a : b; }
DEVICE int minimum(int a, int b) { return a < b ? a : b; }
DEVICE int maximum(int a, int b) { return a > b ? a : b; }
DEVICE index_t minimum(index_t a, index_t b) { return a < b ? a : b; }

// ---- storage types --------------------------------------------------------------------------------------------------

struct bf16 {
  unsigned short bits;
};

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(bf16 v) { return float_of((uint32)v.bits << 16); }

// Two floats as bf16 in one word, the first in the low half: round to nearest even, NaN stays NaN.
DEVICE uint32 rounded_bits(float v) {
  uint32 u = bits_of(v), nan = (u & 0x7fffffffu) > 0x7f800000u;  // 0 or 1: in arithmetic, for compilers branch on it
  return (u + ((0x7fffu + (u >> 16 & 1u)) & (nan - 1))) >> 16 | nan << 6;
}
DEVICE uint32 pack(float low, float high) {
#if defined(ON_CUDA) && LAYOUT
  uint32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return rounded_bits(low) | rounded_bits(high) << 16;
#endif
}
DEVICE uint32 pack(bf16 low, bf16 high) { return low.bits | (uint32)high.bits << 16; }

template <class T> DEVICE T from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE bf16 from_float<bf16>(float v) { return bf16{(unsigned short)rounded_bits(v)}; }

// Sixteen bytes, the widest access a thread makes; addresses must be multiples of it.
template <class T> struct alignas(16) Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  T v[SIZE];
};
static_assert(sizeof(Vector<bf16>) == 16 && sizeof(Vector<float>) == 16, "a vector is sixteen bytes");

// W neighboring elements as floats. Where they fill vectors, p must be a multiple of sixteen bytes.
template <int W> struct Floats {
  float v[W];

  template <class T> static DEVICE Floats load(const T* p) {
    Floats f;
    if constexpr (W % Vector<T>::SIZE == 0) {
      UNROLL for (int i = 0; i < W; i += Vector<T>::SIZE) {
        Vector<T> part = *(const Vector<T>*)(p + i);
        UNROLL for (int e = 0; e < Vector<T>::SIZE; e++) f.v[i + e] = to_float(part.v[e]);
      }
    } else {
      UNROLL for (int i = 0; i < W; i++) f.v[i] = to_float(p[i]);
    }
    return f;
  }
  template <class T> DEVICE void store(T* p) const {
    if constexpr (W % Vector<T>::SIZE == 0) {
      UNROLL for (int i = 0; i < W; i += Vector<T>::SIZE) {
        Vector<T> part;
        UNROLL for (int e = 0; e < Vector<T>::SIZE; e++) part.v[e] = from_float<T>(v[i + e]);
        *(Vector<T>*)(p + i) = part;
      }
    } else {
      UNROLL for (int i = 0; i < W; i++) p[i] = from_float<T>(v[i]);
    }
  }
};

// ---- shared memory --------------------------------------------------------------------------------------------------

// SHARED(T, name, count) declares an array that the block shares; Shared<T> is a pointer into one. The executor's own
// version knows which thread wrote what before which barrier, and so finds races and reads of what nobody wrote.
#if defined(EXECUTOR)
using executor::Shared;
#else
template <class T> struct Shared {
  T* p;
  DEVICE T& operator[](int i) const { return p[i]; }
  DEVICE Shared operator+(int i) const { return Shared{p + i}; }
  DEVICE Vector<T> vector(int i) const { return *(const Vector<T>*)(p + i); }
  DEVICE void set_vector(int i, Vector<T> v) const { *(Vector<T>*)(p + i) = v; }
  DEVICE uint32 word(int i) const { return *(const uint32*)(p + i); }  // two bf16, the first at an even place
};
#define SHARED(T, name, count)                         \
  alignas(16) __shared__ T name##_memory[count];        \
  const gpt::Shared<T> name { name##_memory }
#endif

// 16 rows and 16 columns of a matrix in global memory, read as if rows were 16 apart: what Tile's load_a takes, with a
// stride of 16, to get an operand without shared memory. Rows after `last` repeat it; columns from `columns` on are 0.
template <class T, bool EVEN> struct Window {  // EVEN: rows start at even elements, so that words can be read
  const T* p;
  index_t stride;
  int first, last, columns;

  DEVICE const T* at(int i) const { return p + minimum(first + i / 16, last) * stride + i % 16; }
  DEVICE T operator[](int i) const { return i % 16 < columns ? *at(i) : T{}; }
  DEVICE uint32 word(int i) const {
    if constexpr (EVEN) return i % 16 < columns ? *(const uint32*)at(i) : 0;
    else return pack((*this)[i], (*this)[i + 1]);
  }
};

// ---- reductions: every lane, or every thread of the block, gets the result; the order is fixed ------------------------

DEVICE float warp_sum(float v) {
  for (int mask = WARP / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
DEVICE float warp_max(float v) {
  for (int mask = WARP / 2; mask; mask /= 2) v = maximum(v, shuffle_xor(v, mask));
  return v;
}

// `scratch` holds one value per warp; it is free again when the call returns.
template <int WARPS> DEVICE float block_sum(float v, Shared<float> scratch) {
  v = warp_sum(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync();
  v = 0;
  for (int w = 0; w < WARPS; w++) v += scratch[w];
  sync();
  return v;
}
template <int WARPS> DEVICE float block_max(float v, Shared<float> scratch) {
  v = warp_max(v);
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync();
  v = scratch[0];
  for (int w = 1; w < WARPS; w++) v = maximum(v, scratch[w]);
  sync();
  return v;
}

// ---- dropout --------------------------------------------------------------------------------------------------------

// The mask of gpt/ops/masks.py, which defines it: a hash of the key, the site, and the element's row and column.
DEVICE uint32 mix(uint32 x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

struct Dropout {
  uint32 key0, key1, threshold;
  float scale;

  // key: (seed, counter) in device memory; threshold: floor(rate x 2^32); scale: 1 / (1 - rate)
  DEVICE Dropout(const uint32* key, uint32 site, uint32 threshold, float scale) : threshold(threshold), scale(scale) {
    key0 = mix(mix(mix(key[0]) ^ key[1]) ^ site);
    key1 = mix(mix(mix(key[0] + 0x9e3779b9u) ^ key[1]) ^ site);
  }
  DEVICE uint32 row_hash(uint32 row) const { return mix(mix(row ^ key0) ^ key1); }
  DEVICE float factor(uint32 row_hash, uint32 column) const {
    return mix(mix(column) ^ row_hash) >= threshold ? scale : 0.0f;
  }
};

// ---- activations ----------------------------------------------------------------------------------------------------

// GELU by its tanh approximation (Hendrycks & Gimpel 2016): x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u)), which cancels
// nowhere, with u = sqrt(2 / pi) (x + 0.044715 x^3).
#define JOIN(a, b) JOIN_EXPANDED(a, b)  // a##b of what the macros a and b stand for: JOIN(ACTIVATION, _derivative)
#define JOIN_EXPANDED(a, b) a##b

constexpr float GELU_SCALE = 0.7978845608028654f, GELU_CUBIC = 0.044715f;

DEVICE float gelu_sigmoid(float x) {
  return 1 / (1 + exp2_fast(-2 * LOG2E * GELU_SCALE * x * (1 + GELU_CUBIC * x * x)));
}
DEVICE float gelu(float x) { return x * gelu_sigmoid(x); }
DEVICE float gelu_derivative(float x) {
  float s = gelu_sigmoid(x), near = maximum(-16.0f, minimum(x, 16.0f));  // beyond, s (1 - s) is 0 and x^3 may be inf
  return s + s * (1 - s) * near * 2 * GELU_SCALE * (1 + 3 * GELU_CUBIC * near * near);
}
DEVICE float relu(float x) { return x > 0 ? x : 0; }
DEVICE float relu_derivative(float x) { return x > 0 ? 1 : 0; }

// ---- the matrix tile ------------------------------------------------------------------------------------------------

// Tile<T> is a product of 16 x 16 matrices by one warp, accumulated in float32: C += A B, for T bf16 (on the matrix unit)
// or float (everywhere). Its members:
//   A, B, Acc                       a lane's part of each matrix
//   load_a(p, stride)               A(m, k) = p[m * stride + k]; load_a_transposed: A(m, k) = p[k * stride + m]
//   load_b(p, stride)               B(k, n) = p[k * stride + n]; load_b_transposed: B(k, n) = p[n * stride + k]
//   multiply_add(acc, a, b)
//   to_a(acc)                       an accumulator as the next product's A, with no shared memory between
//   ELEMENTS, column(i)             how many elements of an accumulator a lane has, and the column of element i
//   SLOTS, slot(i), slot_row(s)     the rows a lane has a part of, which of them element i is in, and where they are
//   row(i)                          slot_row(slot(i))
//   row_sum(v), row_max(v)          over the lanes that hold parts of one row, for one slot
// On AMD the instruction gets A and B swapped, so that what a lane accumulates are parts of one row, as in its A.
template <class T> struct Tile;

DEVICE int lane_low() { return lane_id() % 16; }
DEVICE int lane_high() { return lane_id() / 16; }

#if LAYOUT
// Where a lane's values stand: what depends on the lane, plus constant steps, which addresses can take as offsets. A word
// is two bf16 of neighboring k.
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
};

template <> struct Tile<bf16> : Bf16Layout {
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
#endif  // LAYOUT

// In float32 by plain multiply-adds. A lane has all of its row of A, and reads the part of B that it needs from where it
// lies: lanes of one half (or quarter) warp read the same addresses, which shared memory serves at once.
template <> struct Tile<float> {
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
  static DEVICE float row_sum(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v += shuffle_xor(v, mask);
    return v;
  }
  static DEVICE float row_max(float v) {
    for (int mask = 16; mask < WARP; mask *= 2) v = maximum(v, shuffle_xor(v, mask));
    return v;
  }
};

}  // namespace gpt

using namespace gpt;
