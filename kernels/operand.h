// Operand: a slice of an operand of a matrix product in shared memory. It says how a block of threads fills it, and how
// a warp reads tiles of tile.h from it. matmul.hip is written in these.
#include "tile_float.h"

namespace gpt {

// Rows first ... first + SIDE - 1 of a matrix with `side` rows and k columns, DEPTH columns at a time. The product adds
// up over its columns. In global memory it is [side, k] or, if DEPTH_FIRST, [k, side]. THREADS threads fill a slice.
// WIDTH is 1 if the rows in memory are not whole vectors. Columns from k on are zeros. Rows from `side` on are zeros or
// repeat other rows, because they reach only elements outside of the product. Members:
//   DEPTH, SIZE                 columns of a slice, its elements in shared memory
//   STEP, PRODUCTS              columns that a warp loads at once, the number of tiles in them
//   begin(depth)                may begin to read the slice of the columns from `depth` on, while others use this one
//   finish(depth)               fills shared memory with it, after begin(depth). Then, after a sync:
//   load_a(row, step)           the columns of the slice from `step` on of rows row ... row + 15, as left operands of
//                               PRODUCTS products, part[0], part[1], ...
//   load_b(row, step)           the same as right operands
//
// Here, for NVIDIA's matrix unit, which can transpose tiles as it loads them, and for float32, a slice lies in shared
// memory as in global memory, [SIDE][DEPTH] or [DEPTH][SIDE], with rows padded by sixteen bytes, so that lanes of a
// column fall on different banks.
template <class T, int SIDE, bool DEPTH_FIRST, int WIDTH, int THREADS> struct Operand {
  typedef Tile<T> M;
  static constexpr int DEPTH = 32, STEP = 16, PRODUCTS = 1;
  static constexpr int ROWS = DEPTH_FIRST ? DEPTH : SIDE, COLUMNS = DEPTH_FIRST ? SIDE : DEPTH;
  static constexpr int STRIDE = COLUMNS + Vector<T>::SIZE, SIZE = ROWS * STRIDE;
  template <class Tile> struct Fragment {
    Tile part[1];
  };

  Shared<T> slice;
  const T* matrix;
  int first, side, k;

  DEVICE Operand(Shared<T> slice, const T* matrix, int first, int side, int k)
      : slice(slice), matrix(matrix), first(first), side(side), k(k) {}

  DEVICE void begin(int) {}
  DEVICE void finish(int depth) const {
    if (DEPTH_FIRST) fill(depth, first, k, side);
    else fill(first, depth, side, k);
  }
  // Element (r, c) of the slice is element (row + r, column + c) of the matrix [rows, columns], 0 outside.
  DEVICE void fill(int row, int column, int rows, int columns) const {
    for (int i = thread_id() * WIDTH; i < ROWS * COLUMNS; i += THREADS * WIDTH) {
      int r = i / COLUMNS, c = i % COLUMNS;
      bool inside = row + r < rows && column + c < columns;
      const T* from = matrix + (index_t)(row + r) * columns + column + c;
      if constexpr (WIDTH > 1) {
        Vector<T> v = {};
        if (inside) v = *(const Vector<T>*)from;
        slice.set_vector(r * STRIDE + c, v);
      } else {
        slice[r * STRIDE + c] = inside ? *from : T{};
      }
    }
  }
  DEVICE auto load_a(int row, int step) const {
    if constexpr (DEPTH_FIRST) return fragment(M::load_a_transposed(slice + (step * STRIDE + row), STRIDE));
    else return fragment(M::load_a(slice + (row * STRIDE + step), STRIDE));
  }
  DEVICE auto load_b(int row, int step) const {
    if constexpr (DEPTH_FIRST) return fragment(M::load_b(slice + (step * STRIDE + row), STRIDE));
    else return fragment(M::load_b_transposed(slice + (row * STRIDE + step), STRIDE));
  }
  template <class Tile> static DEVICE Fragment<Tile> fragment(const Tile& tile) { return Fragment<Tile>{{tile}}; }
};

#if LAYOUT && LAYOUT != LAYOUT_MMA
// For AMD's matrix units, which want neighboring columns of a row in a lane. Shared memory has vectors of eight
// columns, which a lane reads at once. If DEPTH_FIRST, the slice is transposed once, on its way there. A thread keeps
// its part of the next slice in registers while the block multiplies this one.
//
// Vector (r, c), row r and columns 8 c ... 8 c + 7, is at place(r, c): those of one c are together, rows in an order
// that puts vectors which lanes read or write at the same time in different banks. Eight vectors fill the 32 banks. For
// example, with SIDE = 128 and DEPTH = 32, eight threads write rows 2 and 3, c = 0 ... 3, at once. That is at 2, 128 +
// 0, 256 + 6, 384 + 4, and at 3, 128 + 1, 256 + 7, 384 + 5: each has another remainder by 8.
//
// A slice of CDNA has 64 columns: a row of it is a whole cache line of 128 bytes, of which the L2 sends no less. With
// 128 rows it takes 16 KiB, and two slices leave room for two blocks in 64 KiB.
//
// begin and finish have two parts each: aim and load, clear and store. `load` and `store` have no branches, so that
// products can be scheduled between their instructions.
template <int SIDE, bool DEPTH_FIRST, int WIDTH, int THREADS> struct Operand<bf16, SIDE, DEPTH_FIRST, WIDTH, THREADS> {
  typedef Tile<bf16> M;
  typedef Words<4> V;
  static constexpr int DEPTH = LAYOUT == LAYOUT_MFMA ? 64 : 4096 / SIDE, SIZE = DEPTH * SIDE;
  static constexpr int LINE = DEPTH / 8, HELD = SIZE / 8 / THREADS;  // vectors of a row and of a thread
  static constexpr int WRITES = DEPTH_FIRST ? 8 : HELD;  // of shared memory, by a thread, for a slice
  // A lane has WORDS words of a row for one product, half a vector on CDNA. So there it reads two products at once.
  static constexpr int VECTORS = M::WORDS < 4 ? 1 : M::WORDS / 4, PRODUCTS = 4 * VECTORS / M::WORDS;
  static constexpr int STEP = 16 * PRODUCTS;
  template <class Tile> struct Fragment {
    Tile part[PRODUCTS];
  };

  Shared<bf16> slice;
  const bf16* matrix;  // its element (first, 0)
  int k, left;  // left: rows from `first` on
  index_t step;  // elements from one column to the next
  uint32 offset[HELD];  // bytes from a slice's first element to the thread's vectors: a slice spans less than 4 GiB
  V held[HELD];

  DEVICE Operand(Shared<bf16> slice, const bf16* all, int first, int side, int k)
      : slice(slice), matrix(all + (DEPTH_FIRST ? first : (index_t)first * k)), k(k), left(side - first),
        step(DEPTH_FIRST ? side : 1) {
    UNROLL for (int v = 0; v < HELD; v++) {
      int r = minimum(row(v), DEPTH_FIRST && WIDTH > 1 ? left - 8 : left - 1);  // rows outside repeat others
      offset[v] = 2 * (uint32)(DEPTH_FIRST ? column(v) * side + r : r * k + column(v));
    }
  }

  static DEVICE int place(int r, int c) { return c * SIDE + (r ^ c * (8 / LINE) ^ (DEPTH_FIRST ? r / 8 % 8 : 0)); }

  // The first row and column of a thread's vector v in global memory. LINE threads have neighboring vectors of a row.
  // If DEPTH_FIRST, vectors are eight rows of one column. Eight threads have neighbors, and each has HELD columns, that
  // is a part of eight vectors of shared memory.
  static constexpr int PARTS = 8 / HELD;
  static DEVICE int row(int v) {
    if (DEPTH_FIRST) return 8 * (thread_id() % 8 + thread_id() / (8 * PARTS) % (SIDE / 64) * 8);
    return (thread_id() + v * THREADS) / LINE;
  }
  static DEVICE int column(int v) {
    if (DEPTH_FIRST) return 8 * (thread_id() / (8 * PARTS) / (SIDE / 64)) + thread_id() / 8 % PARTS * HELD + v;
    return 8 * (thread_id() % LINE);
  }

  DEVICE void begin(int depth) { aim(depth), load(depth); }
  // In the last slice and after it, any vector of the matrix is read in place of those that do not exist.
  DEVICE void aim(int depth) {
    if (WIDTH > 1 && depth + DEPTH > k) {
      UNROLL for (int v = 0; v < HELD; v++) offset[v] = depth + column(v) < k ? offset[v] : 0;
    }
  }
  DEVICE void load(int depth) {
    const char* from = (const char*)(matrix + (depth < k ? depth : 0) * step);
    if constexpr (WIDTH > 1) {
      UNROLL for (int v = 0; v < HELD; v++) held[v] = *(const V*)(from + offset[v]);
    } else {
      UNROLL for (int v = 0; v < HELD; v++) {
        int deep = k - depth - column(v), inside = DEPTH_FIRST ? deep > 0 ? left - row(v) : 0 : deep;
        const bf16* p = (const bf16*)(from + offset[v]);
        UNROLL for (int e = 0; e < 8; e += 2) {
          held[v].w[e / 2] = pack(e < inside ? p[e] : bf16{}, e + 1 < inside ? p[e + 1] : bf16{});
        }
      }
    }
  }
  DEVICE void finish(int depth) { clear(depth), store(); }
  DEVICE void clear(int depth) {
    if (depth + DEPTH > k) {
      UNROLL for (int v = 0; v < HELD; v++) {
        UNROLL for (auto& word : held[v].w) word = depth + column(v) < k ? word : 0;
      }
    }
  }
  DEVICE void store() {
    if constexpr (DEPTH_FIRST) {
      // place(r + e, c) is place(r, c) ^ e. Eight places take as many registers, which RDNA lacks.
      int to = 8 * place(row(0), column(0) / 8) + column(0) % 8;
      if (LAYOUT != LAYOUT_MFMA) to = opaque(to);
      UNROLL for (int e = 0; e < 8; e++) {
        Words<HELD / 2> words;
        UNROLL for (int v = 0; v < HELD; v += 2) {
          uint32 first = held[v].w[e / 2], second = held[v + 1].w[e / 2];
          words.w[v / 2] = e % 2 ? halves<true>(first, second) : halves<false>(first, second);
        }
        words.store(slice + (to ^ 8 * e));
      }
    } else {
      UNROLL for (int v = 0; v < HELD; v++) held[v].store(slice + 8 * place(row(v), column(v) / 8));
    }
  }

  // Vectors of the lane's row, taken apart into the words of PRODUCTS tiles. On CDNA the first product's columns are 0
  // to 3, 8 to 11, 16 to 19 and 24 to 27 of 32. Which they are does not matter, because they are the same for a and b.
  DEVICE auto load_a(int row, int step) const { return load<typename M::A>(row, step); }
  DEVICE auto load_b(int row, int step) const { return load<typename M::B>(row, step); }
  template <class Tile> DEVICE Fragment<Tile> load(int row, int step) const {
    Fragment<Tile> f;
    int c = step / 8 + M::lane_k() * PRODUCTS / 8;
    UNROLL for (int v = 0; v < VECTORS; v++) {
      auto words = Words<4>::load(slice + 8 * place(row + lane_low(), c + v));
      UNROLL for (int w = 0; w < 4; w++) f.part[(4 * v + w) / M::WORDS].w[(4 * v + w) % M::WORDS] = words.w[w];
    }
    return f;
  }
};
#endif

// A lane's elements of a tile of sums, v[ELEMENTS], in an order that has neighboring columns side by side.
template <class M> struct Neighbors {
  const float* v;

  DEVICE Neighbors(const typename M::Acc& acc) : v(acc.v) {}
  static DEVICE int column(int i) { return M::column(i); }
};
#if LAYOUT == LAYOUT_WMMA11
// Two lanes have a row's columns by turns. They exchange half of them: then the first has columns 0 to 7.
template <> struct Neighbors<Tile<bf16>> {
  float v[8];

  DEVICE Neighbors(const Tile<bf16>::Acc& acc) {
    bool second = lane_high();
    UNROLL for (int i = 0; i < 4; i++) {
      float kept = second ? acc.v[4 + i] : acc.v[i];
      float given = shuffle_xor(second ? acc.v[i] : acc.v[4 + i], 16);
      v[2 * i] = second ? given : kept, v[2 * i + 1] = second ? kept : given;
    }
  }
  static DEVICE int column(int i) { return 8 * lane_high() + i; }
};
#endif

}  // namespace gpt

using namespace gpt;
