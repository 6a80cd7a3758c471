// NCCL between processes of one machine, over shared memory: what ProcessGroupNCCL calls for satune's
// collectives. As with NCCL, a collective is queued on its stream and does not end while a rank is missing,
// until it is aborted.
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/emulated_card/card.h"

namespace {

constexpr size_t kSlotBytes = size_t{16} << 20;  // of each rank; what is larger goes in pieces

constexpr auto kInitLimit = std::chrono::seconds(60);

/// At the head of the shared memory, which begins as zeros.
struct Meeting {
  std::atomic<uint32_t> arrived, round;
};

size_t bytes_of(size_t count, ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      return count;
    case ncclFloat16:
    case ncclBfloat16:
      return 2 * count;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4 * count;
    default:
      return 8 * count;
  }
}

}  // namespace

struct ncclComm {
  int rank = 0, size = 1;
  char* memory = nullptr;
  std::atomic<bool> aborted = false;

  char* slot(int of) const { return memory + 4096 + static_cast<size_t>(of) * kSlotBytes; }

  /// Waits for the other ranks; for `limit` where there is one.
  void meet(std::chrono::seconds limit = std::chrono::hours(24)) {
    const auto end = std::chrono::steady_clock::now() + limit;
    auto& meeting = *reinterpret_cast<Meeting*>(memory);
    const uint32_t round = meeting.round;
    if (++meeting.arrived == static_cast<uint32_t>(size)) {
      meeting.arrived = 0;
      ++meeting.round;
      return;
    }
    while (meeting.round == round) {
      if (aborted) throw std::runtime_error("a collective was aborted");
      if (std::chrono::steady_clock::now() > end) throw std::runtime_error("a rank is missing");
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  /// Every rank gives `bytes` to each rank (from[r]) and gets as many of each (to[r]).
  void exchange(const std::vector<const char*>& from, const std::vector<char*>& to, size_t bytes) {
    const size_t piece = kSlotBytes / static_cast<size_t>(size) / 64 * 64;
    for (size_t begin = 0; begin < bytes; begin += piece) {
      const size_t length = std::min(piece, bytes - begin);
      for (int other = 0; other < size; ++other)
        std::memcpy(slot(rank) + static_cast<size_t>(other) * piece, from[other] + begin, length);
      meet();
      for (int other = 0; other < size; ++other)
        std::memcpy(to[other] + begin, slot(other) + static_cast<size_t>(rank) * piece, length);
      meet();
    }
  }
};

namespace {

/// Sends and receives between ncclGroupStart() and ncclGroupEnd() of one thread.
struct Group {
  int depth = 0;
  ncclComm* communicator = nullptr;
  void* stream = nullptr;
  size_t bytes = 0;
  std::vector<const char*> from;
  std::vector<char*> to;
};
thread_local Group group;

void submit(ncclComm* communicator, cudaStream_t stream, std::vector<const char*> from, std::vector<char*> to,
            size_t bytes) {
  satune::emulated_card::stream_of(stream).submit(
      [=, from = std::move(from), to = std::move(to)] { communicator->exchange(from, to, bytes); });
}

/// Of the group that the calling thread is in. Only groups in which every rank sends as much to each are
/// emulated.
ncclResult_t join(ncclComm* communicator, cudaStream_t stream, size_t bytes) {
  if (group.depth == 0) return ncclInvalidUsage;
  if (group.communicator == nullptr) {
    group.communicator = communicator;
    group.stream = stream;
    group.bytes = bytes;
    group.from.assign(static_cast<size_t>(communicator->size), nullptr);
    group.to.assign(static_cast<size_t>(communicator->size), nullptr);
  }
  return group.communicator == communicator && group.stream == stream && group.bytes == bytes
             ? ncclSuccess
             : ncclInvalidUsage;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::ifstream("/dev/urandom").read(id->internal, sizeof(id->internal));
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "no error" : "not supported by the emulated card";
}
const char* ncclGetLastError(ncclComm_t) {
  return "";
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* communicator, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t*) {
  std::string name = "/satune-emulated-nccl-";
  for (size_t i = 0; i < 16; ++i) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned char>(id.internal[i]));
    name += digits;
  }
  const size_t bytes = 4096 + static_cast<size_t>(size) * kSlotBytes;
  const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return ncclSystemError;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return ncclSystemError;
  auto* made = new ncclComm;
  made->rank = rank;
  made->size = size;
  made->memory = static_cast<char*>(memory);
  ncclResult_t result = ncclSuccess;
  try {
    made->meet(kInitLimit);
  } catch (const std::runtime_error&) {
    result = ncclSystemError;
  }
  shm_unlink(name.c_str());  // all have it, or nobody will
  *communicator = made;
  return result;
}
ncclResult_t ncclCommInitRank(ncclComm_t* communicator, int size, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(communicator, size, id, rank, nullptr);
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
  satune::emulated_card::run_everything();
  return ncclSuccess;
}
/// What it leaves belongs to work that may still be queued.
ncclResult_t ncclCommDestroy(ncclComm_t) {
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  communicator->aborted = true;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t communicator, int* count) {
  *count = communicator->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->rank;
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t communicator, cudaStream_t stream) {
  const size_t bytes = bytes_of(count, type);
  std::vector<const char*> sources(static_cast<size_t>(communicator->size), static_cast<const char*>(from));
  std::vector<char*> targets;
  targets.reserve(sources.size());
  for (int i = 0; i < communicator->size; ++i)
    targets.push_back(static_cast<char*>(to) + static_cast<size_t>(i) * bytes);
  submit(communicator, stream, std::move(sources), std::move(targets), bytes);
  return ncclSuccess;
}
ncclResult_t ncclAlltoAll(const void* from, void* to, size_t count, ncclDataType_t type,
                          ncclComm_t communicator, cudaStream_t stream) {
  const size_t bytes = bytes_of(count, type);
  std::vector<const char*> sources;
  std::vector<char*> targets;
  for (int i = 0; i < communicator->size; ++i) {
    sources.push_back(static_cast<const char*>(from) + static_cast<size_t>(i) * bytes);
    targets.push_back(static_cast<char*>(to) + static_cast<size_t>(i) * bytes);
  }
  submit(communicator, stream, std::move(sources), std::move(targets), bytes);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  const ncclResult_t result = join(communicator, stream, bytes_of(count, type));
  if (result == ncclSuccess) group.from[static_cast<size_t>(peer)] = static_cast<const char*>(from);
  return result;
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t communicator,
                      cudaStream_t stream) {
  const ncclResult_t result = join(communicator, stream, bytes_of(count, type));
  if (result == ncclSuccess) group.to[static_cast<size_t>(peer)] = static_cast<char*>(to);
  return result;
}
ncclResult_t ncclGroupEnd() {
  if (--group.depth > 0 || group.communicator == nullptr) return ncclSuccess;
  const Group ended = std::exchange(group, {});
  const auto missing = [](const auto& places) {
    return std::count(places.begin(), places.end(), nullptr) > 0;
  };
  if (missing(ended.from) || missing(ended.to)) return ncclInvalidUsage;
  submit(ended.communicator, static_cast<cudaStream_t>(ended.stream), ended.from, ended.to, ended.bytes);
  return ncclSuccess;
}
}

// What satune does not use.
#define NOT_SUPPORTED(name, ...)                        \
  extern "C" ncclResult_t name(__VA_ARGS__) {           \
    std::fprintf(stderr, "emulated card: " #name "\n"); \
    return ncclInvalidUsage;                            \
  }
NOT_SUPPORTED(ncclAllReduce, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
              cudaStream_t)
NOT_SUPPORTED(ncclReduceScatter, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
              cudaStream_t)
NOT_SUPPORTED(ncclReduce, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t,
              cudaStream_t)
NOT_SUPPORTED(ncclBcast, void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
NOT_SUPPORTED(ncclBroadcast, const void*, void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
