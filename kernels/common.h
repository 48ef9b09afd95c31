// The basics that every kernel needs and every compiler spells differently: thread numbers, barriers, shuffles, fast
// math, bf16 and shared memory. No vendor header is included: all of it rests on compiler builtins. Reductions, dropout
// and activations follow, once for all kernels.
//
// One source, four compilers: NVRTC (NVIDIA), hiprtc and clang (AMD), and the host's C++ compiler, with which the tests
// run every kernel (EXECUTOR: a header of the tests stands in for the GPU).
//
// The warp is 64 lanes wide on CDNA (gfx9) and 32 on RDNA and NVIDIA: kernels say WARP and never a number.

#if defined(EXECUTOR)
#include "executor.h"  // WARP and LAYOUT are defined on the command line
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

// How a bf16 tile lies in a warp's registers; gpt/ops/gpu/targets.py has the same list.
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
// CDNA has accumulation registers, which plain arithmetic cannot reach. If sums of products lie there, they are moved
// in and out around each product. clang up to 22's first versions puts them there unless two waves must fit, because one
// wave alone has twice the registers.
#if LAYOUT == LAYOUT_MFMA
#define TWO_WAVES __attribute__((amdgpu_waves_per_eu(2)))
#else
#define TWO_WAVES
#endif
// clang ignores __launch_bounds__ unless a HIP header defines it, and then assumes 1024 threads and spills.
#define BLOCK_OF(...) TWO_WAVES __attribute__((amdgpu_flat_work_group_size(1, FIRST_OF(__VA_ARGS__, 0))))
#define FIRST_OF(first, ...) first
#else
#define BLOCK_OF(...) __launch_bounds__(__VA_ARGS__)
#endif
// KERNEL(threads) or KERNEL(threads, blocks): the most threads of a block; and, on NVIDIA, how many blocks a
// multiprocessor must have registers for.
#define KERNEL(...) extern "C" __global__ BLOCK_OF(__VA_ARGS__) void
#define DEVICE __device__ inline __attribute__((always_inline))
#if defined(ON_CUDA)
#undef DEVICE
#define DEVICE __device__ __forceinline__
#endif
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#endif
// Before a loop: rounds stay apart. clang may join two of them, and then it stores a vector element by element.
#if defined(ON_AMD)
#define NO_VECTORIZE _Pragma("clang loop vectorize(disable)")
#else
#define NO_VECTORIZE
#endif

