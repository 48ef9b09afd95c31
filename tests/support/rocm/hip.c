// The part of the HIP runtime that CuPy needs, without a GPU: memory is the host's, and all work is done when a call
// returns. Modules and launches go to the functions that were given to simulated_on. CuPy links to other functions too:
// _build_libraries in __init__.py adds them, and they do nothing. Numbers are those of hip_runtime_api.h, ROCm 7.
//
// The environment describes the GPUs: SIMULATED_TARGET is their kind ("gfx942"), SIMULATED_GPUS their number.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned u32;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_SUPPORTED = 801 };
enum { MAJOR = 23, MINOR = 61, WARP_SIZE = 87 };  // hipDeviceAttribute_t

typedef struct {
  size_t module;
  char name[];
} Function;

static size_t (*on_load)(const void* image);
static void (*on_launch)(size_t module, const char* name, const u32* grid_and_block, void** arguments);
static const size_t MEMORY = (size_t)16 << 30;

void simulated_on(void* load, void* launch) {
  on_load = load;
  on_launch = launch;
}

static const char* target(void) { return getenv("SIMULATED_TARGET"); }
static int is_gfx9(void) { return strlen(target()) == 6; }
static int major(void) { return is_gfx9() ? 9 : atoi(target() + 3) / 100; }
static int minor(void) { return target()[strlen(target()) - 2] - '0'; }

int hipGetDeviceCount(int* count) {
  *count = atoi(getenv("SIMULATED_GPUS"));
  return *count ? SUCCESS : NO_DEVICE;
}

// hipDeviceProp_tR0600 begins with the name; the offsets are those of its fields.
int hipGetDevicePropertiesR0600(char* properties, int device) {
  memset(properties, 0, 1472);
  strcpy(properties, "Simulated Radeon");
  memcpy(properties + 288, &MEMORY, 8);
  *(int*)(properties + 308) = is_gfx9() ? 64 : 32;
  *(int*)(properties + 360) = major();
  *(int*)(properties + 364) = minor();
  sprintf(properties + 1160, is_gfx9() ? "%s:sramecc+:xnack-" : "%s", target());
  return SUCCESS;
}

int hipDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == MAJOR ? major() : attribute == MINOR ? minor() : attribute == WARP_SIZE ? (is_gfx9() ? 64 : 32) : 0;
  return SUCCESS;
}

int hipRuntimeGetVersion(int* version) {
  *version = 70051831;
  return SUCCESS;
}

int hipDriverGetVersion(int* version) { return hipRuntimeGetVersion(version); }

static __thread int current;

int hipGetDevice(int* device) {
  *device = current;
  return SUCCESS;
}

int hipSetDevice(int device) {
  current = device;
  return SUCCESS;
}

int hipDeviceGetPCIBusId(char* id, int size, int device) {
  snprintf(id, size, "0000:%02x:00.0", 3 + device);
  return SUCCESS;
}

int hipCtxGetCurrent(void** context) {
  *context = context;
  return SUCCESS;
}

const char* hipGetErrorName(int status) { return status == NO_DEVICE ? "hipErrorNoDevice" : "hipErrorUnknown"; }
const char* hipGetErrorString(int status) {
  return status == NO_DEVICE ? "no ROCm-capable device is detected" : "unknown error";
}

// All bits of new memory are ones, which is NaN in every float type, so that a read before the first write is seen.
int hipMalloc(void** pointer, size_t size) {
  *pointer = aligned_alloc(256, (size + 255) / 256 * 256);
  if (!*pointer) return OUT_OF_MEMORY;
  memset(*pointer, 0xFF, size);
  return SUCCESS;
}

int hipFree(void* pointer) {
  free(pointer);
  return SUCCESS;
}

int hipHostMalloc(void** pointer, size_t size, u32 flags) { return hipMalloc(pointer, size); }
int hipHostFree(void* pointer) { return hipFree(pointer); }

int hipMemGetInfo(size_t* available, size_t* total) {
  *available = *total = MEMORY;
  return SUCCESS;
}

int hipMemcpy(void* to, const void* from, size_t size, int kind) {
  memmove(to, from, size);
  return SUCCESS;
}

int hipMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  return hipMemcpy(to, from, size, kind);
}

int hipMemset(void* pointer, int value, size_t size) {
  memset(pointer, value, size);
  return SUCCESS;
}

int hipMemsetAsync(void* pointer, int value, size_t size, void* stream) { return hipMemset(pointer, value, size); }

int hipStreamIsCapturing(void* stream, int* status) {
  *status = 0;
  return SUCCESS;
}

// Refuses to record graphs. If it only seemed to record one, a replay that does nothing would go unnoticed.
int hipStreamBeginCapture(void* stream, int mode) { return NOT_SUPPORTED; }

int hipModuleLoadData(size_t* module, const void* image) {
  *module = on_load(image);
  return SUCCESS;
}

int hipModuleGetFunction(void** function, size_t module, const char* name) {
  Function* made = malloc(sizeof *made + strlen(name) + 1);
  made->module = module;
  strcpy(made->name, name);
  *function = made;
  return SUCCESS;
}

int hipModuleLaunchKernel(Function* function, u32 grid_x, u32 grid_y, u32 grid_z, u32 block_x, u32 block_y, u32 block_z,
                          u32 shared_bytes, void* stream, void** arguments, void** extra) {
  if (extra || shared_bytes) return NOT_SUPPORTED;
  on_launch(function->module, function->name, (u32[]){grid_x, grid_y, grid_z, block_x, block_y, block_z}, arguments);
  return SUCCESS;
}
