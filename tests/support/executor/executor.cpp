// Runs launches of kernels, block by block.
//
// Every thread of a block is a fiber. It runs until it has to wait for others, at a barrier or in an exchange within
// its warp. Then it switches to its block. When all threads that a barrier or an exchange needs have come, the block
// lets them continue. Threads take turns in an order that the caller chooses: a correct kernel works in every order.
//
// These faults, which a GPU forgives sometimes, are errors here:
// - a barrier that a thread of the block never reaches, or an exchange that a lane of the warp never reaches;
// - an element of shared memory that is read but was not written in this block, or an access outside of its array;
// - more shared memory than a block may have;
// - an element of shared memory that one thread writes and another reads or writes, with no barrier between the two.
#include "executor.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "fiber.h"

namespace executor {

// The threads that wrote and read an element last, and in which phases. A phase is the time between two barriers. The
// numbers of phases go on from one block to the next.
struct Element {
  unsigned written_in = 0, read_in = 0;
  int writer = 0, reader = 0;  // the reader may be SEVERAL
};

struct Array {
  const void* site;
  const char* name;
  int element_bytes;
  std::vector<char> bytes;
  std::vector<Element> elements;
};

namespace {

constexpr int LARGEST_WARP = 64, SEVERAL = -1;

enum State { READY, AT_BARRIER, IN_SHUFFLE, IN_PRODUCT, DONE };
const char* const DOES[] = {"runs", "waits at a barrier", "waits in a shuffle", "waits in a matrix product", "has ended"};
bool in_warp(State state) { return state == IN_SHUFFLE || state == IN_PRODUCT; }

// The values that the lanes of a warp give to each other.
struct Exchange : Operands {
  float values[LARGEST_WARP];
};

struct Thread : Fiber {
  int id, lane;
  Exchange *next, *last;  // used in turn, so that no lane overwrites a value that another has yet to read
  State state;
};

struct Launch {
  void (*kernel)(void** arguments);
  void** arguments;
  int grid_x, grid_y, threads, warp;
  size_t shared_bytes;  // the most that a block may have
  uint64_t seed;  // order of turns: 0 is forward, 1 reversed; other seeds shuffle it for each round
};

// Runs one block of a launch after the other, with the same stacks and the same shared memory.
class Block {
 public:
  explicit Block(const Launch& launch)
      : launch_(launch), threads_(launch.threads), order_(launch.threads),
        exchanges_(2 * (launch.threads / launch.warp + 1)) {}

  // Runs block `number` of the grid. Returns false after an error. `error` is then "block (x, y), thread t: message"
  // and a line for each call that led there, as an offset in the kernel's library, the innermost first.
  bool run(int number);
  std::string error;

  // For the thread whose turn it is:
  void wait(State state);
  Exchange& exchange();
  float shuffle(float v, int lane);
  Array* array(const void* site, const char* name, int count, int element_bytes);
  void read(Array& array, int i);
  void write(Array& array, int i);
  __attribute__((noreturn, format(printf, 2, 3))) void fail(const char* format, ...);

  Thread* current = nullptr;
  int x = 0, y = 0;

 private:
  static void thread_main();
  void shuffle_order();
  bool all(State state, int first, int end) const;
  bool release();
  void explain_deadlock();
  Element& element(Array& array, int i);

