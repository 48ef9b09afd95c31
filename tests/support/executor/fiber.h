// Fibers: functions on stacks of their own that take turns within one thread of the host.
//
// A switch saves a dozen registers. The alternatives are worse: swapcontext makes a system call, and after a longjmp
// AddressSanitizer no longer watches the frames of the stack that was left.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1  // clang has another name for it than g++
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Pushes the registers that a call must preserve, stores the stack pointer in *from, and continues the fiber with stack
// pointer `to`.
extern "C" void executor_switch(void** from, void* to) asm("executor_switch");
#if defined(__x86_64__)
asm(R"(
.text
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
constexpr int FRAME_WORDS = 8, RETURN_WORD = 6;  // the last word takes the place of the one that a call pushes
#elif defined(__aarch64__)
asm(R"(
.text
executor_switch:
  stp x19, x20, [sp, #-160]!
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
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
)");
constexpr int FRAME_WORDS = 20, RETURN_WORD = 11;
#else
#error "the executor switches stacks on x86-64 and aarch64 only"
#endif

namespace executor {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 256 << 10;  // enough for AddressSanitizer's guard bands around each variable
#else
constexpr size_t STACK_BYTES = (64 << 10) + 192;  // if it were a power of two, all tops would share one set of the cache
#endif

// Stacks for fibers. A stack that is given back keeps its pages of memory, which the system would have to clear anew.
class Stacks {
 public:
  char* take() {
    std::lock_guard<std::mutex> guard(mutex_);
    if (free_.empty()) return new char[STACK_BYTES];  // not zeroed: most of its pages are never touched
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give_back(char* stack) {
#if defined(__SANITIZE_ADDRESS__)
    delete[] stack;  // if the fiber was left in the middle, there still are guard bands around its variables
#else
    std::lock_guard<std::mutex> guard(mutex_);
    free_.push_back(stack);
#endif
  }

 private:
  std::mutex mutex_;
  std::vector<char*> free_;
};
inline Stacks stacks;

// One flow of control, running or suspended: a fiber, or the host's own flow, whose stack is not ours.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (stack_) stacks.give_back(stack_);
  }

  // Lets the next switch to this fiber call `entry`, which first calls entered() and never returns.
  void start(void (*entry)()) {
    if (!stack_) stack_ = stacks.take();
    bounds_ = {stack_, STACK_BYTES};
    void** frame = (void**)((uintptr_t)(stack_ + STACK_BYTES) & ~(uintptr_t)15) - FRAME_WORDS;
    for (int i = 0; i < FRAME_WORDS; i++) frame[i] = nullptr;
    frame[RETURN_WORD] = (void*)entry;
    top_ = frame;
  }

  // Leaves this flow for `to`, and returns when something switches back.
  void switch_to(Fiber& to, bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &shadow_, to.bounds_.stack, to.bounds_.bytes);
#endif
    (void)for_good;
    executor_switch(&top_, to.top_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow_, nullptr, nullptr);
#endif
  }

  static void entered(Fiber& from) {
    (void)from;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.bounds_.stack, &from.bounds_.bytes);
#endif
  }

 private:
  struct Bounds {
    const void* stack;
    size_t bytes;
  };
  char* stack_ = nullptr;
  Bounds bounds_ = {};
  void* top_ = nullptr;
  [[maybe_unused]] void* shadow_ = nullptr;  // AddressSanitizer's record of this stack
};

}  // namespace executor
