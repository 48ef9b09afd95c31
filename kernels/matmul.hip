// C = A B on the matrix tile, fused with a transformer's next steps: bias, activation or addition. It runs if no vendor
// library has the product, and it lets a whole training step run on any compiler.
//
// A block of four warps computes SIDE x SIDE elements of C, each warp a quarter, WARP_SIDE x WARP_SIDE, as TILES x
// TILES tiles. Slices of A and B, DEPTH deep, go through shared memory (operand.h); accumulators stay in registers. A
// and B may each be stored transposed. Traffic: A is read N / SIDE times and B M / SIDE times, mostly from the cache.
// One warp adds up an element in an order that is always the same: deterministic.
//
// A, B and C may be stacks of matrices of one shape, with stride_a, stride_b, ... elements from one matrix to the next.
// block_y counts rows of blocks through all of them: with m = 100, SIDE = 64 and a stack of 3, blocks 0 and 1 are
// matrix 0, blocks 2 and 3 matrix 1, blocks 4 and 5 matrix 2.
//
// Set by the host: T (bf16 | float), OUT (bf16 | float), A_TRANSPOSED, B_TRANSPOSED (0 | 1), WIDTH (1 if a row of A,
// B or C is not whole vectors, else a vector's elements), EPILOGUE (see below), ACTIVATION (gelu | relu), SIDE, THREADS
// (four warps).
#include "operand.h"

#define STORE 0            // C = A B
#define ADD 1              // C = alpha A B + beta addend; addend may be C
#define BIAS 2             // C = A B + bias
#define BIAS_ACTIVATION 3  // pre_activation = A B + bias, C = activation(pre_activation)

typedef Tile<T> M;
constexpr int WARP_SIDE = SIDE / 2, TILES = WARP_SIDE / 16;
static_assert(THREADS == 4 * WARP, "two rows of two warps");

// A lane stores GROUP neighboring elements of a row at once on AMD GPUs.
#if defined(ON_CUDA) || LAYOUT == LAYOUT_MMA
constexpr int GROUP = 1;
#else
constexpr int GROUP = WIDTH < M::ELEMENTS ? WIDTH : M::ELEMENTS;
#endif

// What a warp multiplies in a step: columns of a slice, of all its tiles
template <class Operand> DEVICE const Operand& some();  // stands for an operand in decltype
template <class Left, class Right> struct Step {
  decltype(some<Left>().load_a(0, 0)) rows[TILES];
  decltype(some<Right>().load_b(0, 0)) columns[TILES];

  DEVICE Step(const Left& left, const Right& right, int row, int column, int step) {
    UNROLL for (int i = 0; i < TILES; i++) {
      rows[i] = left.load_a(row + 16 * i, step), columns[i] = right.load_b(column + 16 * i, step);
    }
  }
  // Adds the products of all rows with the columns of tiles first ... last - 1.
  DEVICE void multiply(M::Acc (&acc)[TILES][TILES], int first, int last) const {
    UNROLL for (int j = first; j < last; j++) {
      UNROLL for (int p = 0; p < Left::PRODUCTS; p++) {
        UNROLL for (int i = 0; i < TILES; i++) M::multiply_add(acc[i][j], rows[i].part[p], columns[j].part[p]);
      }
    }
  }
};

// acc += left right, summed over k, for the tiles from `row` of the left slice and `column` of the right one on. All
// other work is done between products, because on CDNA the matrix unit works alongside the other units. A slice has two
// steps. While a warp multiplies one of them, it reads the next one, fills shared memory with the next slice, and loads
// the slice after that.
template <class Left, class Right>
DEVICE void in_turns(M::Acc (&acc)[TILES][TILES], Left& left, Right& right, int row, int column, int k) {
  constexpr int DEPTH = Left::DEPTH, PRODUCTS = TILES * TILES * Left::PRODUCTS;  // products of a step
  constexpr int READS = 2 * TILES, WRITES = Left::WRITES + Right::WRITES, LOADS = Left::HELD + Right::HELD;
  constexpr int STORING = WRITES < PRODUCTS / 2 ? WRITES : PRODUCTS / 2;
  static_assert(DEPTH == 2 * Left::STEP, "two steps");
  left.begin(0), right.begin(0);
  left.finish(0), right.finish(0);
  left.begin(DEPTH), right.begin(DEPTH);
  sync();
  Step<Left, Right> even(left, right, row, column, 0);
  for (int depth = 0; depth < k; depth += DEPTH) {
    int next = depth + DEPTH;
    Step<Left, Right> odd(left, right, row, column, Left::STEP);
    even.multiply(acc, 0, TILES);
    take_turns<READS, PRODUCTS / READS, 1>();
    separate();
    sync();
    left.clear(next), right.clear(next);
    separate();
    left.store(), right.store();
    odd.multiply(acc, 0, TILES / 2);
    take_turns<STORING, PRODUCTS / 2 / STORING, WRITES / STORING>();
    separate();
    sync();
    left.aim(next + DEPTH), right.aim(next + DEPTH);
    separate();
    left.load(next + DEPTH), right.load(next + DEPTH);
    even = Step<Left, Right>(left, right, row, column, 0);
    odd.multiply(acc, TILES / 2, TILES);
    take_turns<READS, PRODUCTS / 2 / READS, 1, LOADS / READS>();
    separate();
  }
}

