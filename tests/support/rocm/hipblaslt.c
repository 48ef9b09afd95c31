// hipBLASLt on the CPU: column-major products. SIMULATED_HIPBLASLT is its mode:
//   whole       it has every epilogue that gpt/ops/gpu/blas.py asks for
//   products    it has an algorithm for plain products, but for none with an epilogue
//   nothing     it has an algorithm for no product
//   promises    it has an algorithm for every product, and then says that it is not supported
//   wrong       as whole, but every product with a bias is wrong in its first element
//   broken      hipblasLtCreate fails
//   dies        hipblasLtCreate ends the program
//   crashes     the first product ends the program
// Numbers are those of hipblaslt.h and hipblas-common.h. Any other number is an invalid value.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 3, INTERNAL_ERROR = 6, NOT_SUPPORTED = 7 };  // hipblasStatus_t
enum { FLOAT32 = 0, BF16 = 14, COMPUTE_32F = 2, OP_N = 111, OP_T = 112 };        // hipDataType, …
enum { DEFAULT = 1, BIAS = 4, GELU_AUX_BIAS = 164, DGELU = 192 };                // hipblasLtEpilogue_t
enum { MAX_WORKSPACE_BYTES = 1, ALGORITHM = 0x1234 };

typedef struct {
  int transposed[2], epilogue, bias_type;
  void *bias, *aux;
  int64_t aux_ld;
} Product;
typedef struct {
  int type;
  int64_t rows, columns, ld, apart;
  int count;
} Layout;

static int is(const char* mode) { return !strcmp(getenv("SIMULATED_HIPBLASLT"), mode); }

static float get(const void* p, int type, int64_t i) {
  if (type == FLOAT32) return ((const float*)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t*)p)[i] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void set(void* p, int type, int64_t i, float value) {
  if (type == FLOAT32) {
    ((float*)p)[i] = value;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  ((uint16_t*)p)[i] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

int hipblasLtCreate(void** handle) {
  if (is("dies")) abort();
  *handle = handle;
  return is("broken") ? INTERNAL_ERROR : SUCCESS;
}

int hipblasLtMatmulDescCreate(Product** product, int compute, int scale_type) {
  *product = calloc(1, sizeof(Product));
  (*product)->transposed[0] = (*product)->transposed[1] = OP_N;
  (*product)->epilogue = DEFAULT;
  return compute == COMPUTE_32F && scale_type == FLOAT32 ? SUCCESS : INVALID_VALUE;
}

int hipblasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t size) {
  struct {
    int attribute;
    void* field;
    size_t size;
  } fields[] = {{0, &product->transposed[0], 4}, {1, &product->transposed[1], 4}, {2, &product->epilogue, 4},
                {3, &product->bias, 8},          {4, &product->bias_type, 4},     {10, &product->aux, 8},
                {11, &product->aux_ld, 8}};
  for (int i = 0; i < sizeof fields / sizeof *fields; i++) {
    if (fields[i].attribute != attribute || fields[i].size != size) continue;
    memcpy(fields[i].field, value, size);
    return SUCCESS;
  }
  return INVALID_VALUE;
}

int hipblasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  *layout = malloc(sizeof(Layout));
  **layout = (Layout){type, rows, columns, ld, 0, 1};
  return (type == FLOAT32 || type == BF16) && ld >= (int64_t)rows ? SUCCESS : INVALID_VALUE;
}

int hipblasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t size) {
  void* fields[] = {&layout->count, &layout->apart};  // HIPBLASLT_MATRIX_LAYOUT_BATCH_COUNT, …_STRIDED_BATCH_OFFSET
  if (attribute < 0 || attribute > 1 || size != (attribute ? 8 : 4)) return INVALID_VALUE;
  memcpy(fields[attribute], value, size);
  return SUCCESS;
}

int hipblasLtMatmulPreferenceCreate(void** preference) {
  *preference = malloc(8);
  return SUCCESS;
}

int hipblasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t size) {
  return attribute == MAX_WORKSPACE_BYTES && size == 8 ? SUCCESS : INVALID_VALUE;
}

int hipblasLtMatmulPreferenceDestroy(void* preference) {
  free(preference);
  return SUCCESS;
}

int hipblasLtMatmulAlgoGetHeuristic(void* handle, const Product* product, const Layout* a, const Layout* b, const Layout* c,
                                    const Layout* d, void* preference, int requested, int* result, int* found) {
  *found = !is("nothing") && (product->epilogue == DEFAULT || !is("products"));
  *result = ALGORITHM;
  return SUCCESS;
}

// GELU by the tanh approximation, or its derivative if `gradient` is not 0.
static float gelu(float x, int gradient) {
  float k = 0.7978845608f, t = tanhf(k * (x + 0.044715f * x * x * x));
  if (!gradient) return 0.5f * x * (1 + t);
  return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * k * (1 + 3 * 0.044715f * x * x);
}

int hipblasLtMatmul(void* handle, const Product* product, const float* alpha, const void* a, const Layout* a_layout,
                    const void* b, const Layout* b_layout, const float* beta, const void* c, const Layout* c_layout,
                    void* d, const Layout* d_layout, const int* algorithm, void* workspace, size_t workspace_size,
                    void* stream) {
  if (is("crashes")) abort();
  if (is("promises")) return NOT_SUPPORTED;
  int a_transposed = product->transposed[0] == OP_T, b_transposed = product->transposed[1] == OP_T;
  int64_t m = d_layout->rows, n = d_layout->columns, k = a_transposed ? a_layout->rows : a_layout->columns;
  if (*algorithm != ALGORITHM || m != (a_transposed ? a_layout->columns : a_layout->rows) ||
      n != (b_transposed ? b_layout->rows : b_layout->columns) || k != (b_transposed ? b_layout->columns : b_layout->rows))
    return INVALID_VALUE;
  if (a_layout->count != d_layout->count || b_layout->count != d_layout->count || c_layout->count != d_layout->count)
    return INVALID_VALUE;
  for (int64_t element = 0; element < d_layout->count * n * m; element++) {
    int64_t matrix = element / (n * m), j = element / m % n, i = element % m;
    float sum = 0;
    for (int64_t l = 0; l < k; l++) {
      int64_t at_a = a_transposed ? l + i * a_layout->ld : i + l * a_layout->ld;
      int64_t at_b = b_transposed ? j + l * b_layout->ld : l + j * b_layout->ld;
      sum += get(a, a_layout->type, matrix * a_layout->apart + at_a) *
             get(b, b_layout->type, matrix * b_layout->apart + at_b);
    }
    int64_t at_c = matrix * c_layout->apart + i + j * c_layout->ld, at_aux = i + j * product->aux_ld;
    sum = *alpha * sum + (*beta ? *beta * get(c, c_layout->type, at_c) : 0);
    switch (product->epilogue) {
      case DEFAULT: break;
      case BIAS: sum += get(product->bias, product->bias_type, i) + (is("wrong") && !element); break;
      case GELU_AUX_BIAS:
        sum += get(product->bias, product->bias_type, i);
        set(product->aux, d_layout->type, at_aux, sum);
        sum = gelu(sum, 0);
        break;
      case DGELU: sum *= gelu(get(product->aux, d_layout->type, at_aux), 1); break;
      default: return INVALID_VALUE;
    }
    set(d, d_layout->type, matrix * d_layout->apart + i + j * d_layout->ld, sum);
  }
  return SUCCESS;
}
