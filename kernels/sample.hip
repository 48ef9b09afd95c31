// The next token of each row, drawn on the GPU so that its id is all that leaves it: repetition penalty (Keskar et al. 2019),
// temperature, top-k, top-p (Holtzman et al. 2020), as gpt/ops/cpu/operations.py defines them.
//
// One block does it for a row, on keys: integers in the order of the floats. If few tokens are wanted, it first narrows the keys
// down to a few that must hold them: it sorts the largest keys of some groups of threads and takes the k-th of these as
// a bound. At least k keys, and hardly more, are at or above the bound. The few are sorted too, each by counting the
// keys before it; then top-k is a place in that order and top-p a sum along it. For example, with top-k 2 and four
// groups whose largest keys are 9, 7, 4, 8, the bound is 8, and only keys 8 and above are kept. Only the first reading
// of the logits touches all of them.
//
// If that cannot work (more tokens are wanted than there are threads, or too many keys are equal), all keys go to
// memory. A threshold is found bit by bit, the highest first, by counting (top-k) or weighing (top-p) the keys at or
// above it.
//
// Among equal logits at a threshold the lower ids come first. The draw walks the ids in their order. Sums have a fixed
// order: the same seed draws the same token.
//
// Set by the host: T (bf16 | float), THREADS (a multiple of GROUPS).
#include "common.h"

constexpr int WARPS = THREADS / WARP;
constexpr int GROUPS = 256;  // groups of threads, if at most half as many tokens are wanted; else each thread is one
constexpr int AHEAD = 4;     // vectors of logits that a thread loads at a time
constexpr float LARGEST = 3.4028235e38f;
constexpr double LOG2E_EXACT = 1.4426950408889634;

// Floats as integers of the same order, and back; no float has the key 0.
DEVICE uint32 key_of(float v) {
  if (v == 0) v = 0;  // -0 equals 0
  return bits_of(v) >> 31 ? ~bits_of(v) : bits_of(v) | 0x80000000u;
}
DEVICE float value_of(uint32 key) { return float_of(key >> 31 ? key & 0x7fffffffu : ~key); }

// The logits, with the penalty on the marked tokens.
struct Logits {
  static constexpr int WIDTH = Vector<T>::SIZE;
  struct alignas(WIDTH) Marks {
    uint32 words[WIDTH / 4];  // a byte for each token
    DEVICE uint32 any() const { return words[0] | words[WIDTH / 4 - 1]; }
    DEVICE bool operator[](int e) const { return words[e / 4] >> e % 4 * 8 & 0xff; }
  };

  const T* values;            // [vocab]
  const unsigned char* seen;  // [vocab]
  int vocab;
  float penalty, inverse;

  DEVICE float penalized(float v) const {
    return is_finite(v) ? maximum(-LARGEST, minimum(v * (v > 0 ? inverse : penalty), LARGEST)) : v;
  }

  // Calls f(id, logit) for this thread's share of them.
  template <class F> DEVICE void each(F f) const {
    int vectors = vocab / WIDTH;
    NO_UNROLL for (int first = thread_id(); first < vectors; first += AHEAD * THREADS) {
      Vector<T> vectors_read[AHEAD];
      Marks marks[AHEAD];
      UNROLL for (int i = 0; i < AHEAD; i++) {
        int vector = minimum(first + i * THREADS, vectors - 1);
        vectors_read[i] = ((const Vector<T>*)values)[vector];
        marks[i] = ((const Marks*)seen)[vector];
      }
      UNROLL for (int i = 0; i < AHEAD; i++) {
        int vector = first + i * THREADS;
        if (vector >= vectors) break;
        float v[WIDTH];
        UNROLL for (int e = 0; e < WIDTH; e++) v[e] = to_float(vectors_read[i].v[e]);
        if (marks[i].any()) {
          UNROLL for (int e = 0; e < WIDTH; e++) v[e] = marks[i][e] ? penalized(v[e]) : v[e];
        }
        UNROLL for (int e = 0; e < WIDTH; e++) f(vector * WIDTH + e, v[e]);
      }
    }
    int last = vectors * WIDTH + thread_id();
    if (last < vocab) f(last, seen[last] ? penalized(to_float(values[last])) : to_float(values[last]));
  }
};

// The sum over the lanes up to and including this one, of numbers that are not negative. A later lane's sum is never
// smaller: rounding keeps the order within each half of the lanes, and all lanes of the upper half add the same sum of
// the lower half.
DEVICE float sum_to_lane(float v) {
  NO_UNROLL for (int width = 1; width < WARP; width *= 2) {
    float lower = shuffle(v, maximum(lane_id() / width * width - 1, 0));
    if (lane_id() & width) v += lower;
  }
  return v;
}

