// Weights from a checkpoint, weights from a seed.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "data/files/error.h"
#include "data/files/hash.h"
#include "model/files/stored_dtype.h"
#include "model/parameters.h"

namespace satune {
namespace {

/// Bytes of a checkpoint that may be resident at a time while they are copied.
constexpr int64_t kCopyBytes = int64_t{32} << 20;

/// A hash of a counter.
uint64_t mix(uint64_t counter) {
  return mix_bits(counter + kGoldenGamma);
}

/// Standard normal deviates 2i and 2i + 1 of a stream (Box and Muller 1958).
std::pair<double, double> normal_pair(uint64_t stream, uint64_t i) {
  constexpr double kUnit = 0x1.0p-53;
  const double u = (static_cast<double>(mix(stream + 2 * i) >> 11) + 0.5) * kUnit;
  const double v = static_cast<double>(mix(stream + 2 * i + 1) >> 11) * kUnit;
  const double radius = std::sqrt(-2.0 * std::log(u));
  return {radius * std::cos(2.0 * std::numbers::pi * v), radius * std::sin(2.0 * std::numbers::pi * v)};
}

void fill_normal(const at::Tensor& target, uint64_t stream, double deviation) {
  constexpr int64_t kPiece = 1 << 20;  // even
  const at::Tensor flat = target.view({-1});
  at::Tensor piece = at::empty({std::min(kPiece, flat.numel())}, at::kFloat);
  for (int64_t first = 0; first < flat.numel(); first += kPiece) {
    const int64_t count = std::min(kPiece, flat.numel() - first);
    float* values = piece.mutable_data_ptr<float>();
    at::parallel_for(0, (count + 1) / 2, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto [a, b] = normal_pair(stream, static_cast<uint64_t>(first / 2 + i));
        values[2 * i] = static_cast<float>(a * deviation);
        if (2 * i + 1 < count) values[2 * i + 1] = static_cast<float>(b * deviation);
      }
    });
    flat.narrow(0, first, count).copy_(piece.narrow(0, 0, count));
  }
}

}  // namespace

void load_elements(const at::Tensor& target, const Checkpoint& checkpoint, const TensorInfo& info,
                   int64_t begin) {
  const StoredTensor& stored = *checkpoint.find(info.name);
  const at::ScalarType type = scalar_type(dtype_of(stored));
  const auto element = static_cast<int64_t>(at::elementSize(type));
  // Piece by piece, each piece's pages given back, so that a large embedding is never resident twice.
  const int64_t step = kCopyBytes / element;
  for (int64_t first = 0; first < target.numel(); first += step) {
    const int64_t count = std::min(step, target.numel() - first);
    StoredTensor piece = stored;
    piece.bytes = stored.bytes.subspan((begin + first) * element, count * element);
    // from_blob wants a mutable pointer; the map is read-only and is only read.
    const at::Tensor source =
        at::from_blob(const_cast<std::byte*>(piece.bytes.data()), {count}, at::TensorOptions(type));
    target.narrow(0, first, count).copy_(source);
    checkpoint.release(piece);
  }
}

void report_unused_tensors(const Checkpoint& checkpoint, const TensorTable& table, bool dense_source) {
  const std::vector<std::string> skipped = check_checkpoint(checkpoint, table, dense_source);
  if (skipped.empty()) return;
  spdlog::info("{} tensors of the checkpoint are not used ({}{})", skipped.size(), skipped.front(),
               skipped.size() > 1 ? ", ..." : "");
}

void load_weights(Weights& weights, const Checkpoint& checkpoint, bool dense_source) {
  report_unused_tensors(checkpoint, weights.table, dense_source);
  const std::span<const TensorInfo> tensors = weights.table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    load_elements(weights.tensor(i).view({-1}), checkpoint, tensors[i], 0);
  }
}

void initialise_weights(Weights& weights, double initializer_range, uint64_t seed) {
  const std::span<const TensorInfo> tensors = weights.table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].shape.size() == 1) {
      weights.tensor(i).fill_(1.0);
    } else {
      fill_normal(weights.tensor(i), mix(seed ^ hash_name(tensors[i].name)), initializer_range);
    }
  }
}

}  // namespace satune
