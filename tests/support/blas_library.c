/* A stand-in for cuBLASLt or hipBLASLt on the host. It computes the product that the descriptors describe and relies on
 * nothing else. Matrices are column-major, as in both libraries.
 *
 * With -DROCM the functions have hipBLASLt's names and the constants have the numbers of hipblaslt.h. Without it names
 * and numbers are those of cuBLASLt and cublasLt.h. `refuse` is an epilogue for which it has no algorithm (or -1, and it
 * has none for any product). `failure` is the status that every product ends with. `wrong` is an epilogue (1: none), or
 * -1 for products that are added to something: `deviation` is added to the last element of their results. `products`
 * counts the products. `crash` is the signal by which the first product ends the program. */
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef ROCM
#define NAME(x) hipblasLt##x
enum { TRANSA = 0, TRANSB = 1, EPILOGUE = 2, BIAS = 3, BIAS_TYPE = 4, AUX = 10, AUX_LD = 11, OP_N = 111, OP_T = 112 };
enum { COMPUTE = 2, COMPUTE_TF32 = 2, INVALID = 3, BATCH_COUNT = 0, BATCH_STRIDE = 1 };
#else
#define NAME(x) cublasLt##x
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS = 8, BIAS_TYPE = 26, AUX = 11, AUX_LD = 12, OP_N = 0, OP_T = 1 };
enum { COMPUTE = 68, COMPUTE_TF32 = 77, INVALID = 7, BATCH_COUNT = 5, BATCH_STRIDE = 6 };
#endif
enum { F32 = 0, BF16 = 14, E_BIAS = 4, E_GELU = 32, E_GELU_AUX_BIAS = 164, E_DGELU = 192 };

typedef struct { int compute, transa, transb, epilogue, bias_type; void *bias, *aux; int64_t aux_ld; } Desc;
typedef struct { int type; uint64_t rows, columns; int64_t ld; int count; int64_t apart; } Layout;

int refuse = 0, failure = 0, heuristics = 0, last_compute = 0, wrong = 0, products = 0, crash = 0;
float deviation = 0.125f;

