// Preloaded into a rank by the fault tests: lets one chosen call of the process fail, or sends the process a
// signal in it. The program under test has no hooks for this.
//
//   SATUNE_FAULT="call=forward n=5 signal=9"            in the 5th product of a forward that adds a residual
//   SATUNE_FAULT="call=backward n=5 signal=19"          in the 5th gradient of a matrix
//   SATUNE_FAULT="call=file path=/snapshots/ n=3 errno=28"   3rd system call on files below such a path fails
//   SATUNE_FAULT="call=file path=/snapshots/ n=3 signal=9"
//   SATUNE_FAULT="call=read path=/snapshots/ n=3 errno=5"    3rd read of such a file fails
//   SATUNE_FAULT="call=file path=/snapshots/ n=3 hangs=1"    3rd system call on such a file never returns
//   ... await=FILE                                      when FILE is there: the call waits for it
//   ... rank=1 attempt=0                                only in the process with that RANK and restart count
//   SATUNE_FAULT_LOG=FILE                               a line when it happens
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

struct Fault {
  std::string call, path, awaited;
  long n = 0;
  int signal = 0, error = 0;
  bool hangs = false;
};

std::string value_of(const std::string& text, const std::string& key) {
  const size_t at = text.find(key + "=");
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size() + 1;
  return text.substr(begin, text.find(' ', begin) - begin);
}

bool matches(const std::string& wanted, const char* variable) {
  const char* found = std::getenv(variable);
  return wanted.empty() || (found != nullptr && wanted == found);
}

const Fault& fault() {
  static const Fault parsed = [] {
    const char* text = std::getenv("SATUNE_FAULT");
    const std::string s = text ? text : "";
    if (!matches(value_of(s, "rank"), "RANK")) return Fault{};
    if (!matches(value_of(s, "attempt"), "TORCHELASTIC_RESTART_COUNT")) return Fault{};
    return Fault{value_of(s, "call"),
                 value_of(s, "path"),
                 value_of(s, "await"),
                 std::atol(value_of(s, "n").c_str()),
                 std::atoi(value_of(s, "signal").c_str()),
                 std::atoi(value_of(s, "errno").c_str()),
                 value_of(s, "hangs") == "1"};
  }();
  return parsed;
}

std::atomic<long> calls{0};

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

void log_fault() {
  const char* path = std::getenv("SATUNE_FAULT_LOG");
  if (path == nullptr) return;
  const int fd = next<int (*)(const char*, int, ...)>("open")(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (fd < 0) return;
  const std::string line = fault().call + " " + std::to_string(fault().n) + "\n";
  (void)!next<ssize_t (*)(int, const void*, size_t)>("write")(fd, line.data(), line.size());
  next<int (*)(int)>("close")(fd);
}

/// True when this call is the one that fails.
bool strikes(const char* call) {
  if (fault().call != call || ++calls != fault().n) return false;
  while (!fault().awaited.empty() && access(fault().awaited.c_str(), F_OK) != 0) usleep(1000);
  log_fault();
  if (fault().signal != 0) raise(fault().signal);
  while (fault().hangs) pause();
  errno = fault().error;
  return fault().error != 0;
}

bool watched(const char* path, const char* call = "file") {
  return fault().call == call && path != nullptr && std::strstr(path, fault().path.c_str()) != nullptr;
}

bool watched(int fd, const char* call = "file") {
  if (fault().call != call) return false;
  char link[64], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size <= 0) return false;
  path[size] = 0;
  return watched(path, call);
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const unsigned mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, unsigned) : 0;
  va_end(list);
  const bool writes = (flags & (O_WRONLY | O_RDWR)) != 0;
  if (writes && watched(path) && strikes("file")) return -1;
  return next<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}
ssize_t write(int fd, const void* data, size_t size) {
  if (watched(fd) && strikes("file")) return -1;
  return next<ssize_t (*)(int, const void*, size_t)>("write")(fd, data, size);
}
ssize_t read(int fd, void* data, size_t size) {
  if (watched(fd, "read") && strikes("read")) return -1;
  return next<ssize_t (*)(int, void*, size_t)>("read")(fd, data, size);
}
int fsync(int fd) {
  if (watched(fd) && strikes("file")) return -1;
  return next<int (*)(int)>("fsync")(fd);
}
int rename(const char* from, const char* to) {
  if (watched(from) && strikes("file")) return -1;
  return next<int (*)(const char*, const char*)>("rename")(from, to);
}
int mkdir(const char* path, mode_t mode) {
  if (watched(path) && strikes("file")) return -1;
  return next<int (*)(const char*, mode_t)>("mkdir")(path, mode);
}

// LibTorch's products: a register-preserving detour, since their arguments are C++ objects. Two of a layer's
// forward add a residual (one when the backward computes it again); gradients of matrices are written or
// added.
#define SATUNE_ADDMM "_ZN2at4_ops5addmm4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_"
#define SATUNE_MM_OUT "_ZN2at4_ops6mm_out4callERKNS_6TensorES4_RS2_"
#define SATUNE_ADDMM_OUT "_ZN2at4_ops9addmm_out4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_RS2_"

void* satune_real_addmm = nullptr;
void* satune_real_mm_out = nullptr;
void* satune_real_addmm_out = nullptr;
void satune_on_addmm() {
  if (satune_real_addmm == nullptr) satune_real_addmm = next<void*>(SATUNE_ADDMM);
  strikes("forward");
}
void satune_on_mm_out() {
  if (satune_real_mm_out == nullptr) satune_real_mm_out = next<void*>(SATUNE_MM_OUT);
  strikes("backward");
}
void satune_on_addmm_out() {
  if (satune_real_addmm_out == nullptr) satune_real_addmm_out = next<void*>(SATUNE_ADDMM_OUT);
  strikes("backward");
}
}

#define SATUNE_DETOUR(symbol, before, real)                                                                  \
  asm(".text\n.globl " symbol "\n.type " symbol ", @function\n" symbol                                       \
      ":\n"                                                                                                  \
      "push %rdi\npush %rsi\npush %rdx\npush %rcx\npush %r8\npush %r9\nsub $24, %rsp\nmovsd %xmm0, (%rsp)\n" \
      "call " before                                                                                         \
      "@PLT\n"                                                                                               \
      "movsd (%rsp), %xmm0\nadd $24, %rsp\npop %r9\npop %r8\npop %rcx\npop %rdx\npop %rsi\npop %rdi\n"       \
      "mov " real "@GOTPCREL(%rip), %r11\njmp *(%r11)\n")

SATUNE_DETOUR(SATUNE_ADDMM, "satune_on_addmm", "satune_real_addmm");
SATUNE_DETOUR(SATUNE_MM_OUT, "satune_on_mm_out", "satune_real_mm_out");
SATUNE_DETOUR(SATUNE_ADDMM_OUT, "satune_on_addmm_out", "satune_real_addmm_out");
