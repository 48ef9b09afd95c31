// Simulates one unit of a GPU (chips.py), clock by clock. Each SIMD issues the instructions of its waves in their
// order, the oldest wave first. A wave waits for its registers, for its wait counters and for barriers. An instruction
// waits until its unit is free. As soon as a workgroup ends, the next one starts.
//
// Left out: fetching of instructions, register banks, and the caches' contents (a load has one of two latencies).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <vector>

typedef int64_t Clock;

enum Unit { NONE, VALU, EXP, MATRIX, SCALAR, CONSTANTS, LOAD, STORE, LDS, WAIT, BARRIER, IDLE, PRIORITY, END };
enum Counter { LOADS, STORES, LDS_ACCESSES, SCALAR_LOADS, COUNTERS };

constexpr int SIMDS = 4, REGISTERS = 644;
constexpr Clock FOREVER = INT64_MAX;

extern "C" {

struct Instruction {
  int32_t unit, clocks, bytes;  // bytes: of a lane
  int32_t waits[COUNTERS];      // most operations under way; -1: any number
  int32_t registers, writes, reads;  // where its registers begin, and how many they are
};
struct Step {
  int32_t instruction, lds, lines, new_bytes;
};
struct Wave {
  const Step* steps;
  int32_t count, workgroup;
};
struct Chip {
  int32_t is_cdna, resident, total;  // workgroups at a time, and in all
  double line, l1_bytes, line_clocks, l2_bytes, memory_bytes, cached_latency, memory_latency;
};
struct Result {
  double clocks, workgroups;                      // of the measured span
  double matrix, valu, exp, lds, l1, l2, memory;  // how much of it each unit was busy, 0 to 1
};

}  // extern "C"

namespace {

struct Running {
  const Wave* work;
  int place, group, simd, priority = 0;
  Clock ready, registers[REGISTERS] = {};
  bool from_matrix[REGISTERS] = {}, at_barrier = false;
  std::deque<Clock> under_way[COUNTERS];  // when each operation will be done
};

// Clocks that the architecture takes. Sources: RDNA's dependent vector instructions, 5 clocks (AMD, "RDNA architecture"
// white paper); on CDNA a wave has its turn every 4 clocks, so none are seen. A matrix product is read 4 passes after its
// end at most on CDNA (LLVM's GCNHazardRecognizer). The LDS of an MI308X answers 40 clocks after its work for 8 and 16
// bytes a lane, and 30 after that for 4 (gcnasm/ubench). The other numbers are assumptions.
struct Latencies {
  Clock turn, valu, exp, scalar, scalar_load, lds, after_product, barrier;
};
constexpr Latencies CDNA = {4, 4, 16, 4, 200, 40, 12, 16}, RDNA = {1, 5, 10, 2, 200, 40, 8, 10};
constexpr Clock LDS_QUEUE = 64, L1_QUEUE = 256;  // clocks of work that a unit takes in advance: assumptions

class Simulation {
 public:
  Simulation(const Chip& chip, const Instruction* instructions, const int16_t* registers,
             const std::vector<std::vector<const Wave*>>& workgroups)
      : chip(chip), times(chip.is_cdna ? CDNA : RDNA), instructions(instructions), registers(registers),
        workgroups(workgroups), left(chip.resident), arrived(chip.resident) {}

  Result run() {
    for (int group = 0; group < chip.resident; group++) start(group);
    while (!done) {
      wake = FOREVER;
      bool issued = false;
      for (int simd = 0; simd < SIMDS; simd++) {
        if (chip.is_cdna && now % SIMDS != simd) continue;  // SIMDs take turns
        issued |= issue(simd);
      }
      now = issued || chip.is_cdna ? now + 1 : std::max(now + 1, std::min(wake, now + 100000));
    }
    Busy& b = busy;
    double span = std::max<Clock>(1, now - since), shared = span * lds_units();
    return {span, (double)(ended - ended_before), b.matrix / span / SIMDS, b.valu / span / SIMDS, b.exp / span / SIMDS,
            b.lds / shared, b.l1 / shared, b.l2 / span, b.memory / span};
  }

 private:
  struct Busy {
    double matrix = 0, valu = 0, exp = 0, lds = 0, l1 = 0, l2 = 0, memory = 0;
  };

  int lds_units() const { return chip.is_cdna ? 1 : 2; }  // RDNA: one for each CU of a workgroup processor

  void start(int group) {
    const auto& waves = workgroups[started % workgroups.size()];
    left[group] = waves.size(), arrived[group] = 0;
    for (size_t i = 0; i < waves.size(); i++) {
      Running* wave = new Running();
      wave->work = waves[i], wave->place = 0, wave->group = group;
      // A workgroup of fewer waves than SIMDs begins where the last one ended.
      wave->simd = (waves.size() < SIMDS ? started * waves.size() + i : i) % SIMDS;
      wave->ready = now + started * 37 % 200;  // they do not start in step
      simds[wave->simd].push_back(wave);
    }
    started++;
  }

