// The only file that knows cudnn-frontend, which takes 25 s to compile.
#include "model/ops/cudnn_graph.h"

#include <ATen/cudnn/Handle.h>
#include <cuda_runtime_api.h>
#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

namespace cudnn_frontend {
// Where the frontend looks functions up: the library that LibTorch has loaded. Tests put another there.
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace satune {
namespace {

namespace fe = cudnn_frontend::graph;
using cudnn_frontend::DataType_t;
using Attributes = fe::Tensor_attributes;
using Tensor = std::shared_ptr<Attributes>;

// Names of tensors within a graph: from 1 on CudnnTensor, then their offsets, then these.
constexpr int64_t kRowsFrom = 1, kOffsetsFrom = kRowsFrom + kCudnnTensors,
                  kLengths = kOffsetsFrom + kCudnnTensors, kScale = kLengths + 1;

// Else the frontend takes the first CUDA runtime that it finds, and warns of a second. Before main, while
// there is one thread.
[[maybe_unused]] const int kRuntimeNamed =
    ::setenv("CUDNN_FRONTEND_CUDART_LIB_NAME",
             ("libcudart.so." + std::to_string(CUDART_VERSION / 1000)).c_str(), /*overwrite=*/0);

void load_cudnn() {
  if (cudnn_frontend::cudnn_dlhandle != nullptr) return;
  cudnn_frontend::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW);
  if (cudnn_frontend::cudnn_dlhandle == nullptr) throw std::runtime_error(std::string("cuDNN: ") + dlerror());
}

std::string described(const CudnnShape& shape) {
  return std::to_string(shape.documents.count) + (shape.documents.packed ? " packed" : "") +
         " documents of " + std::to_string(shape.documents.length) + " tokens, " +
         std::to_string(shape.heads) + " heads of " + std::to_string(shape.head_dim) + " (" +
         std::to_string(shape.kv_heads) + " of keys), " + (shape.backward ? "backward" : "forward");
}

void check(cudnn_frontend::error_t error) {
  if (error.is_bad()) throw std::runtime_error("cuDNN: " + error.get_message());
}

class Graph final : public CudnnGraph {
 public:
  Graph(const CudnnShape& shape, const CudnnCard& card)
      : shape_(shape),
        another_card_(!card.properties.empty()),
        scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)))) {
    graph_.set_io_data_type(shape.bf16 ? DataType_t::BFLOAT16 : DataType_t::HALF)
        .set_intermediate_data_type(DataType_t::FLOAT)
        .set_compute_data_type(DataType_t::FLOAT);
    // Said here, the frontend need not ask a CUDA runtime of its own choice.
    graph_.set_sm_version(card.compute_capability);
    graph_.set_sm_count(card.multiprocessors);
    if (another_card_) describe(card.properties);
    add_documents();
    if (shape.backward) {
      add_backward();
    } else {
      add_forward();
    }
    build(another_card_ ? nullptr : at::native::getCudnnHandle());
  }

  int64_t workspace_bytes() const override { return graph_.get_workspace_size(); }

  void run(const CudnnAddresses& addresses) override {
    const bool packed = shape_.documents.packed;
    std::unordered_map<int64_t, void*> at = {{kScale, &scale_}};
    for (int64_t i = 0; i < num_tensors(); ++i) {
      at[kRowsFrom + i] = addresses.tensors[i];
      if (packed) at[kOffsetsFrom + i] = addresses.offsets[i];
    }
    if (packed) at[kLengths] = addresses.lengths;
    check(graph_.execute(another_card_ ? nullptr : at::native::getCudnnHandle(), at, addresses.workspace));
  }

 private:
  int num_tensors() const { return shape_.backward ? kCudnnTensors : kLogSum + 1; }

  void describe(const std::string& properties) {
    std::vector<uint8_t> bytes(properties.begin(), properties.end());
    bytes.push_back(0);
    const auto device = std::make_shared<cudnn_frontend::DeviceProperties>();
    check(device->deserialize(bytes));
    graph_.set_device_properties(device);
  }

  Tensor vector(int64_t name, int64_t size, DataType_t type) {
    return graph_.tensor(Attributes()
                             .set_name("vector_" + std::to_string(name))
                             .set_uid(name)
                             .set_dim({size, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(type));
  }

  void add_documents() {
    scale_tensor_ = vector(kScale, 1, DataType_t::FLOAT);
    scale_tensor_->set_is_pass_by_value(true);
    if (!shape_.documents.packed) return;
    lengths_ = vector(kLengths, shape_.documents.count, DataType_t::INT32);
    for (int64_t i = 0; i < num_tensors(); ++i)
      offsets_[i] = vector(kOffsetsFrom + i, shape_.documents.count + 1, DataType_t::INT64);
  }

  int64_t heads_of(CudnnTensor tensor) const {
    const bool of_keys = tensor == kKey || tensor == kValue || tensor == kDKey || tensor == kDValue;
    return of_keys ? shape_.kv_heads : shape_.heads;
  }

  /// [documents, heads, tokens, head_dim] over rows that hold one head after another.
  void describe_rows(Attributes& attributes, CudnnTensor tensor) {
    const int64_t row = shape_.row[tensor], D = shape_.head_dim;
    attributes.set_uid(kRowsFrom + tensor)
        .set_dim({shape_.documents.count, heads_of(tensor), shape_.documents.length, D})
        .set_stride({shape_.documents.length * row, D, row, 1});
    if (shape_.documents.packed) attributes.set_ragged_offset(offsets_[tensor]);
  }

  void describe_log_sums(Attributes& attributes) {
    const int64_t H = shape_.heads, T = shape_.documents.length;
    attributes.set_uid(kRowsFrom + kLogSum)
        .set_dim({shape_.documents.count, H, T, 1})
        .set_data_type(DataType_t::FLOAT);
    if (shape_.documents.packed) {
      attributes.set_stride({H * T, 1, H, 1}).set_ragged_offset(offsets_[kLogSum]);
    } else {
      attributes.set_stride({H * T, T, 1, 1});
    }
  }

  Tensor input(CudnnTensor tensor) {
    Attributes attributes;
    attributes.set_name("input_" + std::to_string(tensor));
    if (tensor == kLogSum) {
      describe_log_sums(attributes);
    } else {
      describe_rows(attributes, tensor);
    }
    return graph_.tensor(attributes);
  }

  void output(const Tensor& made, CudnnTensor tensor) {
    made->set_output(true);
    if (tensor == kLogSum) {
      describe_log_sums(*made);
    } else {
      describe_rows(*made, tensor);
    }
  }

  /// Causal, inside documents.
  template <typename Options>
  Options& masked(Options& options) {
    options.set_name("attention")
        .set_attn_scale(scale_tensor_)
        .set_diagonal_alignment(cudnn_frontend::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    if (shape_.documents.packed)
      options.set_padding_mask(true).set_seq_len_q(lengths_).set_seq_len_kv(lengths_);
    return options;
  }

  void add_forward() {
    fe::SDPA_attributes options;
    masked(options).set_generate_stats(true);
    const auto [out, log_sum] = graph_.sdpa(input(kQuery), input(kKey), input(kValue), options);
    output(out, kOut);
    output(log_sum, kLogSum);
  }

  void add_backward() {
    fe::SDPA_backward_attributes options;
    masked(options);
    if (shape_.documents.packed) {
      options.set_max_total_seq_len_q(shape_.documents.tokens);
      options.set_max_total_seq_len_kv(shape_.documents.tokens);
    }
    const auto [d_q, d_k, d_v] = graph_.sdpa_backward(input(kQuery), input(kKey), input(kValue), input(kOut),
                                                      input(kDOut), input(kLogSum), options);
    output(d_q, kDQuery);
    output(d_k, kDKey);
    output(d_v, kDValue);
  }

  void build(cudnnHandle_t handle) {
    check(graph_.validate());
    check(graph_.build_operation_graph(handle));
    check(graph_.create_execution_plans({cudnn_frontend::HeurMode_t::A}));
    check(graph_.check_support());
    check(graph_.build_plans());
  }

  CudnnShape shape_;
  bool another_card_;
  float scale_;
  fe::Graph graph_;
  Tensor scale_tensor_, lengths_;
  std::array<Tensor, kCudnnTensors> offsets_;
};

}  // namespace

std::unique_ptr<CudnnGraph> make_cudnn_graph(const CudnnShape& shape, const CudnnCard& card) {
  load_cudnn();
  try {
    return std::make_unique<Graph>(shape, card);
  } catch (const std::exception& failure) {
    throw std::runtime_error(described(shape) + ": " + failure.what());
  }
}

}  // namespace satune