  const Launch& launch_;
  std::vector<Thread> threads_;
  std::vector<int> order_;
  uint64_t random_ = 0;
  std::vector<Exchange> exchanges_;
  std::deque<Array> arrays_;
  unsigned phase_ = 0, first_phase_ = 0;
  char deadlock_[128] = "";
  Fiber scheduler_;
};

// Kernels ask for it at every access, and other models of thread-local storage take a call for that.
__attribute__((tls_model("initial-exec"))) thread_local Block* block;

bool Block::run(int number) {
  block = this;
  x = number % launch_.grid_x;
  y = number / launch_.grid_x;
  random_ = launch_.seed + number;
  first_phase_ = ++phase_;
  for (int t = 0; t < launch_.threads; t++) {
    Thread& thread = threads_[t];
    thread.start(thread_main);
    thread.id = t;
    thread.lane = t % launch_.warp;
    thread.next = &exchanges_[t / launch_.warp * 2];
    thread.last = thread.next + 1;
    thread.state = READY;
    order_[t] = launch_.seed == 1 ? launch_.threads - 1 - t : t;
  }
  for (;;) {
    if (launch_.seed > 1) shuffle_order();
    for (int t : order_) {
      if (threads_[t].state != READY) continue;
      current = &threads_[t];
      scheduler_.switch_to(*current);
      if (!error.empty()) return false;
    }
    if (all(DONE, 0, launch_.threads)) return true;
    if (!release()) {
      explain_deadlock();
      return false;
    }
  }
}

void Block::thread_main() {
  Fiber::entered(block->scheduler_);
  block->launch_.kernel(block->launch_.arguments);
  block->wait(DONE);
}

// The shuffle of Fisher and Yates, with Knuth's linear congruential generator.
void Block::shuffle_order() {
  for (int i = launch_.threads - 1; i > 0; i--) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    std::swap(order_[i], order_[(random_ >> 32) * (i + 1) >> 32]);  // a division would take longer than all else
  }
}

void Block::wait(State state) {
  current->state = state;
  current->switch_to(scheduler_, state == DONE);
  if (deadlock_[0]) fail("%s", deadlock_);
}

Exchange& Block::exchange() {
  std::swap(current->next, current->last);
  return *current->last;
}

float Block::shuffle(float v, int lane) {
  if (lane < 0 || lane >= launch_.warp) fail("a shuffle asks for lane %d of %d", lane, launch_.warp);
  Exchange& shown = exchange();
  shown.values[current->lane] = v;
  wait(IN_SHUFFLE);
  return shown.values[lane];
}

bool Block::all(State state, int first, int end) const {
  for (int t = first; t < end; t++) {
    if (threads_[t].state != state) return false;
  }
  return true;
}

// Lets the threads continue whose barrier or exchange is complete. Returns false if there are none.
bool Block::release() {
  int threads = launch_.threads, warp = launch_.warp;
  if (all(AT_BARRIER, 0, threads)) {
    for (Thread& thread : threads_) thread.state = READY;
    phase_++;
    return true;
  }
  bool any = false;
  for (int first = 0; first + warp <= threads; first += warp) {
    State state = threads_[first].state;
    if (!in_warp(state) || !all(state, first, first + warp)) continue;
    for (int t = first; t < first + warp; t++) threads_[t].state = READY;
    any = true;
  }
  return any;
}

// Lets a thread that waits in vain report it, so that the error has the place at which it waits. Threads in an exchange
// come before those at a barrier.
void Block::explain_deadlock() {
  auto exchanging = [](const Thread& thread) { return in_warp(thread.state); };
  auto at_barrier = [](const Thread& thread) { return thread.state == AT_BARRIER; };
  auto waiting = std::find_if(threads_.begin(), threads_.end(), exchanging);
  auto first = threads_.begin(), end = threads_.end();
  if (waiting != end) {
    first += waiting->id / launch_.warp * launch_.warp;
    end = first + std::min<int>(launch_.warp, end - first);
  } else {
    waiting = std::find_if(first, end, at_barrier);
  }
  const char* does = DOES[waiting->state];
  auto other = std::find_if(first, end, [&](const Thread& thread) { return thread.state != waiting->state; });
  if (other != end) {
    snprintf(deadlock_, sizeof deadlock_, "%s, which thread %d never reaches: it %s", does, other->id, DOES[other->state]);
  } else {
    snprintf(deadlock_, sizeof deadlock_, "%s, but its warp has only %d lanes", does, int(end - first));
  }
  current = &*waiting;
  scheduler_.switch_to(*current);
}

void Block::fail(const char* format, ...) {
  char text[256];
  int start = snprintf(text, sizeof text, "block (%d, %d), thread %d: ", x, y, current->id);
  va_list values;
  va_start(values, format);
  vsnprintf(text + start, sizeof text - start, format, values);
  va_end(values);
  error = text;

  void* calls[16];  // return addresses; the call itself ends a byte before
  int count = backtrace(calls, 16);
  Dl_info kernel, library;
  dladdr((void*)launch_.kernel, &kernel);
  for (int i = 0; i < count; i++) {
    if (!dladdr(calls[i], &library) || library.dli_fbase != kernel.dli_fbase) continue;
    snprintf(text, sizeof text, "\n%zx", (size_t)((char*)calls[i] - (char*)library.dli_fbase - 1));
    error += text;
  }
  current->switch_to(scheduler_, true);
  abort();  // never reached: after an error no thread gets a turn
}

Array* Block::array(const void* site, const char* name, int count, int element_bytes) {
  size_t total = (size_t)count * element_bytes;
  for (Array& array : arrays_) {
    if (array.site == site) return &array;
    total += (array.bytes.size() + 15) / 16 * 16;
  }
  if (total > launch_.shared_bytes) {
    fail("%zu bytes of shared memory with %s, more than %zu", total, name, launch_.shared_bytes);
  }
  arrays_.push_back({site, name, element_bytes, std::vector<char>((size_t)count * element_bytes),
                     std::vector<Element>(count)});
  return &arrays_.back();
}

Element& Block::element(Array& array, int i) {
  int count = array.elements.size();
  if (i < 0 || i >= count) fail("%s[%d] is outside of its %d elements", array.name, i, count);
  return array.elements[i];
}

void Block::read(Array& array, int i) {
  Element& e = element(array, i);
  int me = current->id;
  if (e.written_in < first_phase_) fail("%s[%d] is read, but nobody has written it", array.name, i);
  if (e.written_in == phase_ && e.writer != me) {
    fail("%s[%d] is read, but thread %d has written it since the last barrier", array.name, i, e.writer);
  }
  e.reader = e.read_in == phase_ && e.reader != me ? SEVERAL : me;
  e.read_in = phase_;
}

void Block::write(Array& array, int i) {
  Element& e = element(array, i);
  int me = current->id;
  if (e.written_in == phase_ && e.writer != me) {
    fail("%s[%d] is written, but thread %d has written it since the last barrier", array.name, i, e.writer);
  }
  if (e.read_in == phase_ && e.reader != me) {
    fail("%s[%d] is written, but another thread has read it since the last barrier", array.name, i);
  }
  e.writer = me;
  e.written_in = phase_;
}

}  // namespace

