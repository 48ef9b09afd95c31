// Which probabilities of a tile dropout keeps.
//
// Two elements of a row whose columns are 8 apart share a hash (`Dropout` in common.h), for example those in columns 3
// and 11. A lane has both of them in its tile, or it has one and its partner, another lane, has the other. On AMD each
// of two partners computes half of the hashes, and they exchange 16 bits of each. On NVIDIA an element is decided when
// it is asked for: registers have no room for all answers.
#include "slice.h"

namespace gpt {

// The mask of a tile takes `rows`, which are `begun_row` of its queries, and `first`, the column of its first key.
// - QueriesMask<M> is for a tile with queries as rows. `rows` has a number for each slot, and mask[e] says whether
//   element e is kept.
// - KeysMask<M, N> is for N tiles with keys as rows, and `rows` is in shared memory. Of element e of tile i,
//   mask.keep(i, e, p) returns the probability p or 0, and then mask.scale(i, e, p, v) returns v / (1 - rate) or 0.
#if LAYOUT > LAYOUT_MMA
// A hash is mix(a ^ b), where a comes from the row and b from the column. mix begins with x ^ x >> 16, and
// mix_begin(a ^ b) is mix_begin(a) ^ mix_begin(b). So each of the two is computed where it changes.
DEVICE uint32 mix_begin(uint32 x) { return x ^ x >> 16; }
DEVICE uint32 mix_end(uint32 x) {
  x *= 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}
DEVICE uint32 begun_row(const Dropout& dropout, uint32 row) { return mix_begin(dropout.row_hash(row)); }
DEVICE uint32 begun_column(uint32 column) { return mix_begin((column & ~8u) * 0x9e3779b9u); }

// Whether the elements of a hash's lower and upper half are kept. The threshold's lower half is 0.
DEVICE bool keeps_lower(const Dropout& dropout, uint32 bits) {
  return (unsigned short)bits >= (unsigned short)(dropout.threshold >> 16);
}
DEVICE bool keeps_upper(const Dropout& dropout, uint32 bits) { return bits >= dropout.threshold; }

// The value in lane_id() ^ LANES
template <int LANES> DEVICE uint32 from_partner(uint32 v) {
#if defined(ON_AMD)
  if constexpr (LANES == 8) return __builtin_amdgcn_update_dpp(0, v, 0x128, 0xf, 0xf, true);  // 16 lanes, turned by 8
#endif
  return bits_of(shuffle_xor(float_of(v), LANES));
}
// The partner is lane ^ LANES, and the lane with that bit takes the upper halves. Of each four elements, the lower lane
// computes the hashes of the first two, and the upper lane those of the last two: hash i is that of element
// 4 (i / 2) + i % 2 + `ahead`.
template <int LANES> DEVICE int ahead() { return lane_id() & LANES ? 2 : 0; }
template <int LANES, int N>
DEVICE void exchange(bool (&keeps)[N], const Dropout& dropout, const uint32 (&hashes)[N / 2]) {
  uint32 mine = ahead<LANES>() ? 0x07060302u : 0x05040100u, others = ahead<LANES>() ? 0x05040100u : 0x07060302u;
  UNROLL for (int e = 0; e < N; e += 4) {
    uint32 first = hashes[e / 2], second = hashes[e / 2 + 1];
    uint32 own = permute_bytes(second, first, mine), got = from_partner<LANES>(permute_bytes(second, first, others));
    uint32 lower = ahead<LANES>() ? got : own, upper = ahead<LANES>() ? own : got;
    keeps[e] = keeps_lower(dropout, lower), keeps[e + 1] = keeps_upper(dropout, lower);
    keeps[e + 2] = keeps_lower(dropout, upper), keeps[e + 3] = keeps_upper(dropout, upper);
  }
}

// The value in lane I of the 16 lanes that this one belongs to
template <int I> DEVICE uint32 from_lane(uint32 v) {
#if defined(ON_AMD)
  return __builtin_amdgcn_update_dpp(0, v, 0x150 + I, 0xf, 0xf, true);
#else
  return bits_of(shuffle(float_of(v), lane_id() / 16 * 16 + I));
#endif
}

template <class M> struct QueriesMask {
  static constexpr int HASHES = M::ELEMENTS / 2, PARTNER = WARP / 2;
  // Whether elements i and i + 4 are in columns that are 8 apart, if i % 8 < 4
  static constexpr bool HAS_BOTH = M::EDGE == 32 || (LAYOUT == LAYOUT_WMMA11 && sizeof(typename M::Element) == 2);
  bool keeps[M::ELEMENTS];

  // The 16 lanes take the same columns, and each begins only one of them.
  DEVICE QueriesMask(const Dropout& dropout, const uint32 (&rows)[1], int first) {
    int i = lane_id() % HASHES;
    int column = HAS_BOTH ? M::column(i / 4 * 8 + i % 4) : M::column(i / 2 * 4 + i % 2) + ahead<PARTNER>();
    uint32 hashes[HASHES];
    end(hashes, rows[0], begun_column(first + column));
    if constexpr (HAS_BOTH) {
      UNROLL for (int e = 0; e < M::ELEMENTS; e++) {
        uint32 bits = hashes[e / 8 * 4 + e % 4];
        keeps[e] = e % 8 < 4 ? keeps_lower(dropout, bits) : keeps_upper(dropout, bits);
      }
    } else {
      exchange<PARTNER>(keeps, dropout, hashes);
    }
  }
  DEVICE bool operator[](int e) const { return keeps[e]; }

 private:
  template <int I = 0> static DEVICE void end(uint32 (&hashes)[HASHES], uint32 row, uint32 columns) {
    hashes[I] = mix_end(row ^ from_lane<I>(columns));
    if constexpr (I + 1 < HASHES) end<I + 1>(hashes, row, columns);
  }
};

template <class M, int N> struct KeysMask {
  const Dropout& dropout;
  bool keeps[N][M::ELEMENTS];

  DEVICE KeysMask(const Dropout& dropout, Shared<uint32> rows, int first) : dropout(dropout) {
    uint32 key = begun_column(first + M::row(0));
    int step = M::column(1) - M::column(0);
    rows = rows + (M::column(0) + ahead<8>() * step);
    UNROLL for (int i = 0; i < N; i++) {
      uint32 hashes[M::ELEMENTS / 2];
      UNROLL for (int j = 0; j < M::ELEMENTS / 2; j++) {
        hashes[j] = mix_end(rows[M::EDGE * i + M::column(4 * (j / 2) + j % 2) - M::column(0)] ^ key);
      }
      exchange<8>(keeps[i], dropout, hashes);
    }
  }
  DEVICE float keep(int i, int e, float p) const { return keeps[i][e] ? p : 0; }
  DEVICE float scale(int i, int e, float, float v) const { return keeps[i][e] ? v * dropout.scale : 0; }
};
#else
DEVICE uint32 begun_row(const Dropout& dropout, uint32 row) { return dropout.row_hash(row); }

template <class M> struct QueriesMask {
  const Dropout& dropout;
  const uint32 (&rows)[M::SLOTS];
  int first;

  DEVICE QueriesMask(const Dropout& dropout, const uint32 (&rows)[M::SLOTS], int first)
      : dropout(dropout), rows(rows), first(first) {}
  DEVICE bool operator[](int e) const { return dropout.keeps(rows[M::slot(e)], first, M::column(e)); }
};
template <class M, int N> struct KeysMask {
  const Dropout& dropout;
  Shared<uint32> rows;
  int first;

  DEVICE KeysMask(const Dropout& dropout, Shared<uint32> rows, int first)
      : dropout(dropout), rows(rows), first(first) {}
  // A probability that is dropped is negative in between.
  DEVICE float keep(int i, int e, float& p) const {
    bool keeps = dropout.keeps(rows[M::EDGE * i + M::column(e)], first, M::row(e));
    float kept = keeps ? p : 0;
    p = keeps ? p : -p;
    return kept;
  }
  DEVICE float scale(int, int, float& p, float v) const {
    float scaled = p < 0 ? 0 : v * dropout.scale;
    p = absolute(p);
    return scaled;
  }
};
#endif

}  // namespace gpt

using namespace gpt;
