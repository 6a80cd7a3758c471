// Graphs of attention as cuDNN compiles them for an H200: its support checks, and what they need while they
// run.
#include "model/ops/cudnn_graph.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "model/ops/attention_cudnn.h"
#include "tests/cudnn/recorder.h"

namespace cudnn_frontend {
extern void* cudnn_dlhandle;
}

namespace satune {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

/// As cuDNN 9.19 writes it; the frontend passes it on.
CudnnCard card_of(int capability, int multiprocessors, int shared_memory) {
  const Json properties = {{"cudaDeviceId", 0},
                           {"deviceName", "NVIDIA H200"},
                           {"deviceVer", 10 * capability},
                           {"driverVer", 13000},
                           {"isTccDriver", 0},
                           {"l2CacheSize", 60 << 20},
                           {"maxBlockSize", {1024, 1024, 64}},
                           {"maxCtasPerSM", 32},
                           {"maxGridSize", {2147483647, 65535, 65535}},
                           {"maxRegistersPerSM", 65536},
                           {"maxSharedMemoryPerBlock", 48 << 10},
                           {"maxSharedMemoryPerBlockOptin", shared_memory},
                           {"maxThreadsPerBlock", 1024},
                           {"maxThreadsPerSM", 2048},
                           {"memClockRateKHz", 3201000},
                           {"multiProcessorCount", multiprocessors},
                           {"pciDeviceId", 0},
                           {"regsPerBlock", 65536},
                           {"reservedSharedMemoryPerBlock", 1024},
                           {"smClockRateKHz", 1980000},
                           {"supportCoopLaunch", 1},
                           {"totalGlobalMem", 150'000'000'000},
                           {"warpSize", 32}};
  return {capability, multiprocessors, properties.dump()};
}

const CudnnCard kH200 = card_of(90, 132, 227 << 10);

CudnnShape shape_of(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t documents, int64_t length,
                    int64_t tokens, bool packed, bool backward = true) {
  CudnnShape shape;
  shape.backward = backward;
  shape.documents = {packed, documents, length, tokens};
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  const int64_t query = heads * head_dim, all = query + 2 * kv_heads * head_dim;
  shape.row = {all, all, all, query, heads, query, all, all, all};
  return shape;
}

/// With the recorder between the frontend and cuDNN from the first graph on: the frontend remembers what it
/// found.
class CudnnGraphs : public ::testing::Test {
 protected:
  void SetUp() override {
    ::setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", SATUNE_CUDNN_RECORDER, 1);
    cudnn_frontend::cudnn_dlhandle = dlopen(SATUNE_CUDNN_RECORDER, RTLD_NOW);
    ASSERT_NE(cudnn_frontend::cudnn_dlhandle, nullptr) << dlerror();
  }
};

TEST_F(CudnnGraphs, AreThereForTheShapesOfLlama) {
  struct Heads {
    int64_t query, key, dim;
  };
  // Llama-3-8B, Llama-2-7B, Llama-3.2-1B, and the heads of small tests.
  for (const Heads heads : {Heads{32, 8, 128}, {32, 32, 128}, {32, 8, 64}, {8, 2, 16}}) {
    for (const bool packed : {false, true}) {
      CudnnShape shape = shape_of(heads.query, heads.key, heads.dim, 4, 1024, 4096, packed);
      for (const bool backward : {false, true}) {
        shape.backward = backward;
        shape.bf16 = !backward;  // both types, without a graph more
        EXPECT_NO_THROW(make_cudnn_graph(shape, kH200))
            << heads.query << " heads of " << heads.dim << (packed ? ", packed" : "");
      }
    }
  }
}

TEST_F(CudnnGraphs, TakeThePlannedWorkspace) {
  for (const int64_t kv_heads : {8, 32}) {
    for (const bool packed : {false, true}) {
      // As many tokens as all documents could have only where they do.
      CudnnShape shape = shape_of(32, kv_heads, 128, packed ? 64 : 16, packed ? 4096 : 512, 8192, packed);
      if (packed && kv_heads < 32) shape.row[kDKey] = shape.row[kDValue] = kv_heads * 128;  // CudnnAttention
      const int64_t taken = make_cudnn_graph(shape, kH200)->workspace_bytes();
      EXPECT_NEAR(static_cast<double>(taken) / static_cast<double>(cudnn_workspace_bytes(shape)), 1, 0.01)
          << kv_heads << (packed ? " packed" : "");
    }
  }
}

TEST_F(CudnnGraphs, OfPackedDocumentsDoNotGrowWithTheirNumber) {
  const auto taken = [](int64_t documents, int64_t length) {
    CudnnShape shape = shape_of(32, 8, 128, documents, length, 8192, true);
    shape.row[kDKey] = shape.row[kDValue] = 1024;
    return static_cast<double>(make_cudnn_graph(shape, kH200)->workspace_bytes());
  };
  EXPECT_NEAR(taken(128, 1024) / taken(1, 8192), 1, 0.01);
}

/// What the frontend hands to cuDNN when a graph runs.
class RunningGraph : public CudnnGraphs, public ::testing::WithParamInterface<CudnnShape> {};

TEST_P(RunningGraph, GetsEveryAddressInItsPlace) {
  const CudnnShape& shape = GetParam();
  const auto graph = make_cudnn_graph(shape, kH200);
  // Addresses that nobody reads, a thousand apart.
  const auto address = [](int64_t place) { return reinterpret_cast<void*>(0x7f0000000000 + 1024 * place); };
  CudnnAddresses at;
  std::map<int64_t, void*> expected;  // by the names of cudnn_graph.cpp
  for (int i = 0; i < kCudnnTensors; ++i) {
    at.tensors[i] = address(i);
    at.offsets[i] = static_cast<int64_t*>(address(100 + i));
    if (i > kLogSum && !shape.backward) continue;
    expected[1 + i] = at.tensors[i];
    if (shape.documents.packed) expected[1 + kCudnnTensors + i] = at.offsets[i];
  }
  at.lengths = static_cast<int32_t*>(address(200));
  if (shape.documents.packed) expected[1 + 2 * kCudnnTensors] = at.lengths;
  at.workspace = address(1000);
  graph->run(at);

  const auto workspace_of = [&](void* pointer) {
    const auto* first = static_cast<char*>(at.workspace);
    return pointer >= first && pointer < first + graph->workspace_bytes();
  };
  const std::vector<cudnn_recorder::Run> runs = cudnn_recorder::take_runs();
  ASSERT_EQ(runs.size(), 1U);
  for (const auto& [name, found] : runs[0].addresses) {
    const auto wanted = expected.find(name);
    if (wanted == expected.end()) continue;  // the scale, and what the frontend has in the workspace
    EXPECT_EQ(found, wanted->second) << name;
    expected.erase(wanted);
  }
  for (const auto& [name, missing] : expected) ADD_FAILURE() << "no address of tensor " << name;
  EXPECT_TRUE(workspace_of(runs[0].workspace));
  for (const cudnn_recorder::Fill& fill : cudnn_recorder::take_fills())
    EXPECT_TRUE(workspace_of(fill.to) && workspace_of(static_cast<char*>(fill.to) + fill.bytes - 1));
}

INSTANTIATE_TEST_SUITE_P(Passes, RunningGraph,
                         ::testing::Values(shape_of(32, 8, 128, 4, 1024, 4096, false, false),
                                           shape_of(32, 8, 128, 4, 1024, 4096, true, false),
                                           shape_of(32, 8, 128, 4, 1024, 4096, false),
                                           shape_of(32, 8, 128, 4, 1024, 4096, true),
                                           shape_of(32, 32, 128, 4, 1024, 4096, true)),
                         [](const auto& info) {
                           const CudnnShape& shape = info.param;
                           return std::string(shape.documents.packed ? "Packed" : "Rows") +
                                  (shape.backward ? "Backward" : "Forward") +
                                  (shape.kv_heads == shape.heads ? "OfAllHeads" : "");
                         });

TEST_F(CudnnGraphs, SayWhyTheyAreNotThere) {
  const auto error = [](const CudnnShape& shape, const CudnnCard& card) -> std::string {
    try {
      make_cudnn_graph(shape, card);
      return "";
    } catch (const std::runtime_error& failure) {
      return failure.what();
    }
  };
  EXPECT_THAT(error(shape_of(8, 2, 12, 4, 64, 256, false), kH200),
              HasSubstr("4 documents of 64 tokens, 8 heads of 12 (2 of keys), backward: cuDNN: "));
  // Older cards have no packed backward of the kind, and take flash.
  EXPECT_THAT(error(shape_of(32, 8, 128, 4, 1024, 4096, true), card_of(80, 108, 163 << 10)),
              HasSubstr("cuDNN: "));
}

}  // namespace
}  // namespace satune