// The places of a key among `count` keys: by size, the largest first and equal keys by their ids; and by id. The arrays
// are filled up to a whole vector with keys of 0 and ids above all others.
struct Place {
  int by_size, by_id;

  DEVICE Place(uint32 key, int id, Shared<uint32> keys, Shared<int> ids, int count) : by_size(0), by_id(0) {
    NO_UNROLL for (int i = 0; i < count; i += 4) {
      Vector<uint32> other = keys.vector(i);
      Vector<int> other_id = ids.vector(i);
      UNROLL for (int e = 0; e < 4; e++) {
        bool earlier = other_id.v[e] < id;
        by_id += earlier;
        by_size += other.v[e] > key || (other.v[e] == key && earlier);
      }
    }
  }
};

// The keys that a token may be drawn from: all of them in memory, or a few in shared memory.
struct Row {
  const uint32* keys;     // [vocab], if count is 0
  Shared<uint32> few;     // [THREADS]
  Shared<int> few_ids;    // [THREADS], ascending
  Shared<uint32> sorted;  // [THREADS]: the few, the largest first
  Shared<float> scratch;  // [WARPS]
  int vocab, count;       // number of the few; 0: take all keys
  float largest, rate;    // weights are 2^((value - largest) rate)

  DEVICE float weight(uint32 key) const { return exp2_fast((value_of(key) - largest) * rate); }

  // each calls f(key) for this thread's share of the keys. each_in_order calls f(id, key) for neighboring ids,
  // ascending.
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

  // Sums of `mine`, which is not negative: over the threads before this one (before), over those and this one
  // (through), and over all threads (all). One thread's `through` is the next thread's `before`, to the bit; neither
  // ever falls; and they are equal if `mine` is 0. So every number from 0 up to the whole sum lies between `before` and
  // `through` of exactly one thread, and that thread adds to the sum.
  DEVICE void sum_up(float mine, float& before, float& through, float& all) const {
    float in_warp = sum_to_lane(mine);
    if (lane_id() == WARP - 1) scratch[warp_id()] = in_warp;
    sync();
    float earlier = 0;
    all = 0;
    NO_UNROLL for (int warp = 0; warp < WARPS; warp += 4) {
      Vector<float> sums = scratch.vector(warp);
      UNROLL for (int i = 0; i < 4; i++) {
        if (warp + i < warp_id()) earlier += sums.v[i];
        all += sums.v[i];
      }
    }
    sync();
    through = earlier + in_warp;
    before = shuffle(through, maximum(lane_id() - 1, 0));
    if (lane_id() == 0) before = earlier;
  }

  // Finds the few keys that must hold the `wanted` largest; gives up, with count 0, if there are more than THREADS. few
  // [THREADS] holds the key of the largest logit of each thread, and `mine` is this thread's.
  DEVICE void narrow(const Logits& logits, int wanted, float mine, Shared<uint32> found, Shared<int> ids) {
    // The largest key of each group, sorted
    int groups = wanted <= GROUPS / 2 ? GROUPS : THREADS, self = thread_id();
    if (self < groups) {
      uint32 most = 0;
      for (int i = self; i < THREADS; i += groups) most = few[i] > most ? (uint32)few[i] : most;
      found[self] = most;
      ids[self] = self;
    }
    sync();
    if (self < groups) sorted[Place(found[self], self, found, ids, groups).by_size] = (uint32)found[self];
    sync();
    // How many logits reach the bound, and the place of this thread's first one
    float bound = value_of(sorted[wanted - 1]), own = 0, before, through, all;
    if (mine >= bound) logits.each([&](int, float v) { own += v >= bound; });
    sum_up(own, before, through, all);
    if (all > THREADS) return;
    count = (int)all;
    // The kept logits' keys and ids, then sorted both ways
    int next = (int)before;
    auto keep = [&](int id, float v) {
      if (v < bound) return;
      found[next] = key_of(v);
      ids[next++] = id;
    };
    if (own > 0) logits.each(keep);
    if (self >= count && self < (count + 3) / 4 * 4) {
      found[self] = 0;
      ids[self] = vocab;
    }
    sync();
    if (self < count) {
      Place place(found[self], ids[self], found, ids, count);
      few[place.by_id] = (uint32)found[self];
      few_ids[place.by_id] = (int)ids[self];
      sorted[place.by_size] = (uint32)found[self];
    }
    sync();
  }
};

// The largest key for which enough(key) holds; 0 if for none. It must hold for all smaller keys, too.
template <class Enough> DEVICE uint32 highest(Enough enough) {
  uint32 key = 0;
  NO_UNROLL for (int bit = 31; bit >= 0; bit--) {
    if (enough(key | 1u << bit)) key |= 1u << bit;
  }
  return key;
}

