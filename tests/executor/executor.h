// A GPU on the host: what common.h asks of a compiler, answered in plain C++, so that a kernel runs on NumPy's arrays.
//
// Every thread of a block is a fiber with a small stack of its own. A fiber runs until it meets others, at a barrier or in
// an exchange within its warp, and then hands over to the scheduler, which lets all of them go on once all have come.
// Blocks run one after another, the threads of a block in an order that the caller chooses: a right kernel does not care.
//
// Shared memory is watched, element by element: reading what nobody wrote, and touching what another thread wrote or read
// since the last barrier, are errors, as are places outside of an array and barriers that not all threads reach.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define KERNEL(threads) void
#define DEVICE inline
#define UNROLL
#define NO_UNROLL
#define SHARED(T, name, count) const executor::Shared<T> name = executor::shared<T>(#name, count)

namespace gpt {
template <class T> struct Vector;
}

// Saves what a call must preserve, leaves its stack in *from, and goes on where `to` was left.
extern "C" void executor_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.local executor_switch
executor_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int SAVED_WORDS = 6, RETURN_WORD = 6, FRAME_WORDS = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.local executor_switch
executor_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int RETURN_WORD = 11, FRAME_WORDS = 20;
#else
#error "the executor switches stacks on x86-64 and aarch64 alone"
#endif

