// Graphs of attention as cuDNN compiles them for an H200: its support checks, and what they need while they
// run.
#include "model/ops/cudnn_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "model/ops/attention_cudnn.h"

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
                    int64_t tokens, bool packed, bool backward = true, bool in_fixed_order = false) {
  CudnnShape shape;
  shape.packed = packed;
  shape.backward = backward;
  shape.in_fixed_order = in_fixed_order;
  shape.documents = documents;
  shape.length = length;
  shape.tokens = tokens;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  const int64_t query = heads * head_dim, all = query + 2 * kv_heads * head_dim;
  shape.row = {all, all, all, query, heads, query, all, all, all};
  return shape;
}

TEST(CudnnGraphs, AreThereForTheShapesOfLlama) {
  struct Heads {
    int64_t query, key, dim;
  };
  // Llama-3-8B, Llama-2-7B, Llama-3.2-1B; heads of tests; 160 rows of Llama-3-8B's k_proj as of phi.
  for (const Heads heads : {Heads{32, 8, 128}, {32, 32, 128}, {32, 8, 64}, {8, 2, 16}}) {
    for (const bool packed : {false, true}) {
      CudnnShape shape = shape_of(heads.query, heads.key, heads.dim, 4, 1024, 4096, packed);
      for (const bool backward : {false, true}) {
        shape.backward = backward;
        shape.bf16 = !backward;  // a change of type for nothing
        EXPECT_NO_THROW(make_cudnn_graph(shape, kH200))
            << heads.query << " heads of " << heads.dim << (packed ? ", packed" : "");
      }
    }
  }
}

TEST(CudnnGraphs, TakeThePlannedWorkspace) {
  for (const int64_t kv_heads : {8, 32}) {
    for (const bool in_fixed_order : {false, true}) {
      for (const bool packed : {false, true}) {
        CudnnShape shape = shape_of(32, kv_heads, 128, 16, 512, 8192, packed, true, in_fixed_order);
        if (packed && kv_heads < 32)
          shape.row[kDKey] = shape.row[kDValue] = kv_heads * 128;  // as CudnnAttention
        const int64_t taken = make_cudnn_graph(shape, kH200)->workspace_bytes();
        EXPECT_NEAR(static_cast<double>(taken) / static_cast<double>(cudnn_workspace_bytes(shape)), 1, 0.01)
            << kv_heads << (packed ? " packed" : "") << (in_fixed_order ? " in a fixed order" : "");
      }
    }
  }
}

TEST(CudnnGraphs, OfPackedDocumentsDoNotGrowWithTheirNumber) {
  const auto taken = [](int64_t documents, int64_t length) {
    CudnnShape shape = shape_of(32, 8, 128, documents, length, 8192, true);
    shape.row[kDKey] = shape.row[kDValue] = 1024;
    return static_cast<double>(make_cudnn_graph(shape, kH200)->workspace_bytes());
  };
  EXPECT_NEAR(taken(128, 1024) / taken(1, 8192), 1, 0.01);
}

TEST(CudnnGraphs, SayWhyTheyAreNotThere) {
  const auto error = [](const CudnnShape& shape, const CudnnCard& card) -> std::string {
    try {
      make_cudnn_graph(shape, card);
      return "";
    } catch (const std::runtime_error& failure) {
      return failure.what();
    }
  };
  CudnnShape odd = shape_of(8, 2, 12, 4, 64, 256, false);
  EXPECT_THAT(error(odd, kH200), HasSubstr("cuDNN: "));
  // Older cards have no packed backward of the kind, and take flash.
  EXPECT_THAT(error(shape_of(32, 8, 128, 4, 1024, 4096, true), card_of(80, 108, 163 << 10)),
              HasSubstr("cuDNN: "));
}

}  // namespace
}  // namespace satune