namespace gpt {

typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long index_t;  // counts elements: rows x vocabulary can pass 2^31

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

// A line that the compiler moves neither memory accesses nor uses of the values across. Otherwise AMD's compiler moves
// the loads of a whole unrolled loop to its front, and products away from their operands, and runs out of registers.
template <class V, int N> DEVICE void pin(V (&values)[N]) {
#if defined(ON_AMD)
  UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+v"(values[i])::"memory");
#endif
}

// A line that the compiler moves no access of memory across.
DEVICE void separate_accesses() {
#if defined(ON_AMD)
  asm volatile("" ::: "memory");
#endif
}

// A line that it moves no instruction across, if it is clang 16 or later; an older one, no access of memory.
DEVICE void separate() {
  separate_accesses();
#if defined(ON_AMD)
#if __has_builtin(__builtin_amdgcn_sched_barrier)
  __builtin_amdgcn_sched_barrier(0);
#endif
#endif
}

// Has the instructions since the last `separate` take turns. In each of TURNS turns there are PRODUCTS matrix products,
// after ACCESSES accesses of shared memory and LOADS loads from global memory. Other instructions go anywhere. There must
// be no branch between, not even one that no thread takes.
template <int TURNS, int PRODUCTS, int ACCESSES, int LOADS = 0> DEVICE void take_turns() {
#if defined(ON_AMD)
#if __has_builtin(__builtin_amdgcn_sched_group_barrier)
  UNROLL for (int turn = 0; turn < TURNS; turn++) {
    __builtin_amdgcn_sched_group_barrier(0x20, LOADS, 0);
    __builtin_amdgcn_sched_group_barrier(0x80, ACCESSES, 0);
    __builtin_amdgcn_sched_group_barrier(0x08, PRODUCTS, 0);
  }
#endif
#endif
}

// The same number, but unknown to the compiler. An element whose address is made with it is read at that moment, and
// not before a loop and then kept in registers.
DEVICE int opaque(int number) {
#if defined(ON_AMD)
  asm volatile("" : "+v"(number));
#elif defined(ON_CUDA)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

DEVICE int lane_id() { return thread_id() & (WARP - 1); }
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
DEVICE float reciprocal(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
DEVICE float sqrt_of(float v) { return sqrtf(v); }
DEVICE double sqrt_of(double v) { return sqrt(v); }
#else
DEVICE uint32 bits_of(float v) { return __builtin_bit_cast(uint32, v); }
DEVICE float float_of(uint32 bits) { return __builtin_bit_cast(float, bits); }
DEVICE float exp2_fast(float v) { return __builtin_exp2f(v); }
DEVICE float log2_of(float v) { return __builtin_log2f(v); }
#if defined(ON_AMD)
DEVICE float rsqrt_of(float v) { return __builtin_amdgcn_rsqf(v); }
DEVICE float reciprocal(float v) { return __builtin_amdgcn_rcpf(v); }  // as NVIDIA's, off by a unit in the last place
#else
DEVICE float rsqrt_of(float v) { return 1 / __builtin_sqrtf(v); }
DEVICE float reciprocal(float v) { return 1 / v; }
#endif
DEVICE float sqrt_of(float v) { return __builtin_sqrtf(v); }
DEVICE double sqrt_of(double v) { return __builtin_sqrt(v); }
#endif

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

DEVICE float infinity() { return float_of(0x7f800000u); }
DEVICE bool is_finite(float v) { return (bits_of(v) & 0x7f800000u) != 0x7f800000u; }
#if defined(ON_CUDA)
DEVICE float absolute(float v) { return fabsf(v); }
DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
DEVICE float minimum(float a, float b) { return fminf(a, b); }
#else
DEVICE float absolute(float v) { return __builtin_fabsf(v); }
DEVICE float maximum(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE float minimum(float a, float b) { return __builtin_fminf(a, b); }
#endif
DEVICE int minimum(int a, int b) { return a < b ? a : b; }
DEVICE int maximum(int a, int b) { return a > b ? a : b; }
DEVICE index_t minimum(index_t a, index_t b) { return a < b ? a : b; }

// ---- storage types --------------------------------------------------------------------------------------------------

struct bf16 {
  unsigned short bits;
};

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(bf16 v) { return float_of((uint32)v.bits << 16); }

// Byte i of the result is byte number s_i of the eight in `low` (numbers 0 to 3) and `high` (4 to 7); s_i is byte i of
// `selector`. For example, selector 0x07060302 takes the upper halves of both words.
DEVICE uint32 permute_bytes(uint32 high, uint32 low, uint32 selector) {
#if defined(ON_AMD)
  return __builtin_amdgcn_perm(high, low, selector);
#else
  uint64 both = (uint64)high << 32 | low;
  uint32 result = 0;
  UNROLL for (int i = 0; i < 32; i += 8) result |= (uint32)(both >> 8 * (selector >> i & 7u) & 0xffu) << i;
  return result;
#endif
}
// A float as bf16, rounded to nearest even. NaNs become 0x7fff, as NVIDIA's own conversions make them. AMD's compilers
// need four instructions for it, and a half to join two results in a word.
DEVICE uint32 rounded_bits(float v) {
  uint32 u = bits_of(v);
  return (v == v ? u + 0x7fffu + (u >> 16 & 1u) : 0x7fff0000u) >> 16;
}
#if !defined(ON_CUDA)
typedef float Float2 __attribute__((vector_size(8)));  // CDNA has instructions for two floats
DEVICE Float2 fma(Float2 a, Float2 b, Float2 c) {
#if __has_builtin(__builtin_elementwise_fma)
  return __builtin_elementwise_fma(a, b, c);
#else
  return Float2{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1])};
#endif
}
#endif
// Two numbers as bf16 in one word, the first in the low half, each rounded to nearest by adding half a place to its bits.
// A number halfway between two bf16 numbers goes away from 0. One in 65,536 numbers lies there, so this adds 2^-25 of a
// number on average, less than float32's own rounding. A NaN is not tested for. Arithmetic on bf16 numbers makes only
// NaNs with a lower half of 0, which the sum leaves as they are.
DEVICE uint32 pack_halves_away(float low, float high) {
#if defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
  // One instruction adds to both: no carry leaves the lower one.
  uint64 both = __builtin_bit_cast(uint64, Float2{low, high}) + 0x0000800000008000u;
  return permute_bytes((uint32)(both >> 32), (uint32)both, 0x07060302u);  // the two upper halves
#else
  return permute_bytes(bits_of(high) + 0x8000u, bits_of(low) + 0x8000u, 0x07060302u);
#endif
}
// Two operands of a product in one word. They are rounded to nearest even if the GPU has an instruction for that. If not,
// it would cost as much as a quarter of attention's time, and halves go away from 0.
DEVICE uint32 pack(float low, float high) {
#if defined(ON_CUDA) && LAYOUT
  uint32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#elif defined(__gfx950__)
  typedef __bf16 Pair __attribute__((ext_vector_type(2)));
  return __builtin_bit_cast(uint32, Pair{(__bf16)low, (__bf16)high});  // v_cvt_pk_bf16_f32
#elif defined(ON_AMD)
  return pack_halves_away(low, high);
#else
  return rounded_bits(low) | rounded_bits(high) << 16;
#endif
}
DEVICE uint32 pack(bf16 low, bf16 high) { return low.bits | (uint32)high.bits << 16; }

template <class T> DEVICE T from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE bf16 from_float<bf16>(float v) {
#if defined(ON_CUDA) && LAYOUT
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(v));
  return result;
#else
  return bf16{(unsigned short)rounded_bits(v)};
#endif
}

// A result of arithmetic on bf16 numbers, rounded to nearest even as by from_float. On AMD a NaN is not tested for, because
// such a result needs no test (see pack_halves_away).
template <class T> DEVICE T from_result(float v) { return from_float<T>(v); }
#if defined(ON_AMD)
template <> DEVICE bf16 from_result<bf16>(float v) {
  uint32 u = bits_of(v);
  return bf16{(unsigned short)((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
#endif
// Two of them in one word
DEVICE uint32 pack_results(float low, float high) {
#if defined(ON_AMD) && !defined(__gfx950__)
  return pack(from_result<bf16>(low), from_result<bf16>(high));
#else
  return pack(low, high);
#endif
}

// Sixteen bytes, a thread's widest access; addresses must be multiples of it.
template <class T> struct alignas(16) Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  T v[SIZE];
};
static_assert(sizeof(Vector<bf16>) == 16 && sizeof(Vector<float>) == 16, "a vector is sixteen bytes");

// W neighboring elements as floats. They are read and written by whole vectors or, if they fill none, by half a vector or
// element by element; p must be a multiple of that.
template <int W> struct Floats {
  float v[W];

  template <class T> static DEVICE constexpr int piece() {
    return W % Vector<T>::SIZE == 0 ? Vector<T>::SIZE : W * sizeof(T) == 8 ? W : 1;
  }
  template <class T> struct alignas(piece<T>() * sizeof(T)) Piece {
    T v[piece<T>()];
  };
  template <class T> static DEVICE Floats load(const T* p) {
    Floats f;
    UNROLL for (int i = 0; i < W; i += piece<T>()) {
      Piece<T> piece_read = *(const Piece<T>*)(p + i);
      UNROLL for (int e = 0; e < piece<T>(); e++) f.v[i + e] = to_float(piece_read.v[e]);
    }
    return f;
  }
  // Returns the stored values, which are rounded if T is bf16.
  template <class T> DEVICE Floats store(T* p) const {
    Floats stored;
    UNROLL for (int i = 0; i < W; i += piece<T>()) {
      Piece<T> rounded;
      UNROLL for (int e = 0; e < piece<T>(); e++) {
        rounded.v[e] = from_float<T>(v[i + e]);
        stored.v[i + e] = to_float(rounded.v[e]);
      }
      *(Piece<T>*)(p + i) = rounded;
    }
    return stored;
  }
};

// ---- shared memory --------------------------------------------------------------------------------------------------

// SHARED(T, name, count) declares an array that the block shares; Shared<T> is a pointer into one. The executor's
// version keeps track of each thread's writes between barriers, and so finds races and reads of elements that nobody
// wrote.
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
  alignas(sizeof(T) * (count) < 1024 ? 16 : 1024) __shared__ T name##_memory[count]; \
  const gpt::Shared<T> name { name##_memory }
#endif

#if defined(ON_CUDA)
// Gives out the shared memory that a launch asks for, in order. Operands begin at multiples of a KiB, so arrays of
// whole KiB come first. `end` stops the kernel if the launch has asked for too little.
struct Arrays {
  uint32 used = 0;  // bytes
  template <class U> DEVICE Shared<U> take(int count) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared<U> array{(U*)(memory + used)};
    used += count * (uint32)sizeof(U);
    return array;
  }
  DEVICE void end() const {
    uint32 asked;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(asked));
    if (asked < used) __trap();
  }
};
#endif

// Copies from global to shared memory, or of zeros if not `inside`. On a target that is ASYNCHRONOUS they go on while
// the thread does other work. copies_done waits for the copies that this thread began; after the next sync the whole
// block may use the copied elements.
#if defined(ON_CUDA) && __CUDA_ARCH__ >= 800
#define ASYNCHRONOUS 1
template <class T> DEVICE void copy_vector(Shared<T> to, const T* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"((uint32)__cvta_generic_to_shared(to.p)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
DEVICE void copy_float(Shared<float> to, const float* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"((uint32)__cvta_generic_to_shared(to.p)), "l"(from), "r"(inside ? 4 : 0) : "memory");
}
DEVICE void copies_done() {
  asm volatile("cp.async.wait_all;" ::: "memory");
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the matrix unit reads shared memory by another path
#endif
}
#else
#define ASYNCHRONOUS (LAYOUT == LAYOUT_MMA)  // NVIDIA's, on the executor
template <class T> DEVICE void copy_vector(Shared<T> to, const T* from, bool inside) {
  Vector<T> v = {};
  if (inside) v = *(const Vector<T>*)from;
  to.set_vector(0, v);
}
DEVICE void copy_float(Shared<float> to, const float* from, bool inside) { to[0] = inside ? *from : 0; }
DEVICE void copies_done() {}
#endif

// EDGE rows and columns of a matrix in global memory, read as if rows were EDGE apart: Tile's load_a takes it, with a
// stride of EDGE, to load an operand without shared memory. Rows after `last` repeat row `last`; columns from `columns`
// on are 0.
template <class T, bool EVEN, int EDGE = 16> struct Window {  // EVEN: rows start at even elements, so that words can be read
  const T* p;
  index_t stride;
  int first, last, columns;

  DEVICE const T* at(int i) const { return p + minimum(first + i / EDGE, last) * stride + i % EDGE; }
  DEVICE T operator[](int i) const { return i % EDGE < columns ? *at(i) : T{}; }
  DEVICE uint32 word(int i) const {
    if constexpr (EVEN) return i % EDGE < columns ? *(const uint32*)at(i) : 0;
    else return pack((*this)[i], (*this)[i + 1]);
  }
};

// ---- reductions: every lane, or every thread of the block, gets the result; the order is fixed ----------------------

DEVICE float warp_sum(float v) {
  for (int mask = WARP / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
DEVICE float warp_max(float v) {
  for (int mask = WARP / 2; mask; mask /= 2) v = maximum(v, shuffle_xor(v, mask));
  return v;
}

// `scratch` has one element per warp; it is free again when the call returns.
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

// The mask of gpt/ops/cpu/masks.py, which defines it: a hash of the key, the site, and the element's row and column.
// Elements of a row that are 8 columns apart share it.
DEVICE uint32 mix(uint32 x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

struct Dropout {
  uint32 key0, key1, threshold;
  float scale;

  // key: (seed, counter) in device memory; threshold: round(rate x 2^16) x 2^16; scale: 1 / (1 - rate)
  DEVICE Dropout(const uint32* key, uint32 site, uint32 threshold, float scale) : threshold(threshold), scale(scale) {
    key0 = mix(mix(mix(key[0]) ^ key[1]) ^ site);
    key1 = mix(mix(mix(key[0] + 0x9e3779b9u) ^ key[1]) ^ site);
  }
  DEVICE uint32 row_hash(uint32 row) const { return mix(mix(row ^ key0) ^ key1); }
  // Whether the element in `column` of the 16 columns from `first` on is kept. Compilers see which elements share a
  // hash if both numbers are given.
  DEVICE bool keeps(uint32 row_hash, uint32 first, uint32 column) const {
    uint32 bits = mix((first + (column & ~8u)) * 0x9e3779b9u ^ row_hash);
    return (column & 8u ? bits : bits << 16) >= threshold;
  }
  DEVICE float factor(uint32 row_hash, uint32 column) const {
    return keeps(row_hash, column & ~15u, column & 15u) ? scale : 0.0f;
  }
};

// ---- activations ----------------------------------------------------------------------------------------------------

// GELU by its tanh approximation (Hendrycks & Gimpel 2016): x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u)), which cancels
// nowhere, with u = sqrt(2 / pi) (x + 0.044715 x^3).
#define JOIN(a, b) JOIN_EXPANDED(a, b)  // a##b after the macros a and b: JOIN(ACTIVATION, _derivative)
#define JOIN_EXPANDED(a, b) a##b

DEVICE float gelu_sigmoid(float x) {
  return reciprocal(1 + exp2_fast(-2 * LOG2E * GELU_SCALE * x * (1 + GELU_CUBIC * x * x)));
}
DEVICE float gelu(float x) { return x * gelu_sigmoid(x); }
DEVICE float gelu_derivative(float x) {
  float s = gelu_sigmoid(x), near = maximum(-16.0f, minimum(x, 16.0f));  // beyond, s (1 - s) is 0 and x^3 may be inf
  return s + s * (1 - s) * near * 2 * GELU_SCALE * (1 + 3 * GELU_CUBIC * near * near);
}
DEVICE float relu(float x) { return x > 0 ? x : 0; }
DEVICE float relu_derivative(float x) { return x > 0 ? 1 : 0; }

}  // namespace gpt

using namespace gpt;