// A is [M, K] or, transposed, [K, M]; B is [K, N] or [N, K]; C, addend and pre_activation are [M, N].
// grid: ceil(n / SIDE) x (matrices * ceil(m / SIDE)), block: THREADS
KERNEL(THREADS) matmul(const T* a, const T* b, OUT* c, const T* bias, T* pre_activation, const OUT* addend, int m,
                       int n, int k, index_t stride_a, index_t stride_b, index_t stride_c, index_t stride_addend,
                       float alpha, float beta) {
  typedef Operand<T, SIDE, A_TRANSPOSED, WIDTH, THREADS> OperandA;
  typedef Operand<T, SIDE, !B_TRANSPOSED, WIDTH, THREADS> OperandB;
  [[maybe_unused]] constexpr int DEPTH = OperandA::DEPTH, STEP = OperandA::STEP, PRODUCTS = OperandA::PRODUCTS;
  SHARED(T, slice_a, OperandA::SIZE);
  SHARED(T, slice_b, OperandB::SIZE);
  // The block's matrix of the stack, its elements of C, and the warp's among those
  int row_blocks = (m + SIDE - 1) / SIDE;
  index_t matrix = block_y() / row_blocks;
  a += matrix * stride_a, b += matrix * stride_b, c += matrix * stride_c, addend += matrix * stride_addend;
  int row = block_y() % row_blocks * SIDE, column = block_x() * SIDE;
  int warp_row = warp_id() / 2 * WARP_SIDE, warp_column = warp_id() % 2 * WARP_SIDE;
  M::Acc acc[TILES][TILES] = {};

  OperandA left(slice_a, a, row, m, k);
  OperandB right(slice_b, b, column, n, k);
  if constexpr (LAYOUT == LAYOUT_MFMA && sizeof(T) == 2) {
    in_turns(acc, left, right, warp_row, warp_column, k);
  } else {
    left.begin(0), right.begin(0);
    for (int depth = 0; depth < k; depth += DEPTH) {
      // The block fills both slices, then each warp multiplies its tiles.
      left.finish(depth), right.finish(depth);
      sync();
      if (depth + DEPTH < k) left.begin(depth + DEPTH), right.begin(depth + DEPTH);
      UNROLL for (int step = 0; step < DEPTH; step += STEP) {
        decltype(left.load_a(0, 0)) rows[TILES];
        UNROLL for (int i = 0; i < TILES; i++) rows[i] = left.load_a(warp_row + 16 * i, step);
        UNROLL for (int j = 0; j < TILES; j++) {
          auto columns = right.load_b(warp_column + 16 * j, step);
          UNROLL for (int p = 0; p < PRODUCTS; p++) {
            UNROLL for (int i = 0; i < TILES; i++) M::multiply_add(acc[i][j], rows[i].part[p], columns.part[p]);
          }
        }
      }
      sync();
    }
  }

  // The epilogue, element by element or in groups
  UNROLL for (int i = 0; i < TILES; i++) {
    UNROLL for (int j = 0; j < TILES; j++) {
      Neighbors<M> neighbors(acc[i][j]);
      UNROLL for (int e = 0; e < M::ELEMENTS; e += GROUP) {
        int r = row + warp_row + 16 * i + M::row(e), s = column + warp_column + 16 * j + neighbors.column(e);
        if (r >= m || s >= n) continue;
        index_t at = (index_t)r * n + s;
        Floats<GROUP> v;
        UNROLL for (int g = 0; g < GROUP; g++) v.v[g] = neighbors.v[e + g];
#if EPILOGUE == ADD
        auto added = Floats<GROUP>::load(addend + at);
        UNROLL for (int g = 0; g < GROUP; g++) v.v[g] = alpha * v.v[g] + beta * added.v[g];
#elif EPILOGUE == BIAS || EPILOGUE == BIAS_ACTIVATION
        auto added = Floats<GROUP>::load(bias + s);
        UNROLL for (int g = 0; g < GROUP; g++) v.v[g] += added.v[g];
#endif
#if EPILOGUE == BIAS_ACTIVATION
        v = v.store(pre_activation + at);
        UNROLL for (int g = 0; g < GROUP; g++) v.v[g] = ACTIVATION(v.v[g]);
#endif
        v.store(c + at);
      }
    }
  }
}