int NAME(Create)(void** handle) { *handle = (void*)0x1234; return 0; }
int NAME(MatmulDescCreate)(Desc** d, int compute, int scale) {
  if ((compute != COMPUTE && compute != COMPUTE_TF32) || scale != F32) return INVALID;
  *d = calloc(1, sizeof **d);
  (*d)->compute = compute; (*d)->transa = (*d)->transb = OP_N; (*d)->epilogue = 1;
  return 0;
}
int NAME(MatmulDescSetAttribute)(Desc* d, int attribute, const void* v, size_t size) {
  if (attribute == BIAS || attribute == AUX) { if (size != 8) return INVALID; memcpy(attribute == BIAS ? &d->bias : &d->aux, v, 8); return 0; }
  if (attribute == AUX_LD) { if (size != 8) return INVALID; memcpy(&d->aux_ld, v, 8); return 0; }
  if (size != 4) return INVALID;
  int value = *(const int*)v;
  if (attribute == TRANSA) d->transa = value;
  else if (attribute == TRANSB) d->transb = value;
  else if (attribute == EPILOGUE) d->epilogue = value;
  else if (attribute == BIAS_TYPE) d->bias_type = value;
  else return INVALID;
  return attribute <= TRANSB && value != OP_N && value != OP_T && (attribute == TRANSA || attribute == TRANSB) ? INVALID : 0;
}
int NAME(MatrixLayoutCreate)(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if (type != F32 && type != BF16) return INVALID;
  *l = malloc(sizeof **l); **l = (Layout){type, rows, columns, ld, 1, 0}; return 0;
}
int NAME(MatrixLayoutSetAttribute)(Layout* l, int attribute, const void* v, size_t size) {
  if (attribute == BATCH_COUNT && size == 4) { memcpy(&l->count, v, 4); return 0; }
  if (attribute == BATCH_STRIDE && size == 8) { memcpy(&l->apart, v, 8); return 0; }
  return INVALID;
}
int NAME(MatmulPreferenceCreate)(void** p) { *p = calloc(1, 64); return 0; }
int NAME(MatmulPreferenceDestroy)(void* p) { free(p); return 0; }
int NAME(MatmulPreferenceSetAttribute)(void* p, int attribute, const void* v, size_t size) { return attribute == 1 && size == 8 ? 0 : INVALID; }
int NAME(MatmulAlgoGetHeuristic)(void* h, Desc* d, Layout* a, Layout* b, Layout* c, Layout* o, void* p, int wanted, void* result, int* found) {
  heuristics++;
  int needs_bias = d->epilogue == E_BIAS || d->epilogue == E_GELU_AUX_BIAS, needs_aux = d->epilogue == E_GELU_AUX_BIAS || d->epilogue == E_DGELU;
  *found = !(refuse == -1 || (refuse && d->epilogue == refuse) || (needs_bias && !d->bias) || (needs_aux && !d->aux));
  memset(result, 0x5a, 64);
  return 0;
}
static float get(const void* p, int type, int64_t i) {
  if (type == F32) return ((const float*)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t*)p)[i] << 16; float f; memcpy(&f, &bits, 4); return f;
}
static void set(void* p, int type, int64_t i, float v) {
  if (type == F32) { ((float*)p)[i] = v; return; }
  uint32_t bits; memcpy(&bits, &v, 4); ((uint16_t*)p)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
int NAME(Matmul)(void* h, Desc* d, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb, const float* beta,
                 const void* c, Layout* lc, void* o, Layout* lo, const void* algorithm, void* workspace, size_t bytes, void* stream) {
  if (h != (void*)0x1234 || *(const unsigned char*)algorithm != 0x5a) return INVALID;
  last_compute = d->compute, products++;
  if (crash) raise(crash);
  if (failure) return failure;
  uint64_t m = lo->rows, n = lo->columns, k = d->transa == OP_N ? la->columns : la->rows;
  if ((d->transa == OP_N ? la->rows : la->columns) != m || (d->transb == OP_N ? lb->columns : lb->rows) != n) return INVALID;
  if ((d->transb == OP_N ? lb->rows : lb->columns) != k || la->type != lb->type) return INVALID;
  if (la->count != lo->count || lb->count != lo->count || lc->count != lo->count) return INVALID;
  for (int64_t s = 0; s < lo->count; s++) for (uint64_t j = 0; j < n; j++) for (uint64_t i = 0; i < m; i++) {
    double sum = 0;
    for (uint64_t q = 0; q < k; q++) {
      float x = get(a, la->type, s * la->apart + (d->transa == OP_N ? i + q * la->ld : q + i * la->ld));
      sum += (double)x * get(b, lb->type, s * lb->apart + (d->transb == OP_N ? q + j * lb->ld : j + q * lb->ld));
    }
    double v = *alpha * sum + (*beta ? *beta * get(c, lc->type, s * lc->apart + i + j * lc->ld) : 0);
    if (d->epilogue == E_BIAS || d->epilogue == E_GELU_AUX_BIAS) v += get(d->bias, d->bias_type, i);
    int64_t at = i + j * d->aux_ld;
    if (d->epilogue == E_GELU_AUX_BIAS) {
      set(d->aux, lo->type, at, v);
      v = v / 2 * (1 + tanh(0.7978845608 * (v + 0.044715 * v * v * v)));
    } else if (d->epilogue == E_DGELU) {
      double x = get(d->aux, lo->type, at), u = 0.7978845608 * (x + 0.044715 * x * x * x), t = tanh(u);
      v *= (1 + t) / 2 + x / 2 * (1 - t * t) * 0.7978845608 * (1 + 3 * 0.044715 * x * x);
    }
    int is_wrong = wrong == -1 ? *beta != 0 : wrong == d->epilogue;
    if (is_wrong && s == lo->count - 1 && j == n - 1 && i == m - 1) v += deviation;
    set(o, lo->type, s * lo->apart + i + j * lo->ld, v);
  }
  return 0;
}
