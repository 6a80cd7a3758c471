// One pass of causal attention as a graph of cuDNN, built for its shape through cudnn-frontend: softmax(Q K^T
// / sqrt(D)) V with grouped query heads, over documents of one length or over packed ones. On addresses
// alone, as the CUDA launchers are.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>

namespace satune {

/// What a pass reads and writes. Rows are tokens: [H, D] of queries and their gradients, of outputs and their
/// gradients, [K, D] of keys and values and their gradients, all in one 16-bit type; log-sum-exps are fp32.
enum CudnnTensor : uint8_t { kQuery, kKey, kValue, kOut, kLogSum, kDOut, kDQuery, kDKey, kDValue };
inline constexpr int kCudnnTensors = kDValue + 1;

/// Packed: of different lengths, at most `count`, each of `length` tokens at most, in all `tokens` at most
/// (which the scratch of a backward depends on). Else `count` of just that length, and `tokens` says nothing.
struct CudnnDocuments {
  bool packed = false;
  int64_t count = 0, length = 0, tokens = 0;

  auto operator<=>(const CudnnDocuments&) const = default;
};

/// A forward has the first five tensors, a backward all. Log-sum-exps are [tokens, H] of packed documents,
/// [documents, H, length] of others.
struct CudnnShape {
  bool bf16 = true;  ///< else fp16
  bool backward = false;
  CudnnDocuments documents = {};
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::array<int64_t, kCudnnTensors> row = {};  ///< elements from a token of a tensor to the next

  auto operator<=>(const CudnnShape&) const = default;
};

/// On the card, multiples of 16 bytes. Of packed documents also what document_offsets() makes: lengths
/// [count] and, of each tensor, the element where a document begins [count + 1].
struct CudnnAddresses {
  std::array<void*, kCudnnTensors> tensors = {};
  std::array<int64_t*, kCudnnTensors> offsets = {};
  int32_t* lengths = nullptr;
  void* workspace = nullptr;
};

struct CudnnCard {
  int compute_capability = 90;  ///< of 9.0
  int multiprocessors = 132;
  /// cuDNN's description of a card, JSON: the graph is built without that card and does not run. Empty: for
  /// the current one.
  std::string properties = {};
};

class CudnnGraph {
 public:
  virtual ~CudnnGraph() = default;
  CudnnGraph() = default;
  CudnnGraph(const CudnnGraph&) = delete;
  CudnnGraph& operator=(const CudnnGraph&) = delete;

  virtual int64_t workspace_bytes() const = 0;
  /// On LibTorch's current stream.
  virtual void run(const CudnnAddresses& addresses) = 0;
};

/// Takes about half a second, in which cuDNN compiles the kernel. Throws std::runtime_error with cuDNN's
/// reason for a shape that it does not have on the card.
std::unique_ptr<CudnnGraph> make_cudnn_graph(const CudnnShape& shape, const CudnnCard& card);

}  // namespace satune
