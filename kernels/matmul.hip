// C = A B on the matrix tile, with what surrounds a product in a transformer folded in: the path where no vendor library
// has one, and what lets a whole training step run on any compiler.
//
// A block of four warps computes 64 x 64 elements of C, a warp 32 x 32 of them as 2 x 2 tiles. Slices of A and B, DEPTH
// deep, go through shared memory; accumulators stay in registers. A and B may each be stored transposed. Traffic: A is
// read N / 64 times and B M / 64 times, mostly from the cache. One warp sums a product in the order of k: deterministic.
//
// A, B and C may be stacks of matrices of one shape, `stride_a` … elements from one to the next: block_y counts rows of
// blocks through all of them.
//
// Set by the host: T (bf16 | float), OUT (bf16 | float), A_TRANSPOSED, B_TRANSPOSED (0 | 1), WIDTH (1 if a row of A or B
// is not whole vectors, else a vector's elements), EPILOGUE (see below), ACTIVATION (gelu | relu).
#include "tile.h"

#define STORE 0            // C = A B
#define ADD 1              // C = alpha A B + beta addend; addend may be C
#define BIAS 2             // C = A B + bias
#define BIAS_ACTIVATION 3  // before = A B + bias, C = activation(before)

typedef Tile<T> M;
constexpr int SIDE = 64, WARP_SIDE = 32, TILES = WARP_SIDE / 16, THREADS = 4 * WARP;
constexpr int DEPTH = 32, PAD = 16 / sizeof(T);

// How a slice of an operand lies in shared memory: as in global memory, [SIDE][DEPTH] or [DEPTH][SIDE], rows padded by
// sixteen bytes so that lanes of a column fall on different banks.
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

// A is [M, K] or, transposed, [K, M]; B is [K, N] or [N, K]; C, addend and before are [M, N].
KERNEL(4 * WARP) matmul(const T* a, const T* b, OUT* c, const T* bias, T* before, const OUT* addend, int m, int n, int k,
                        index_t stride_a, index_t stride_b, index_t stride_c, index_t stride_addend, float alpha,
                        float beta) {
  typedef Operand<A_TRANSPOSED> OperandA;
  typedef Operand<!B_TRANSPOSED> OperandB;
  SHARED(T, slice_a, OperandA::ROWS * OperandA::STRIDE);
  SHARED(T, slice_b, OperandB::ROWS * OperandB::STRIDE);
  int row_blocks = (m + SIDE - 1) / SIDE;
  index_t matrix = block_y() / row_blocks;
  a += matrix * stride_a, b += matrix * stride_b, c += matrix * stride_c, addend += matrix * stride_addend;
  int row = block_y() % row_blocks * SIDE, column = block_x() * SIDE;
  int warp_row = warp_id() / 2 * WARP_SIDE, warp_column = warp_id() % 2 * WARP_SIDE;
  M::Acc acc[TILES][TILES] = {};

  for (int depth = 0; depth < k; depth += DEPTH) {
    if (A_TRANSPOSED) OperandA::fill(slice_a, a, depth, row, k, m);
    else OperandA::fill(slice_a, a, row, depth, m, k);
    if (B_TRANSPOSED) OperandB::fill(slice_b, b, column, depth, n, k);
    else OperandB::fill(slice_b, b, depth, column, k, n);
    sync();
    UNROLL for (int step = 0; step < DEPTH; step += 16) {
      M::A left[TILES];
      UNROLL for (int i = 0; i < TILES; i++) {
        int r = warp_row + 16 * i;
        if constexpr (A_TRANSPOSED) left[i] = M::load_a_transposed(slice_a + (step * OperandA::STRIDE + r), OperandA::STRIDE);
        else left[i] = M::load_a(slice_a + (r * OperandA::STRIDE + step), OperandA::STRIDE);
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
        before[at] = sum;
        v = ACTIVATION(to_float(sum));
#endif
        c[at] = from_float<OUT>(v);
      }
    }
  }
}
