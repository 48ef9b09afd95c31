// The collectives of RCCL that hipgpt uses, among processes of one machine: arrays go through a file in memory. As in
// RCCL, the calls of a group begin when the group ends, and all work is done when hip.c's "stream" reaches it, which is
// at once. Ranks that ask for different work get ncclInvalidUsage, where RCCL would hang. With SIMULATED_RCCL=refuses in
// the environment no group comes about. Numbers are those of rccl.h.
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
enum { FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9 };
enum { ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };
enum { RANKS = 8, ROOM = 1 << 24, CALLS = 256 };

typedef struct {
  char name[128];
} Id;
typedef struct {
  int what, type, root;
  size_t count;
} Call;
typedef struct {
  pthread_barrier_t barrier;
  volatile int ready;
  Call calls[RANKS];
  char arrays[RANKS][ROOM];
} Meeting;
typedef struct {
  Meeting* meeting;
  int rank, size;
} Communicator;
typedef struct {
  Communicator* group;
  Call call;
  const void* from;
  void* to;
} Pending;

static __thread Pending pending[CALLS];
static __thread int waiting, depth;

static size_t width(int type) { return type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2; }

static double element(const char* array, int type, size_t i) {
  uint32_t word;
  float value;
  if (type == FLOAT64) return ((const double*)array)[i];
  word = type == FLOAT32 ? ((const uint32_t*)array)[i] : (uint32_t)((const uint16_t*)array)[i] << 16;
  memcpy(&value, &word, 4);
  return value;
}

static void set(char* array, int type, size_t i, double sum) {
  float value = sum;
  uint32_t word;
  memcpy(&word, &value, 4);
  if (type == FLOAT64) ((double*)array)[i] = sum;
  else if (type == FLOAT32) ((float*)array)[i] = value;
  else ((uint16_t*)array)[i] = (word + 0x7fff + (word >> 16 & 1)) >> 16;  // to the nearest, ties to even
}

// to[i] = the sum over all ranks of their element first + i
static void add_up(const Communicator* group, char* to, int type, size_t first, size_t count) {
  for (size_t i = 0; i < count; i++) {
    double sum = 0;
    for (int rank = 0; rank < group->size; rank++) sum += element(group->meeting->arrays[rank], type, first + i);
    set(to, type, i, sum);
  }
}

static int run(const Pending* asked) {
  const Communicator* group = asked->group;
  const Call call = asked->call;
  Meeting* meeting = group->meeting;
  size_t bytes = call.count * width(call.type), sent = call.what == REDUCE_SCATTER ? bytes * group->size : bytes;
  int is_root = group->rank == call.root, status = SUCCESS;
  if (sent > ROOM) return INVALID_ARGUMENT;
  meeting->calls[group->rank] = call;
  if (call.what != BROADCAST || is_root) memcpy(meeting->arrays[group->rank], asked->from, sent);
  pthread_barrier_wait(&meeting->barrier);
  for (int rank = 0; rank < group->size; rank++) {
    if (memcmp(&meeting->calls[rank], &call, sizeof call)) status = INVALID_USAGE;
  }
  if (status == SUCCESS) {
    if (call.what == ALL_REDUCE || call.what == REDUCE && is_root) add_up(group, asked->to, call.type, 0, call.count);
    if (call.what == REDUCE_SCATTER) add_up(group, asked->to, call.type, call.count * group->rank, call.count);
    if (call.what == BROADCAST) memcpy(asked->to, meeting->arrays[call.root], bytes);
    for (int rank = 0; call.what == ALL_GATHER && rank < group->size; rank++) {
      memcpy((char*)asked->to + rank * bytes, meeting->arrays[rank], bytes);
    }
  }
  pthread_barrier_wait(&meeting->barrier);  // now the arrays may be overwritten
  return status;
}

static int ask(Communicator* group, int what, const void* from, void* to, size_t count, int type, int root) {
  Pending asked = {group, {0}, from, to};
  if (waiting == CALLS || type < FLOAT32 || type > BFLOAT16) return INVALID_ARGUMENT;
  asked.call.what = what, asked.call.type = type, asked.call.root = root, asked.call.count = count;
  if (!depth) return run(&asked);
  pending[waiting++] = asked;
  return SUCCESS;
}

int ncclGroupStart(void) { return depth++, SUCCESS; }

int ncclGroupEnd(void) {
  int status = SUCCESS, count = waiting;
  if (--depth) return SUCCESS;
  waiting = 0;
  for (int i = 0; i < count && status == SUCCESS; i++) status = run(&pending[i]);
  return status;
}

// Only the sum, ncclSum = 0, is there.
int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Communicator* group, void* stream) {
  return op ? INVALID_ARGUMENT : ask(group, ALL_REDUCE, from, to, count, type, 0);
}
int ncclReduce(const void* from, void* to, size_t count, int type, int op, int root, Communicator* group,
               void* stream) {
  return op ? INVALID_ARGUMENT : ask(group, REDUCE, from, to, count, type, root);
}
int ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, Communicator* group, void* stream) {
  return op ? INVALID_ARGUMENT : ask(group, REDUCE_SCATTER, from, to, count, type, 0);
}
int ncclAllGather(const void* from, void* to, size_t count, int type, Communicator* group, void* stream) {
  return ask(group, ALL_GATHER, from, to, count, type, 0);
}
int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Communicator* group, void* stream) {
  return ask(group, BROADCAST, from, to, count, type, root);
}

int ncclGetVersion(int* version) {
  *version = 22707;
  return SUCCESS;
}

int ncclGetUniqueId(Id* id) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  memset(id, 0, sizeof *id);
  snprintf(id->name, sizeof id->name, "/simulated-rccl-%d-%ld%09ld", getpid(), (long)now.tv_sec, now.tv_nsec);
  return SUCCESS;
}

// Returns when all ranks have come. The file in memory then needs no name any more.
int ncclCommInitRankConfig(Communicator** group, int size, Id id, int rank, void* config) {
  const char* mode = getenv("SIMULATED_RCCL");
  if (size > RANKS) return INVALID_ARGUMENT;
  if (mode && !strcmp(mode, "refuses")) return SYSTEM_ERROR;
  int file = shm_open(id.name, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Meeting))) return SYSTEM_ERROR;
  Meeting* meeting = mmap(NULL, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (meeting == MAP_FAILED) return SYSTEM_ERROR;
  if (rank == 0) {
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&meeting->barrier, &shared, size);
    meeting->ready = 1;
  }
  while (!meeting->ready) usleep(1000);
  pthread_barrier_wait(&meeting->barrier);
  if (rank == 0) shm_unlink(id.name);
  *group = malloc(sizeof **group);
  **group = (Communicator){meeting, rank, size};
  return SUCCESS;
}

int ncclCommDestroy(Communicator* group) { return SUCCESS; }
int ncclCommAbort(Communicator* group) { return SUCCESS; }
int ncclCommGetAsyncError(Communicator* group, int* error) { return *error = SUCCESS; }
const char* ncclGetErrorString(int status) {
  return status == INVALID_USAGE ? "the ranks ask for different work" : "RCCL failed";
}
