// Hopper's own matrix instruction, which four neighboring warps issue together: it multiplies 64 rows by a matrix in
// shared memory, while the warps do other work. Other GPUs have the functions that kernels for all of them call: what
// they stand for is done at once there.
#include "tile_float.h"

namespace gpt {

#if defined(ON_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// The same number, which all lanes of a warp must have. A compiler then keeps it, and all that is computed from it, in the
// registers of the warp. There Hopper's instruction wants the places of its operands, and AMD's branches their conditions.
DEVICE int uniform(int number) {
#if HOPPER
  return __shfl_sync(0xffffffffu, number, 0);
#elif defined(ON_AMD)
  return __builtin_amdgcn_readfirstlane(number);
#else
  return number;
#endif
}

// Waits for the products that were begun, except the last LATER of them; then the sums `acc` may be used.
//
// The left operand of a product must not live in registers from one round of a loop to the next: ptxas 12.9 and 13.0
// give such registers away (seen with heads of 64).
template <int LATER = 0, class Acc, int N> DEVICE void products_done(Acc (&acc)[N]) {
#if HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
  UNROLL for (int i = 0; i < N; i++) {
    UNROLL for (auto& v : acc[i].v) asm volatile("" : "+f"(v)::"memory");  // no earlier
  }
#endif
}

#if HOPPER
// The place and the form of an operand in shared memory (PTX ISA, "matrix descriptor")
struct Descriptor {
  uint32 low, high;
};

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_begun() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// d += a b (PTX ISA, "wgmma.mma_async"), between products_begin and products_begun. N columns of b and d, 8 registers
// of d for each 16 of them.
#define D8(t)                                                                                            \
  "+f"(d[t].v[0]), "+f"(d[t].v[1]), "+f"(d[t].v[2]), "+f"(d[t].v[3]), "+f"(d[t].v[4]), "+f"(d[t].v[5]), \
      "+f"(d[t].v[6]), "+f"(d[t].v[7])
#define R16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define R32 R16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R64 R32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PRODUCT(n, registers, a_, b_low, b_high, add_, form)                                   \
  "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, " add_ ", 0;\nmov.b64 b, {" b_low ", " b_high "};\n" \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" registers "}, " a_ ", b, p, 1, 1, " form ";\n}"

// a is in registers, and b's columns are contiguous in memory.
template <int N> DEVICE void wgmma(Tile<bf16>::Acc* d, Tile<bf16>::A a, Descriptor b) {
  static_assert(N == 16 || N == 32 || N == 64, "the forms that stand here");
#define OPERANDS "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "r"(b.low), "r"(b.high)
  if constexpr (N == 16) {
    asm volatile(PRODUCT("16", R16, "{%8, %9, %10, %11}", "%12", "%13", "1", "1") : D8(0) : OPERANDS : "memory");
  } else if constexpr (N == 32) {
    asm volatile(PRODUCT("32", R32, "{%16, %17, %18, %19}", "%20", "%21", "1", "1")
                 : D8(0), D8(1) : OPERANDS : "memory");
  } else {
    asm volatile(PRODUCT("64", R64, "{%32, %33, %34, %35}", "%36", "%37", "1", "1")
                 : D8(0), D8(1), D8(2), D8(3) : OPERANDS : "memory");
  }
#undef OPERANDS
}

// Both are in shared memory, and the rows of a and the columns of b (64 of them) are contiguous. d is overwritten if
// not `add`.
DEVICE void wgmma_shared(Tile<bf16>::Acc* d, Descriptor a, Descriptor b, bool add) {
  asm volatile("{\n.reg .b64 a;\nmov.b64 a, {%32, %33};\n" PRODUCT("64", R64, "a", "%34", "%35", "%36", "0, 0") "\n}"
               : D8(0), D8(1), D8(2), D8(3)
               : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"((int)add) : "memory");
}
#undef D8
#undef R16
#undef R32
#undef R64
#undef PRODUCT
#endif

}  // namespace gpt

using namespace gpt;