// ---- functions that kernels call --------------------------------------------------------------------------------------

int thread_id() { return block->current->id; }
int block_x() { return block->x; }
int block_y() { return block->y; }
void sync() { block->wait(AT_BARRIER); }

float shuffle(float v, int lane) { return block->shuffle(v, lane); }
Operands& operands() { return block->exchange(); }

// Here and not in the header, because the kernels are compiled with less optimization
void add_products(float* first, float* last, const Operands& all, const int* rows, const int* columns, int elements,
                  int edge) {
  block->wait(IN_PRODUCT);
  for (int i = 0; i < elements; i++) {
    const float *a = all.a[rows[i]], *b = all.b[columns[i]];
    for (int half = 0; half < 2; half++) {
      float& out = (half ? last : first)[i];
      float sum = out;
      for (int k = edge / 2 * half; k < edge / 2 * (half + 1); k++) sum += a[k] * b[k];
      out = sum;
    }
  }
}

Array* shared_array(const void* site, const char* name, int count, int element_bytes) {
  return block->array(site, name, count, element_bytes);
}

const void* read(Array* array, int i, int count) {
  for (int e = i; e < i + count; e++) block->read(*array, e);
  return &array->bytes[(size_t)i * array->element_bytes];
}

void* write(Array* array, int i, int count) {
  for (int e = i; e < i + count; e++) block->write(*array, e);
  return &array->bytes[(size_t)i * array->element_bytes];
}

void check_alignment(Array* array, int i, int bytes) {
  if (i * array->element_bytes % bytes) block->fail("%s[%d] is not at a multiple of %d bytes", array->name, i, bytes);
}

}  // namespace executor

// Runs all blocks, as many at a time as the host has cores. Writes the error of the first block that fails, or "".
extern "C" void executor_run(void (*kernel)(void**), void** arguments, int grid_x, int grid_y, int threads, int warp,
                             size_t shared_bytes, uint64_t seed, char* error, size_t error_bytes) {
  using executor::Block;
  executor::Launch launch{kernel, arguments, grid_x, grid_y, threads, warp, shared_bytes, seed};
  int blocks = grid_x * grid_y, cores = std::max(1u, std::thread::hardware_concurrency());
  std::atomic<int> next{0};
  std::vector<std::pair<int, std::string>> errors(std::min(blocks, cores), {blocks, ""});
  auto work = [&](std::pair<int, std::string>& failed) {
    Block block(launch);
    for (int number; (number = next++) < blocks;) {
      if (block.run(number)) continue;
      failed = {number, block.error};
      next = blocks;
    }
  };
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < errors.size(); i++) helpers.emplace_back(work, std::ref(errors[i]));
  work(errors[0]);
  for (std::thread& helper : helpers) helper.join();
  snprintf(error, error_bytes, "%s", std::min_element(errors.begin(), errors.end())->second.c_str());
}
