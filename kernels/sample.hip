// The next token, drawn on the GPU so that its id is all that leaves it: repetition penalty (Keskar et al. 2019),
// temperature, top-k, top-p (Holtzman et al. 2020), as gpt/generate.py defines them.
//
// No sort: a threshold on the logits is found bit by bit, the highest first, by counting (top-k) or weighing (top-p) what
// lies at or above it; that is 32 passes over a row that stays in the cache. Of equal logits at a threshold those of lower
// ids come first. The draw walks the ids in their order. Sums have a fixed order: the same seed draws the same token.
//
// Logits become keys, integers in the order of the floats, in two kernels of many blocks; `sample` is one block.
//
// Set by the host: T (bf16 | float).
#include "common.h"

constexpr int THREADS = 512;

// Floats as integers of the same order, and back; 0, which stands below every number, for one that is not finite.
DEVICE uint32 key_of(float v) {
  uint32 bits = bits_of(v);
  return !is_finite(v) ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float value_of(uint32 key) { return float_of(key >> 31 ? key & 0x7fffffffu : ~key); }

// keys [vocab] of the logits
KERNEL(256) sample_keys(const T* logits, uint32* keys, int vocab) {
  int i = block_x() * 256 + thread_id();
  if (i < vocab) keys[i] = key_of(to_float(logits[i]));
}

// The keys of the context's tokens [count] with the penalty; every place of a token writes the same.
KERNEL(256) sample_penalize(const T* logits, const int* context, uint32* keys, int count, float penalty) {
  int i = block_x() * 256 + thread_id();
  if (i >= count) return;
  float v = to_float(logits[context[i]]);
  keys[context[i]] = key_of(v > 0 ? v / penalty : v * penalty);
}

// A row of keys as one block sees it.
struct Row {
  const uint32* keys;
  int vocab;
  float largest, rate;  // weights are 2^((value - largest) rate)
  Shared<float> floats;  // [THREADS] each
  Shared<int> ints;

  DEVICE float weight(uint32 key) const { return exp2_fast((value_of(key) - largest) * rate); }

  // How many keys are at or above `least`, and their weights' sum.
  DEVICE int count_from(uint32 least) const {
    int count = 0;
    for (int i = thread_id(); i < vocab; i += THREADS) count += keys[i] >= least;
    return sum(count, ints);
  }
  DEVICE float weight_from(uint32 least) const {
    float total = 0;
    for (int i = thread_id(); i < vocab; i += THREADS) {
      if (keys[i] >= least) total += weight(keys[i]);
    }
    return sum(total, floats);
  }
  template <class V> static DEVICE V sum(V mine, Shared<V> scratch) {
    scratch[thread_id()] = mine;
    sync();
    for (int half = THREADS / 2; half; half /= 2) {
      if (thread_id() < half) scratch[thread_id()] += scratch[thread_id() + half];
      sync();
    }
    V total = scratch[0];
    sync();
    return total;
  }
  // The sum over the threads before this one, and over all of them.
  template <class V> static DEVICE V sum_before(V mine, Shared<V> scratch, V& all) {
    scratch[thread_id()] = mine;
    sync();
    V before = 0;
    all = 0;
    for (int t = 0; t < THREADS; t++) {
      if (t == thread_id()) before = all;
      all += scratch[t];
    }
    sync();
    return before;
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

// token [1] = the id that is drawn by `uniform` in [0, 1); -1 where a logit is not finite. rate is log2(e) / temperature,
// or 0 for the likeliest token; top_k 0 and top_p 1 are off.
KERNEL(512) sample(const uint32* keys, int* token, int vocab, float rate, int top_k, float top_p, float uniform) {
  SHARED(float, floats, THREADS);
  SHARED(int, ints, THREADS);
  Row row{keys, vocab, 0, rate, floats, ints};
  if (row.count_from(1) < vocab) {
    if (thread_id() == 0) token[0] = -1;
    return;
  }
  uint32 largest = highest([&](uint32 key) { return row.count_from(key) > 0; });
  row.largest = value_of(largest);

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

  // Each thread walks a stretch of neighboring ids.
  int stretch = (vocab + THREADS - 1) / THREADS, first = thread_id() * stretch, end = minimum(vocab, first + stretch);
  int equal = 0, all_equal;
  for (int i = first; i < end; i++) equal += keys[i] == least;
  int rank = Row::sum_before(equal, ints, all_equal);
  float weight = 0, all;
  for (int i = first, r = rank; i < end; i++) {
    if (keys[i] > least || (keys[i] == least && r++ < ties)) weight += rate > 0 ? row.weight(keys[i]) : 1;
  }
  float before = Row::sum_before(weight, floats, all);
  float drawn = minimum(uniform * all, float_of(bits_of(all) - 1));  // below the sum, whatever the rounding
  if (drawn < before || drawn >= before + weight) return;
  int chosen = 0;
  for (int i = first, r = rank; i < end; i++) {
    if (!(keys[i] > least || (keys[i] == least && r++ < ties))) continue;
    chosen = i;
    before += rate > 0 ? row.weight(keys[i]) : 1;
    if (drawn < before) break;
  }
  token[0] = chosen;
}