  // Lets each wave of a SIMD issue at most one instruction, and each unit take at most one.
  bool issue(int simd) {
    std::vector<Running*>& waves = simds[simd];
    if (sorted[simd]) std::stable_sort(waves.begin(), waves.end(), [](auto a, auto b) { return a->priority > b->priority; });
    unsigned taken = 0;
    bool issued = false;
    for (size_t i = 0; i < waves.size() && !done; i++) {
      Running* wave = waves[i];
      if (wave->at_barrier) continue;
      if (wave->ready > now) {
        wake = std::min(wake, wave->ready);
        continue;
      }
      while (next(wave).unit == NONE || next(wave).unit == PRIORITY) {
        if (next(wave).unit == PRIORITY) wave->priority = next(wave).clocks, sorted[simd] = true;
        wave->place++;
      }
      if (next(wave).unit == END) {
        waves.erase(waves.begin() + i--);
        finish(wave);
        issued = true;
      } else {
        issued |= step(wave, taken);
      }
    }
    return issued;
  }

  const Step& at(const Running* wave) const { return wave->work->steps[wave->place]; }
  const Instruction& next(const Running* wave) const { return instructions[at(wave).instruction]; }

  bool blocked(Clock until) {
    wake = std::min(wake, std::max(until, now + 1));
    return false;
  }

  // Issues the wave's next instruction, if nothing holds it back.
  bool step(Running* wave, unsigned& taken) {
    const Instruction& i = next(wave);
    if (i.unit == WAIT) {
      for (int counter = 0; counter < COUNTERS; counter++) {
        auto& queue = wave->under_way[counter];
        while (!queue.empty() && queue.front() <= now) queue.pop_front();
        if (i.waits[counter] >= 0 && (int)queue.size() > i.waits[counter])
          return blocked(queue[queue.size() - i.waits[counter] - 1]);
      }
      return passed(wave, times.turn);
    }
    if (i.unit == IDLE) return passed(wave, std::max<Clock>(times.turn, i.clocks));
    if (i.unit == BARRIER) {
      wave->at_barrier = true;
      arrived[wave->group]++;
      release(wave->group);
      return true;
    }
    unsigned unit = 1u << (i.unit == EXP || i.unit == MATRIX ? VALU : i.unit == STORE ? LOAD : i.unit);
    if (taken & unit) return blocked(now + 1);
    Clock needed = operands_ready(wave, i);
    if (needed > now) return blocked(needed);
    Clock result = 0, free = execute(wave, i, result);
    if (free > now) return blocked(free);
    for (int r = 0; r < i.writes; r++) {
      int number = registers[i.registers + r];
      if (result) wave->registers[number] = result;
      wave->from_matrix[number] = i.unit == MATRIX;
    }
    taken |= unit;
    return passed(wave, times.turn);
  }

  bool passed(Running* wave, Clock clocks) {
    wave->place++, wave->ready = now + clocks;
    wake = std::min(wake, wave->ready);
    return true;
  }

  // Returns the clock at which an instruction's registers are ready. The next product may add to a product at once.
  Clock operands_ready(const Running* wave, const Instruction& i) const {
    const int16_t *first_written = registers + i.registers, *first_read = first_written + i.writes;
    Clock needed = 0;
    for (int r = 0; r < i.reads; r++) {
      int number = first_read[r];
      bool is_sum = i.unit == MATRIX && std::find(first_written, first_read, number) != first_read;
      needed = std::max(needed, wave->registers[number] + (wave->from_matrix[number] && !is_sum ? times.after_product : 0));
    }
    for (int w = 0; w < i.writes; w++) {
      int number = first_written[w];
      if (wave->from_matrix[number] && i.unit == MATRIX) continue;
      needed = std::max(needed, wave->registers[number] + (wave->from_matrix[number] ? times.after_product : 0));
    }
    return needed;
  }

