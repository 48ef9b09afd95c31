// hiprtc's interface. The compiler behind it is the function that was given to simulated_on.
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, COMPILATION_FAILED = 6 };

typedef struct {
  char *source, *log, *code;
  size_t code_size;
} Program;

// The compiler: it stores a log with set_log and on success the code with set_code, and returns 0 for success.
static int (*on_compile)(Program* program, const char* source, int count, const char** options);

void simulated_on(void* compile) { on_compile = compile; }

void set_log(Program* program, const char* log) { program->log = strdup(log); }

void set_code(Program* program, const char* code, size_t size) {
  program->code = memcpy(malloc(size), code, size);
  program->code_size = size;
}

int hiprtcVersion(int* major, int* minor) {
  *major = 7;
  *minor = 0;
  return SUCCESS;
}

const char* hiprtcGetErrorString(int status) {
  return status == COMPILATION_FAILED ? "HIPRTC_ERROR_COMPILATION" : "HIPRTC_SUCCESS";
}

int hiprtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char** texts,
                        const char** names) {
  *program = calloc(1, sizeof(Program));
  (*program)->source = strdup(source);
  return SUCCESS;
}

int hiprtcDestroyProgram(Program** program) {
  free((*program)->source);
  free((*program)->log);
  free((*program)->code);
  free(*program);
  return SUCCESS;
}

int hiprtcCompileProgram(Program* program, int count, const char** options) {
  return on_compile(program, program->source, count, options) ? COMPILATION_FAILED : SUCCESS;
}

int hiprtcGetProgramLogSize(Program* program, size_t* size) {
  *size = strlen(program->log) + 1;
  return SUCCESS;
}

int hiprtcGetProgramLog(Program* program, char* log) {
  strcpy(log, program->log);
  return SUCCESS;
}

int hiprtcGetCodeSize(Program* program, size_t* size) {
  *size = program->code_size;
  return SUCCESS;
}

int hiprtcGetCode(Program* program, char* code) {
  memcpy(code, program->code, program->code_size);
  return SUCCESS;
}
