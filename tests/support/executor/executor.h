// A GPU on the host, as kernels see it: the functions and types that common.h expects of a compiler, in plain C++.
// executor.cpp does the work behind them.
//
// Kernels reach shared memory through objects that report every read and write to the executor. It knows the array's
// bounds.
//
// It includes C's headers of types and none of C++'s, because each compilation of a kernel would read them: that takes
// 10 ms, and a small kernel 100.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define KERNEL(...) static void // so that one without an entry costs no time
#define DEVICE inline
#define UNROLL
#define NO_UNROLL
#define SHARED(T, name, count) \
  static char name##_site;     \
  const executor::Shared<T> name(executor::shared_array(&name##_site, #name, count, sizeof(T)), 0)

namespace gpt {
template <class T> struct Vector;
}

namespace executor {

// ---- the work of executor.cpp for the thread whose turn it is ---------------------------------------------------------

// These are constant for a thread, but not for the host's thread, which runs many fibers.
__attribute__((const)) int thread_id();
__attribute__((const)) int block_x();
__attribute__((const)) int block_y();

void sync();
float shuffle(float v, int lane);

// The operands of a warp's next product, a by rows and b by columns. The lanes fill them together.
struct Operands {
  float a[32][32], b[32][32];
};
Operands& operands();
// Waits until the whole warp has stored its operands, and adds the products of the lane's elements, which lie at
// rows[i] and columns[i]. The first half of the k is added to first[i], the other to last[i], which may be the same sum.
void add_products(float* first, float* last, const Operands& all, const int* rows, const int* columns, int elements,
                  int edge);

struct Array;
// The block's array that is declared at `site`.
Array* shared_array(const void* site, const char* name, int count, int element_bytes);
// `count` elements of an array from i on, for reading or for writing.
const void* read(Array* array, int i, int count);
void* write(Array* array, int i, int count);
// Reports an access of `bytes` at element i whose address is not a multiple of its size.
void check_alignment(Array* array, int i, int bytes);

// ---- the matrix product -----------------------------------------------------------------------------------------------

inline float bf16_value(uint32_t half) {
  uint32_t bits = half << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// As the unit reads a number: without its 13 lower bits
inline float tf32_value(uint32_t bits) {
  bits &= ~0x1fffu;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// A lane's part of the product. Layout says which elements these are.
template <class Layout> void add_products(float* first, float* last, const Operands& all) {
  int rows[Layout::ELEMENTS], columns[Layout::ELEMENTS];
  for (int i = 0; i < Layout::ELEMENTS; i++) {
    rows[i] = Layout::row(i);
    columns[i] = Layout::column(i);
  }
  add_products(first, last, all, rows, columns, Layout::ELEMENTS, Layout::EDGE);
}

// c += a b for square matrices. Each lane has the parts that Layout gives it.
template <class Layout> void multiply_add(float* c, const uint32_t* a, const uint32_t* b) {
  Operands& all = operands();
  for (int j = 0; j < Layout::WORDS; j++) {
    for (int half = 0; half < 2; half++) {
      all.a[Layout::a_row(j)][Layout::a_k(j) + half] = bf16_value(a[j] >> 16 * half & 0xffff);
      all.b[Layout::b_column(j)][Layout::b_k(j) + half] = bf16_value(b[j] >> 16 * half & 0xffff);
    }
  }
  add_products<Layout>(c, c, all);
}

// The same for operands of tf32, one number a word.
template <class Layout> void multiply_add_tf32(float* first, float* last, const uint32_t* a, const uint32_t* b) {
  Operands& all = operands();
  for (int j = 0; j < Layout::WORDS; j++) {
    all.a[Layout::a_row(j)][Layout::a_k(j)] = tf32_value(a[j]);
    all.b[Layout::b_column(j)][Layout::b_k(j)] = tf32_value(b[j]);
  }
  add_products<Layout>(first, last, all);
}

// ---- shared memory ----------------------------------------------------------------------------------------------------

// A pointer into an array in shared memory.
template <class T> class Shared {
 public:
  // A reference to an element, which tells reads from writes.
  class Place {
   public:
    Place(Array* array, int i) : array_(array), i_(i) {}
    operator T() const { return *(const T*)read(array_, i_, 1); }
    void operator=(T v) const { *(T*)write(array_, i_, 1) = v; }
    void operator=(const Place& other) const { *this = (T)other; }
    void operator+=(T v) const { *this = (T)*this + v; }

   private:
    Array* array_;
    int i_;
  };

  Shared(Array* array, int offset) : array_(array), offset_(offset) {}
  Place operator[](int i) const { return Place(array_, offset_ + i); }
  Shared operator+(int i) const { return Shared(array_, offset_ + i); }

  // Neighboring elements that a GPU reads or writes in one access, at a multiple of their size.
  gpt::Vector<T> vector(int i) const {
    gpt::Vector<T> v;
    check_alignment(array_, offset_ + i, sizeof v);
    __builtin_memcpy(&v, read(array_, offset_ + i, gpt::Vector<T>::SIZE), sizeof v);
    return v;
  }
  void set_vector(int i, gpt::Vector<T> v) const {
    check_alignment(array_, offset_ + i, sizeof v);
    __builtin_memcpy(write(array_, offset_ + i, gpt::Vector<T>::SIZE), &v, sizeof v);
  }
  uint32_t word(int i) const {
    uint32_t word;
    static_assert(2 * sizeof(T) == sizeof word, "a word is two bf16");
    check_alignment(array_, offset_ + i, sizeof word);
    __builtin_memcpy(&word, read(array_, offset_ + i, 2), sizeof word);
    return word;
  }

 private:
  Array* array_;
  int offset_;
};

// ---- a kernel for the host to call ------------------------------------------------------------------------------------

// The letter for a parameter's type: p is a pointer, f and d are floats of 4 and 8 bytes, i and l integers of 4 and 8.
template <class T> constexpr char CODE = sizeof(T) == 4 ? 'i' : sizeof(T) == 8 ? 'l' : '?';
template <class T> constexpr char CODE<T*> = 'p';
template <> constexpr char CODE<float> = 'f';
template <> constexpr char CODE<double> = 'd';

template <auto kernel> struct Entry;
template <class... A, void (*kernel)(A...)> struct Entry<kernel> {
  static constexpr char parameters[] = {CODE<A>..., 0};
  struct Call {
    Call(A... arguments) { kernel(arguments...); }
  };
  template <class T> static T& next(void**& arguments) { return *(T*)*arguments++; }
  static void call(void** arguments) { Call{next<A>(arguments)...}; }  // braces, unlike parentheses, keep the order
};

}  // namespace executor

// Stands at the end of a source, once for each kernel. It defines three functions: the letters of the kernel's
// parameters, the largest block that it was declared for, and a call of it.
#define EXECUTOR_ENTRY(name, most)                                                            \
  extern "C" const char* parameters_##name() { return executor::Entry<::name>::parameters; }  \
  extern "C" int threads_##name() { return most; }                                            \
  extern "C" void call_##name(void** arguments) { executor::Entry<::name>::call(arguments); }