// token [rows] = the id that uniform [rows], in [0, 1), draws; -1 if a logit is not finite. logits and seen, which marks
// the tokens to penalize, are [rows, stride], of which the first `vocab` columns count; the drawn token is marked, too.
// rules [rows, 4] are 1 / temperature, or 0 for the likeliest token; top_k (0: no limit); top_p (1: no limit); and the
// penalty. keys [rows, vocab] is scratch memory.
// grid: rows, block: THREADS
KERNEL(THREADS) sample(const T* logits, unsigned char* seen, const double* uniform, int* token, const double* rules,
                       uint32* keys, int vocab, int stride) {
  int its_row = block_x();
  logits += (index_t)its_row * stride, seen += (index_t)its_row * stride, keys += (index_t)its_row * vocab;
  rules += 4 * its_row;
  float rate = (float)(rules[0] * LOG2E_EXACT), top_p = (float)rules[2], penalty = (float)rules[3];
  int top_k = (int)minimum((float)rules[1], (float)vocab);
  SHARED(float, scratch, WARPS);
  SHARED(uint32, few, THREADS);
  SHARED(int, few_ids, THREADS);
  SHARED(uint32, sorted, THREADS);
  SHARED(uint32, found, THREADS);
  SHARED(int, found_ids, THREADS);
  Logits all_logits{logits, seen, vocab, penalty, 1 / penalty};
  float mine = -infinity();
  bool finite = true;
  all_logits.each([&](int, float v) {
    finite = finite && is_finite(v);
    mine = maximum(mine, v);
  });
  few[thread_id()] = key_of(mine);
  float largest = block_max<WARPS>(finite ? mine : infinity(), scratch);  // its barriers make `few` visible, too
  if (!is_finite(largest)) {
    if (thread_id() == 0) token[its_row] = -1;
    return;
  }
  Row row{keys, few, few_ids, sorted, scratch, vocab, 0, largest, rate};
  int wanted = rate == 0 ? 1 : top_k > 0 ? top_k : vocab;
  if (wanted <= THREADS) row.narrow(all_logits, wanted, mine, found, found_ids);

  // Keep the keys above `least`, and the first `ties` keys equal to it.
  uint32 least = rate > 0 ? 1 : key_of(largest);
  int ties = rate > 0 ? vocab : 1;
  if (row.count > 0) {
    int kept = wanted;
    if (top_p < 1) {
      float before, through, all, weight = thread_id() < wanted ? row.weight(sorted[thread_id()]) : 0;
      row.sum_up(weight, before, through, all);
      bool needed = thread_id() > 0 && thread_id() < wanted && before < top_p * all;
      kept = 1 + (int)block_sum<WARPS>(needed ? 1.0f : 0.0f, scratch);
    }
    least = sorted[kept - 1];
    ties = kept - row.count_from(least + 1);
  } else {
    all_logits.each([&](int id, float v) { keys[id] = key_of(v); });
    sync();
    if (rate > 0 && top_k > 0 && top_k < vocab) {
      least = highest([&](uint32 key) { return row.count_from(key) >= top_k; });
      ties = top_k - row.count_from(least + 1);
    }
    if (rate > 0 && top_p < 1) {
      float reach = row.weight_from(least + 1);
      if (least > 1) reach += ties * row.weight(least);
      reach *= top_p;
      uint32 nucleus = highest([&](uint32 key) { return row.weight_from(key) >= reach; });
      if (nucleus > 1 && nucleus >= least) {
        if (nucleus > least) ties = vocab;
        least = nucleus;
        float missing = minimum((reach - row.weight_from(least + 1)) / row.weight(least), 1e9f);
        ties = maximum(1, minimum(ties, (int)missing + (missing > (int)missing)));
      }
    }
  }

  // Each thread weighs the keys that it keeps; `rank` counts the keys equal to `least` in the threads before.
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
  // The thread between whose sums the drawn number lies has the token.
  float drawn = minimum((float)uniform[its_row] * all, float_of(bits_of(all) - 1));  // below the sum, whatever the rounding
  if (drawn < before || drawn >= through) return;
  // It is the first kept key of this thread whose sum passes the drawn number, or the last kept one.
  int chosen = -1;
  float sum = 0;
  place = (int)rank;
  row.each_in_order([&](int i, uint32 key) {
    bool reached = chosen >= 0 && drawn - before < sum;
    if (add_kept(sum, place, key) && !reached) chosen = i;
  });
  token[its_row] = chosen;
  seen[chosen] = 1;
}
