// The next token, drawn on the GPU so that its id is all that leaves it: repetition penalty (Keskar et al. 2019),
// temperature, top-k, top-p (Holtzman et al. 2020), as gpt/generate.py defines them.
//
// No sort of the row: a threshold on the logits is found bit by bit, the highest first, by counting (top-k) or weighing
// (top-p) what lies at or above it, in 32 passes over keys, integers in the order of the floats. One block does it. Where
// few tokens are wanted, it first finds few keys that must hold them: with the k-th largest of the threads' own largest as
// a bound, at least k keys and hardly more are at or above it. From there on a thread has one key, and a pass costs next to
// nothing. Of equal logits at a threshold those of lower ids come first. The draw walks the ids in their order. Sums have
// a fixed order: the same seed draws the same token.
//
// Set by the host: T (bf16 | float).
#include "common.h"

constexpr int THREADS = 1024, WARPS = THREADS / WARP;

// Floats as integers of the same order, and back; 0, which stands below every number, for one that is not finite.
DEVICE uint32 key_of(float v) {
  uint32 bits = bits_of(v);
  return !is_finite(v) ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float value_of(uint32 key) { return float_of(key >> 31 ? key & 0x7fffffffu : ~key); }

// The keys that a token may be drawn from: all of them in memory, or the few that are left in shared memory.
struct Row {
  const uint32* keys;    // [vocab]
  Shared<uint32> few;    // [THREADS]
  Shared<int> few_ids;   // [THREADS], ascending
  Shared<float> scratch; // [WARPS]
  int vocab, count;      // of the few; 0 where all are taken
  float largest, rate;   // weights are 2^((value - largest) rate)

  DEVICE float weight(uint32 key) const { return exp2_fast((value_of(key) - largest) * rate); }

  // Calls f(key) for this thread's part of the keys, f(id, key) for neighboring ids in their order.
  template <class F> DEVICE void each(F f) const {
    if (count == 0) {
      for (int i = thread_id(); i < vocab; i += THREADS) f(keys[i]);
    } else if (thread_id() < count) {
      f(few[thread_id()]);
    }
  }
  template <class F> DEVICE void each_in_order(F f) const {
    if (count == 0) {
      int stretch = (vocab + THREADS - 1) / THREADS, first = thread_id() * stretch;
      for (int i = first; i < minimum(vocab, first + stretch); i++) f(i, keys[i]);
    } else if (thread_id() < count) {
      f((int)few_ids[thread_id()], (uint32)few[thread_id()]);
    }
  }
  // How many keys are at or above `least`, and their weights' sum.
  DEVICE int count_from(uint32 least) const {
    int found = 0;
    each([&](uint32 key) { found += key >= least; });
    return (int)block_sum<WARPS>((float)found, scratch);  // exact: below 2^24
  }
  DEVICE float weight_from(uint32 least) const {
    float total = 0;
    each([&](uint32 key) { total += key >= least ? weight(key) : 0; });
    return block_sum<WARPS>(total, scratch);
  }

  // Leaves the few that must hold the `wanted` largest, if THREADS are enough for them; mine is this thread's largest key.
  DEVICE void narrow(int wanted, uint32 mine, Shared<uint32> unsorted, Shared<int> unsorted_ids);

  // The sum of `mine` over the threads before this one (before) and with it (through), and over all of them. One thread's
  // `through` is the next one's `before`, to the bit: no number falls between two threads.
  DEVICE void sum_up(float mine, float& before, float& through, float& all) {
    float in_warp = 0, warp_total = 0, earlier = 0;
    NO_UNROLL for (int lane = 0; lane < WARP; lane++) {
      float v = shuffle(mine, lane);
      if (lane == lane_id()) in_warp = warp_total;
      warp_total += v;
    }
    if (lane_id() == 0) scratch[warp_id()] = warp_total;
    sync();
    all = 0;
    NO_UNROLL for (int warp = 0; warp < WARPS; warp++) {
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

DEVICE void Row::narrow(int wanted, uint32 mine, Shared<uint32> unsorted, Shared<int> unsorted_ids) {
  uint32 bound = highest([&](uint32 key) { return block_sum<WARPS>(mine >= key ? 1.0f : 0.0f, scratch) >= wanted; });
  float own = 0, before, through, all;
  each([&](uint32 key) { own += key >= bound; });
  sum_up(own, before, through, all);
  if (all > THREADS) return;
  int place = (int)before;
  for (int i = thread_id(); i < vocab; i += THREADS) {
    if (keys[i] < bound) continue;
    unsorted[place] = keys[i];
    unsorted_ids[place++] = i;
  }
  sync();
  if (thread_id() < (int)all) {
    int id = unsorted_ids[thread_id()], rank = 0;
    for (int i = 0; i < (int)all; i++) rank += unsorted_ids[i] < id;
    few[rank] = unsorted[thread_id()];
    few_ids[rank] = id;
  }
  sync();
  count = (int)all;
}

// token [1] = the id that uniform [1], in [0, 1), draws; -1 where a logit is not finite. seen [vocab] marks the tokens that
// the penalty is for, and from then on this one. keys [vocab] is scratch memory. rate is log2(e) / temperature, or 0 for
// the likeliest token; top_k 0 and top_p 1 are off.
KERNEL(1024) sample(const T* logits, unsigned char* seen, const double* uniform, int* token, uint32* keys, int vocab,
                    float penalty, float rate, int top_k, float top_p) {
  SHARED(float, scratch, WARPS);
  SHARED(uint32, few, THREADS);
  SHARED(int, few_ids, THREADS);
  SHARED(uint32, unsorted, THREADS);
  SHARED(int, unsorted_ids, THREADS);
  uint32 mine = 0;
  float not_finite = 0;
  for (int i = thread_id(); i < vocab; i += THREADS) {
    float v = to_float(logits[i]);
    if (!is_finite(v)) not_finite = 1;
    if (seen[i]) v = v > 0 ? v / penalty : v * penalty;
    keys[i] = key_of(v);
    if (keys[i] > mine) mine = keys[i];
  }
  if (block_max<WARPS>(not_finite, scratch) > 0) {  // its barriers make the keys visible, too
    if (thread_id() == 0) token[0] = -1;
    return;
  }
  float largest = block_max<WARPS>(mine ? value_of(mine) : -infinity(), scratch);
  Row row{keys, few, few_ids, scratch, vocab, 0, largest, rate};
  int wanted = rate > 0 ? top_k : 1;
  if (wanted > 0 && wanted <= minimum(vocab, THREADS)) row.narrow(wanted, mine, unsorted, unsorted_ids);

  // Kept are the keys above `least`, and of those equal to it the first `ties`.
  uint32 least = rate > 0 ? 1 : key_of(largest);
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
  row.each_in_order([&](int, uint32 key) { equal += key == least; });
  row.sum_up(equal, rank, through, all);
  auto add_kept = [&](float& sum, int& place, uint32 key) {
    bool kept = key > least || (key == least && place++ < ties);
    if (kept) sum += rate > 0 ? row.weight(key) : 1;
    return kept;
  };
  int place = (int)rank;
  row.each_in_order([&](int, uint32 key) { add_kept(weight, place, key); });
  row.sum_up(weight, before, through, all);
  float drawn = minimum((float)uniform[0] * all, float_of(bits_of(all) - 1));  // below the sum, whatever the rounding
  if (drawn < before || drawn >= through) return;
  // Among this thread's the last that is kept, unless an earlier one reaches what is drawn.
  int chosen = -1;
  float sum = 0;
  place = (int)rank;
  row.each_in_order([&](int i, uint32 key) {
    bool reached = chosen >= 0 && drawn - before < sum;
    if (add_kept(sum, place, key) && !reached) chosen = i;
  });
  token[0] = chosen;
  seen[chosen] = 1;
}
