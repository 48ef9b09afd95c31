// C = A B on the matrix tile, fused with a transformer's next steps: bias, activation or addition. It runs if no vendor
// library has the product, and it lets a whole training step run on any compiler.
//
// A block of four warps computes SIDE x SIDE elements of C, each warp a quarter, WARP_SIDE x WARP_SIDE, as 2 x 2 tiles.
// Slices of A and B, DEPTH deep, go through shared memory; accumulators stay in registers. A and B may each be stored
// transposed. Traffic: A is read N / SIDE times and B M / SIDE times, mostly from the cache. One warp adds up an
// element in the order of k: deterministic.
//
// A, B and C may be stacks of matrices of one shape, with stride_a, stride_b, ... elements from one matrix to the next.
// block_y counts rows of blocks through all of them: with m = 100, SIDE = 64 and a stack of 3, blocks 0 and 1 are
// matrix 0, blocks 2 and 3 matrix 1, blocks 4 and 5 matrix 2.
//
// Set by the host: T (bf16 | float), OUT (bf16 | float), A_TRANSPOSED, B_TRANSPOSED (0 | 1), WIDTH (1 if a row of A or
// B is not whole vectors, else a vector's elements), EPILOGUE (see below), ACTIVATION (gelu | relu), SIDE, THREADS
// (four warps).
#include "tile.h"

#define STORE 0            // C = A B
#define ADD 1              // C = alpha A B + beta addend; addend may be C
#define BIAS 2             // C = A B + bias
#define BIAS_ACTIVATION 3  // pre_activation = A B + bias, C = activation(pre_activation)

typedef Tile<T> M;
constexpr int WARP_SIDE = SIDE / 2, TILES = WARP_SIDE / 16;
static_assert(THREADS == 4 * WARP, "two rows of two warps");
constexpr int DEPTH = 32, PAD = 16 / sizeof(T);

// A slice of an operand in shared memory. It lies as in global memory, [SIDE][DEPTH] or [DEPTH][SIDE], with rows padded
// by sixteen bytes, so that lanes of a column fall on different banks.
template <bool DEPTH_FIRST> struct Operand {
  static constexpr int ROWS = DEPTH_FIRST ? DEPTH : SIDE, COLUMNS = DEPTH_FIRST ? SIDE : DEPTH, STRIDE = COLUMNS + PAD;

  // Element (r, c) of the slice is element (row + r, column + c) of p [rows, columns], 0 outside.
  static DEVICE void fill(Shared<T> slice, const T* p, int row, int column, int rows, int columns) {
    for (int i = thread_id() * WIDTH; i < ROWS * COLUMNS; i += THREADS * WIDTH) {
      int r = i / COLUMNS, c = i % COLUMNS;
      bool inside = row + r < rows && column + c < columns;
      const T* from = p + (index_t)(row + r) * columns + column + c;
      if constexpr (WIDTH > 1) {
        Vector<T> v = {};
        if (inside) v = *(const Vector<T>*)from;
        slice.set_vector(r * STRIDE + c, v);
      } else {
        slice[r * STRIDE + c] = inside ? *from : T{};
      }
    }
  }
};

// A is [M, K] or, transposed, [K, M]; B is [K, N] or [N, K]; C, addend and pre_activation are [M, N].
// grid: ceil(n / SIDE) x (matrices * ceil(m / SIDE)), block: THREADS
KERNEL(THREADS) matmul(const T* a, const T* b, OUT* c, const T* bias, T* pre_activation, const OUT* addend, int m,
                       int n, int k, index_t stride_a, index_t stride_b, index_t stride_c, index_t stride_addend,
                       float alpha, float beta) {
  typedef Operand<A_TRANSPOSED> OperandA;
  typedef Operand<!B_TRANSPOSED> OperandB;
  SHARED(T, slice_a, OperandA::ROWS * OperandA::STRIDE);
  SHARED(T, slice_b, OperandB::ROWS * OperandB::STRIDE);
  // The block's matrix of the stack, its elements of C, and the warp's among those
  int row_blocks = (m + SIDE - 1) / SIDE;
  index_t matrix = block_y() / row_blocks;
  a += matrix * stride_a, b += matrix * stride_b, c += matrix * stride_c, addend += matrix * stride_addend;
  int row = block_y() % row_blocks * SIDE, column = block_x() * SIDE;
  int warp_row = warp_id() / 2 * WARP_SIDE, warp_column = warp_id() % 2 * WARP_SIDE;
  M::Acc acc[TILES][TILES] = {};

  for (int depth = 0; depth < k; depth += DEPTH) {
    // The block fills both slices, then each warp multiplies its tiles.
    if (A_TRANSPOSED) OperandA::fill(slice_a, a, depth, row, k, m);
    else OperandA::fill(slice_a, a, row, depth, m, k);
    if (B_TRANSPOSED) OperandB::fill(slice_b, b, column, depth, n, k);
    else OperandB::fill(slice_b, b, depth, column, k, n);
    sync();
    UNROLL for (int step = 0; step < DEPTH; step += 16) {
      M::A left[TILES];
      UNROLL for (int i = 0; i < TILES; i++) {
        int r = warp_row + 16 * i;
        constexpr int STRIDE = OperandA::STRIDE;
        if constexpr (A_TRANSPOSED) left[i] = M::load_a_transposed(slice_a + (step * STRIDE + r), STRIDE);
        else left[i] = M::load_a(slice_a + (r * STRIDE + step), STRIDE);
      }
      UNROLL for (int j = 0; j < TILES; j++) {
        int s = warp_column + 16 * j;
        if constexpr (B_TRANSPOSED) {
          auto right = M::load_b_transposed(slice_b + (s * OperandB::STRIDE + step), OperandB::STRIDE);
          UNROLL for (int i = 0; i < TILES; i++) M::multiply_add(acc[i][j], left[i], right);
        } else {
          auto right = M::load_b(slice_b + (step * OperandB::STRIDE + s), OperandB::STRIDE);
          UNROLL for (int i = 0; i < TILES; i++) M::multiply_add(acc[i][j], left[i], right);
        }
      }
    }
    sync();
  }

  // The epilogue, element by element
  UNROLL for (int i = 0; i < TILES; i++) {
    UNROLL for (int j = 0; j < TILES; j++) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        int r = row + warp_row + 16 * i + M::row(e), s = column + warp_column + 16 * j + M::column(e);
        if (r >= m || s >= n) continue;
        index_t at = (index_t)r * n + s;
        float v = acc[i][j].v[e];
#if EPILOGUE == ADD
        v = alpha * v + beta * to_float(addend[at]);
#elif EPILOGUE == BIAS
        v += to_float(bias[s]);
#elif EPILOGUE == BIAS_ACTIVATION
        T sum = from_float<T>(v + to_float(bias[s]));
        pre_activation[at] = sum;
        v = ACTIVATION(to_float(sum));
#endif
        c[at] = from_float<OUT>(v);
      }
    }
  }
}