  // Returns `now` if the unit is free, else the clock at which it will be. If it is free, occupies it, and sets `result`
  // to the clock at which the result will be there, or to 0 if a wait counter says when.
  Clock execute(Running* wave, const Instruction& i, Clock& result) {
    int s = wave->simd, cu = lds_units() == 1 ? 0 : s / 2;
    Clock clocks = std::max(i.clocks, 1);
    switch (i.unit) {
      case MATRIX:
        if (valu_free[s] > now || matrix_free[s] > now) return std::max(valu_free[s], matrix_free[s]);
        matrix_free[s] = now + clocks;
        valu_free[s] = now + (chip.is_cdna ? times.turn : clocks);
        busy.matrix += clocks, busy.valu += chip.is_cdna ? times.turn : 0;
        result = now + clocks;
        return now;
      case EXP:
        if (valu_free[s] > now || (!chip.is_cdna && exp_free[s] > now)) return std::max(valu_free[s], exp_free[s]);
        exp_free[s] = now + clocks;
        valu_free[s] = now + (chip.is_cdna ? clocks : 1);  // RDNA has a unit of its own for them
        busy.exp += clocks, busy.valu += chip.is_cdna ? clocks : 1;
        result = now + times.exp;
        return now;
      case VALU:
        if (valu_free[s] > now) return valu_free[s];
        valu_free[s] = now + clocks;
        busy.valu += clocks;
        result = now + std::max(times.valu, clocks);
        return now;
      case SCALAR:
        result = now + times.scalar;
        return now;
      case CONSTANTS:
        complete(wave, SCALAR_LOADS, now + times.scalar_load);
        return now;
      case LDS: {
        if (lds_free[cu] > now + LDS_QUEUE) return lds_free[cu] - LDS_QUEUE;
        Clock work = std::max(at(wave).lds, 1);
        lds_free[cu] = std::max(lds_free[cu], now) + work;
        busy.lds += work;
        complete(wave, LDS_ACCESSES, lds_free[cu] + times.lds);
        return now;
      }
      default:
        return access_memory(wave, i, cu);
    }
  }

  Clock access_memory(Running* wave, const Instruction& i, int cu) {
    if (l1_free[cu] > now + L1_QUEUE) return l1_free[cu] - L1_QUEUE;
    Clock queue = chip.memory_latency;  // as much as memory has under way
    if (memory_free > now + queue) return (Clock)std::ceil(memory_free) - queue;
    const Step& step = at(wave);
    double lanes = chip.is_cdna ? 64 : 32, least = chip.is_cdna ? 4 : 1;
    Clock work = std::max({lanes * i.bytes / chip.l1_bytes, least, step.lines * chip.line_clocks});
    Clock begun = std::max(l1_free[cu], now);
    l1_free[cu] = begun + work;
    double from_l2 = step.lines * chip.line / chip.l2_bytes, from_memory = step.new_bytes / chip.memory_bytes;
    l2_free = std::max<double>(l2_free, begun) + from_l2;
    if (from_memory > 0) memory_free = std::max<double>(memory_free, begun) + from_memory;
    busy.l1 += work, busy.l2 += from_l2, busy.memory += from_memory;
    double latency = from_memory > 0 ? chip.memory_latency : chip.cached_latency;
    double arrived = std::max({(double)begun + work, l2_free, from_memory > 0 ? memory_free : 0}) + latency;
    complete(wave, i.unit == STORE && !chip.is_cdna ? STORES : LOADS, arrived);
    return now;
  }

  // Operations of a kind are done in their order.
  void complete(Running* wave, Counter counter, Clock when) {
    auto& queue = wave->under_way[counter];
    queue.push_back(queue.empty() ? when : std::max(when, queue.back()));
  }

  void release(int group) {
    if (arrived[group] < left[group]) return;
    arrived[group] = 0;
    for (auto& waves : simds) {
      for (Running* wave : waves) {
        if (wave->group == group && wave->at_barrier) {
          wave->at_barrier = false;
          passed(wave, times.barrier);
        }
      }
    }
  }

  // Ends a wave, and with its last wave a workgroup. The measured span begins when the first `resident` workgroups have
  // ended, and ends when the last one starts. With at most 2 * resident workgroups it is the whole run.
  void finish(Running* wave) {
    int group = wave->group;
    delete wave;
    if (--left[group]) return release(group);
    ended++;
    bool is_steady = chip.total > 2 * chip.resident;
    if (is_steady && ended == chip.resident) since = now, ended_before = ended, busy = {};
    if (started < chip.total) start(group);
    done = is_steady ? started == chip.total : ended == chip.total;
  }

  const Chip& chip;
  const Latencies times;
  const Instruction* instructions;
  const int16_t* registers;
  const std::vector<std::vector<const Wave*>>& workgroups;
  std::vector<Running*> simds[SIMDS];  // the oldest wave first
  bool sorted[SIMDS] = {};
  std::vector<int> left, arrived;  // waves of each resident workgroup that run, and that are at a barrier
  Clock now = 0, wake = 0, since = 0, valu_free[SIMDS] = {}, exp_free[SIMDS] = {}, matrix_free[SIMDS] = {};
  Clock lds_free[2] = {}, l1_free[2] = {};
  double l2_free = 0, memory_free = 0;
  int started = 0, ended = 0, ended_before = 0;
  bool done = false;
  Busy busy;
};

}  // namespace

// Runs chip.total workgroups, which are those of `waves` in turn.
extern "C" void schedule(const Chip* chip, const Instruction* instructions, const int16_t* registers, const Wave* waves,
                         int count, Result* result) {
  std::vector<std::vector<const Wave*>> workgroups(waves[count - 1].workgroup + 1);
  for (int i = 0; i < count; i++) workgroups[waves[i].workgroup].push_back(&waves[i]);
  *result = Simulation(*chip, instructions, registers, workgroups).run();
}