namespace executor {

constexpr int STACK_BYTES = 128 << 10;
constexpr int SHARED_BYTES = 64 << 10;  // what AMD gives a block
constexpr int MANY = -2;

enum State { READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber {
  void* sp;
  std::vector<char> stack;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state;
  const char* doing;  // the exchange that it waits in
  int thread, exchanges, arrays;
};

// What the lanes of a warp show each other; two, used in turn, so that nobody writes what another has yet to read.
struct Exchange {
  float values[64], a[16][16], b[16][16];
};

struct Element {
  unsigned long written_in = 0, read_in = 0;  // the phase, a number that grows at each barrier and each block
  unsigned long block = 0;                    // in which it was written at all
  int writer = -1, reader = -1;
};

struct Array {
  const char* name;
  int count;
  std::vector<char> bytes;
  std::vector<Element> elements;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Exchange> exchanges;
  std::vector<Array> arrays;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  int block[2] = {0, 0}, threads = 0;
  unsigned long phase = 0, first_phase = 0;
  void (*body)(void**) = nullptr;
  void** arguments = nullptr;
  char error[512] = "";
};

inline thread_local Machine machine;

inline int thread_id() { return machine.current->thread; }
inline int block_x() { return machine.block[0]; }
inline int block_y() { return machine.block[1]; }

// ---- fibers -----------------------------------------------------------------------------------------------------------

// Hand over to the scheduler; returns when it lets this fiber go on.
inline void hand_over(State state, const char* doing = "") {
  Fiber& fiber = *machine.current;
  fiber.state = state;
  fiber.doing = doing;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(state == DONE ? nullptr : &fiber.fake_stack, machine.scheduler_stack,
                                 machine.scheduler_stack_bytes);
#endif
  executor_switch(&fiber.sp, machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

__attribute__((format(printf, 1, 2), noreturn)) inline void fail(const char* format, ...) {
  Machine& m = machine;
  int n = snprintf(m.error, sizeof m.error, "block (%d, %d), thread %d: ", m.block[0], m.block[1], m.current->thread);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(m.error + n, sizeof m.error - n, format, arguments);
  va_end(arguments);
  hand_over(DONE);
  abort();  // never: the scheduler stops at an error
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  machine.body(machine.arguments);
  hand_over(DONE);
}

inline void prepare(Fiber& fiber, int thread) {
  fiber.stack.resize(STACK_BYTES);
  auto top = ((uintptr_t)fiber.stack.data() + STACK_BYTES) & ~(uintptr_t)15;
  void** frame = (void**)top - FRAME_WORDS;
  memset(frame, 0, FRAME_WORDS * sizeof(void*));
  frame[RETURN_WORD] = (void*)fiber_main;
  fiber.sp = frame;
  fiber.state = READY;
  fiber.thread = thread;
  fiber.exchanges = fiber.arrays = 0;
}

inline void resume(Fiber& fiber) {
  machine.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.data(), STACK_BYTES);
#endif
  executor_switch(&machine.scheduler, fiber.sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void sync() { hand_over(AT_BARRIER, "a barrier"); }

// ---- exchanges within a warp ------------------------------------------------------------------------------------------

// Shows the others of the warp something, waits until all have, and returns what all have shown.
template <class Show> const Exchange& exchange(const char* doing, Show show) {
  Fiber& fiber = *machine.current;
  Exchange& shown = machine.exchanges[fiber.thread / WARP * 2 + fiber.exchanges++ % 2];
  show(shown);
  hand_over(IN_WARP, doing);
  return shown;
}

inline float shuffle(float v, int lane) {
  int mine = thread_id() % WARP;
  return exchange("a shuffle", [&](Exchange& e) { e.values[mine] = v; }).values[lane];
}

inline float bf16_value(unsigned half) {
  unsigned bits = half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// c += a b, 16 x 16 x 16, each lane with its part as Layout says.
template <class Layout> void multiply_add(float* c, const unsigned* a, const unsigned* b) {
  const Exchange& all = exchange("a matrix product", [&](Exchange& e) {
    for (int j = 0; j < Layout::WORDS; j++) {
      for (int half = 0; half < 2; half++) {
        e.a[Layout::a_row(j)][Layout::a_k(j) + half] = bf16_value(a[j] >> 16 * half & 0xffff);
        e.b[Layout::b_k(j) + half][Layout::b_column(j)] = bf16_value(b[j] >> 16 * half & 0xffff);
      }
    }
  });
  for (int i = 0; i < Layout::ELEMENTS; i++) {
    int row = Layout::row(i), column = Layout::column(i);
    for (int k = 0; k < 16; k++) c[i] += all.a[row][k] * all.b[k][column];
  }
}

// ---- shared memory ----------------------------------------------------------------------------------------------------

template <class T> struct Shared {
  int array, offset;

  // An element, which finds out whether it is read or written.
  struct Place {
    const Shared& from;
    int i;
    operator T() const { return *from.touch(i, false); }
    const Place& operator=(T v) const {
      *from.touch(i, true) = v;
      return *this;
    }
    const Place& operator=(const Place& other) const { return *this = (T)other; }
    const Place& operator+=(T v) const { return *this = (T)*this + v; }
  };

  Place operator[](int i) const { return Place{*this, i}; }
  Shared operator+(int i) const { return Shared{array, offset + i}; }
  gpt::Vector<T> vector(int i) const {
    gpt::Vector<T> v;
    for (int e = 0; e < gpt::Vector<T>::SIZE; e++) v.v[e] = (*this)[i + e];
    aligned(i, 16);
    return v;
  }
  void set_vector(int i, gpt::Vector<T> v) const {
    aligned(i, 16);
    for (int e = 0; e < gpt::Vector<T>::SIZE; e++) (*this)[i + e] = v.v[e];
  }
  unsigned word(int i) const {
    aligned(i, 4);
    T low = (*this)[i], high = (*this)[i + 1];
    unsigned word = 0;
    memcpy(&word, &low, sizeof(T));
    memcpy((char*)&word + sizeof(T), &high, sizeof(T));
    return word;
  }

  void aligned(int i, int bytes) const {
    if ((offset + i) * sizeof(T) % bytes) fail("%s[%d] is not at a multiple of %d bytes", name(), offset + i, bytes);
  }
  const char* name() const { return machine.arrays[array].name; }

  T* touch(int i, bool write) const {
    Machine& m = machine;
    Array& a = m.arrays[array];
    int at = offset + i, me = m.current->thread;
    if (at < 0 || at >= a.count) fail("%s[%d] is outside of its %d elements", a.name, at, a.count);
    Element& e = a.elements[at];
    if (!write && e.block != m.first_phase) fail("%s[%d] is read, but nobody has written it", a.name, at);
    if (e.written_in == m.phase && e.writer != me) {
      fail("%s[%d] is %s, but thread %d has written it since the last barrier", a.name, at, write ? "written" : "read",
           e.writer);
    }
    if (write) {
      if (e.read_in == m.phase && e.reader != me) {
        fail("%s[%d] is written, but another thread has read it since the last barrier", a.name, at);
      }
      e.block = m.first_phase;
      e.written_in = m.phase;
      e.writer = me;
    } else {
      e.reader = e.read_in == m.phase && e.reader != me ? MANY : me;
      e.read_in = m.phase;
    }
    return (T*)a.bytes.data() + at;
  }
};

// The block's next array: every thread of it declares the same ones in the same order.
template <class T> Shared<T> shared(const char* name, int count) {
  Machine& m = machine;
  int number = m.current->arrays++;
  if (number == (int)m.arrays.size()) {
    m.arrays.push_back(Array{name, count, std::vector<char>(count * sizeof(T)), std::vector<Element>(count)});
    size_t total = 0;
    for (const Array& a : m.arrays) total += (a.bytes.size() + 15) / 16 * 16;
    if (total > SHARED_BYTES) fail("the block has %zu bytes of shared memory, more than %d", total, SHARED_BYTES);
  }
  return Shared<T>{number, 0};
}

// ---- the scheduler ----------------------------------------------------------------------------------------------------

inline bool all(int first, int end, State state) {
  for (int t = first; t < end; t++) {
    if (machine.fibers[t].state != state) return false;
  }
  return true;
}

// Let go on whom nothing holds back any more; false if that is nobody.
inline bool release() {
  Machine& m = machine;
  if (all(0, m.threads, AT_BARRIER)) {
    m.phase++;
    for (int t = 0; t < m.threads; t++) m.fibers[t].state = READY;
    return true;
  }
  bool any = false;
  for (int first = 0; first < m.threads; first += WARP) {
    int end = first + WARP;
    if (end > m.threads || !all(first, end, IN_WARP)) continue;
    for (int t = first; t < end; t++) {
      if (m.fibers[t].doing != m.fibers[first].doing) {
        m.current = &m.fibers[t];
        snprintf(m.error, sizeof m.error, "block (%d, %d): lanes of one warp are in %s and in %s", m.block[0], m.block[1],
                 m.fibers[first].doing, m.fibers[t].doing);
        return false;
      }
      m.fibers[t].state = READY;
    }
    any = true;
  }
  return any;
}

inline void stuck() {
  Machine& m = machine;
  if (m.error[0]) return;
  const Fiber *waiting = nullptr, *other = nullptr;
  for (const Fiber& f : m.fibers) {
    if (&f - m.fibers.data() >= m.threads) break;
    if (!waiting && f.state != DONE) waiting = &f;
  }
  for (const Fiber& f : m.fibers) {
    if (&f - m.fibers.data() >= m.threads) break;
    if (!other && (f.state != waiting->state || f.doing != waiting->doing)) other = &f;
  }
  snprintf(m.error, sizeof m.error, "block (%d, %d): thread %d waits in %s, which thread %d never reaches: it %s%s",
           m.block[0], m.block[1], waiting->thread, waiting->doing, other ? other->thread : -1,
           other && other->state != DONE ? "waits in " : "has ended", other && other->state != DONE ? other->doing : "");
}

// A permutation of the block's threads; seed 0 is forward, 1 reversed, others are drawn anew each time.
inline void arrange(std::vector<int>& order, uint64_t& seed) {
  int n = order.size();
  if (seed < 2) {
    for (int i = 0; i < n; i++) order[i] = seed ? n - 1 - i : i;
    return;
  }
  for (int i = n - 1; i > 0; i--) {
    seed = seed * 6364136223846793005u + 1442695040888963407u | 2;
    std::swap(order[i], order[(seed >> 33) % (i + 1)]);
  }
}

// Runs all blocks of a launch; returns what went wrong, or an empty string.
inline const char* run(void (*body)(void**), void** arguments, int grid_x, int grid_y, int threads, uint64_t seed) {
  Machine& m = machine;
  m.error[0] = 0;
  m.body = body;
  m.arguments = arguments;
  m.threads = threads;
  if ((int)m.fibers.size() < threads) m.fibers.resize(threads);
  m.exchanges.resize((threads + WARP - 1) / WARP * 2);
  m.arrays.clear();
  std::vector<int> order(threads);
  for (int i = 0; i < threads; i++) order[i] = i;
  for (m.block[1] = 0; m.block[1] < grid_y; m.block[1]++) {
    for (m.block[0] = 0; m.block[0] < grid_x; m.block[0]++) {
      m.first_phase = ++m.phase;
      for (int t = 0; t < threads; t++) prepare(m.fibers[t], t);
      do {
        arrange(order, seed);
        for (int t : order) {
          if (m.fibers[t].state == READY) resume(m.fibers[t]);
          if (m.error[0]) return m.error;
        }
        if (all(0, threads, DONE)) break;
        if (!release()) {
          stuck();
          return m.error;
        }
      } while (true);
    }
  }
  return m.error;
}

template <class T> constexpr char kind() { return std::is_pointer<T>::value ? 'p' : '0' + (int)sizeof(T); }

// A kernel by its own parameter types: how each is passed, and a call of it with pointers to the arguments.
template <auto kernel, class... A> struct Entry {
  static constexpr char signature[] = {kind<A>()..., 0};
  template <size_t... I> static void unpack(void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
  }
  static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>{}); }
};
template <auto kernel, class... A> Entry<kernel, A...> entry_of(void (*)(A...)) { return {}; }

}  // namespace executor

// What the host calls, for each kernel of a source; `most` is the largest block that it was declared for.
#define EXECUTOR_ENTRY(name, most)                                                                             \
  extern "C" const char* signature_##name() { return decltype(executor::entry_of<name>(name))::signature; }     \
  extern "C" int threads_##name() { return most; }                                                             \
  extern "C" const char* run_##name(void** arguments, int x, int y, int threads, uint64_t seed) {               \
    return executor::run(decltype(executor::entry_of<name>(name))::call, arguments, x, y, threads, seed);       \
  }
