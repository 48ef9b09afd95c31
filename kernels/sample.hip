// The next token, drawn on the GPU so that its id is all that leaves it: repetition penalty (Keskar et al. 2019),
// temperature, top-k, top-p (Holtzman et al. 2020), as gpt/generate.py defines them.
//
// No sort: a threshold on the logits is found bit by bit, the highest first, by counting (top-k) or weighing (top-p) what
// lies at or above it: 32 passes over integers in the order of the floats, which one block keeps in registers where HELD of
// them per thread are enough, and else in memory. Of equal logits at a threshold those of lower ids come first. The draw
// walks the ids in their order. Sums have a fixed order: the same seed draws the same token.
//
// Set by the host: T (bf16 | float), HELD (keys that a thread keeps; 0 where that would be too many).
#include "common.h"

constexpr int THREADS = 1024, WARPS = THREADS / WARP;

// Floats as integers of the same order, and back; 0, which stands below every number, for one that is not finite.
DEVICE uint32 key_of(float v) {
  uint32 bits = bits_of(v);
  return !is_finite(v) ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float value_of(uint32 key) { return float_of(key >> 31 ? key & 0x7fffffffu : ~key); }

// The keys of a row as one thread of its block sees it: those of a stretch of neighboring ids.
struct Row {
  uint32* keys;  // in memory, for what is not held
  int first, end;
  uint32 held[HELD > 0 ? HELD : 1];
  float largest, rate;  // weights are 2^((value - largest) rate)
  Shared<float> scratch;  // [WARPS]

  DEVICE float weight(uint32 key) const { return exp2_fast((value_of(key) - largest) * rate); }

  // Calls f(id, key) for the ids in their order.
  template <class F> DEVICE void each(F f) const {
    if (HELD > 0) {
      UNROLL for (int i = 0; i < HELD; i++) {
        if (first + i < end) f(first + i, held[i]);
      }
    } else {
      for (int i = first; i < end; i++) f(i, keys[i]);
    }
  }
  // How many keys are at or above `least`, and their weights' sum.
  DEVICE int count_from(uint32 least) const {
    int count = 0;
    each([&](int, uint32 key) { count += key >= least; });
    return (int)block_sum<WARPS>((float)count, scratch);  // exact: below 2^24
  }
  DEVICE float weight_from(uint32 least) const {
    float total = 0;
    each([&](int, uint32 key) { total += key >= least ? weight(key) : 0; });
    return block_sum<WARPS>(total, scratch);
  }

  // The sum of `mine` over the threads before this one (before) and with it (through), and over all of them. One thread's
  // `through` is the next one's `before`, to the bit: no number falls between two threads.
  DEVICE void sum_up(float mine, float& before, float& through, float& all) {
    float in_warp = 0, warp_total = 0, earlier = 0;
    for (int lane = 0; lane < WARP; lane++) {
      float v = shuffle(mine, lane);
      if (lane == lane_id()) in_warp = warp_total;
      warp_total += v;
    }
    if (lane_id() == 0) scratch[warp_id()] = warp_total;
    sync();
    all = 0;
    for (int warp = 0; warp < WARPS; warp++) {
      if (warp == warp_id()) earlier = all;
      all += scratch[warp];
    }
    sync();
    before = earlier + in_warp;
    through = earlier + (in_warp + mine);
  }
};

// The largest key for which enough(key) holds, which does so up to some key; 0 if for none.
template <class Enough> DEVICE uint32 highest(Enough enough) {
  uint32 key = 0;
  NO_UNROLL for (int bit = 31; bit >= 0; bit--) {
    if (enough(key | 1u << bit)) key |= 1u << bit;
  }
  return key;
}

// token [1] = the id that uniform [1], in [0, 1), draws; -1 where a logit is not finite. seen [vocab] marks the tokens that
// the penalty is for, and from then on this one. keys [vocab] is scratch memory. rate is log2(e) / temperature, or 0 for
// the likeliest token; top_k 0 and top_p 1 are off.
KERNEL(1024) sample(const T* logits, unsigned char* seen, const double* uniform, int* token, uint32* keys, int vocab,
                    float penalty, float rate, int top_k, float top_p) {
  SHARED(float, scratch, WARPS);
  int stretch = HELD > 0 ? HELD : (vocab + THREADS - 1) / THREADS, first = minimum(vocab, thread_id() * stretch);
  Row row{keys, first, minimum(vocab, first + stretch), {}, 0, rate, scratch};
  float mine = -infinity();
  bool finite = true;
  auto key_at = [&](int i) {
    float v = to_float(logits[i]);
    finite = finite && is_finite(v);
    if (seen[i]) v = v > 0 ? v / penalty : v * penalty;
    mine = maximum(mine, v);
    return key_of(v);
  };
  if (HELD > 0) {
    UNROLL for (int i = 0; i < HELD; i++) {
      if (first + i < row.end) row.held[i] = key_at(first + i);
    }
  } else {
    for (int i = first; i < row.end; i++) keys[i] = key_at(i);
  }
  if (block_max<WARPS>(finite ? 0.0f : 1.0f, scratch) > 0) {
    if (thread_id() == 0) token[0] = -1;
    return;
  }
  row.largest = block_max<WARPS>(mine, scratch);
  uint32 largest = key_of(row.largest);

  // Kept are the keys above `least`, and of those equal to it the first `ties`.
  uint32 least = rate > 0 ? 1 : largest;
  int ties = rate > 0 ? vocab : 1;
  if (rate > 0 && top_k > 0 && top_k < vocab) {
    least = highest([&](uint32 key) { return row.count_from(key) >= top_k; });
    ties = top_k - row.count_from(least + 1);
  }
  if (rate > 0 && top_p < 1) {
    float wanted = row.weight_from(least + 1);
    if (least > 1) wanted += ties * row.weight(least);
    wanted *= top_p;
    uint32 nucleus = highest([&](uint32 key) { return row.weight_from(key) >= wanted; });
    if (nucleus > 1 && nucleus >= least) {
      if (nucleus > least) ties = vocab;
      least = nucleus;
      float missing = minimum((wanted - row.weight_from(least + 1)) / row.weight(least), 1e9f);
      ties = maximum(1, minimum(ties, (int)missing + (missing > (int)missing)));
    }
  }

  float equal = 0, weight = 0, rank, before, through, all;
  row.each([&](int, uint32 key) { equal += key == least; });
  row.sum_up(equal, rank, through, all);
  auto add_kept = [&](float& sum, int& place, uint32 key) {
    bool kept = key > least || (key == least && place++ < ties);
    if (kept) sum += rate > 0 ? row.weight(key) : 1;
    return kept;
  };
  int place = (int)rank;
  row.each([&](int, uint32 key) { add_kept(weight, place, key); });
  row.sum_up(weight, before, through, all);
  float drawn = minimum((float)uniform[0] * all, float_of(bits_of(all) - 1));  // below the sum, whatever the rounding
  if (drawn < before || drawn >= through) return;
  // Among this thread's the last that is kept, unless an earlier one reaches what is drawn.
  int chosen = -1;
  float sum = 0;
  place = (int)rank;
  row.each([&](int i, uint32 key) {
    bool reached = chosen >= 0 && drawn - before < sum;
    if (add_kept(sum, place, key) && !reached) chosen = i;
  });
  token[0] = chosen;
  seen[chosen] = 1;
}
