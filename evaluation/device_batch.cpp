#include "evaluation/device_batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

namespace satune {
namespace {

/// Arrays of a batch, one after another in a buffer of int64, so that they cross to a card in one copy.
enum Part { kTokens, kPositions, kTargetRows, kTargetIds, kDocumentStarts, kParts };
constexpr int64_t kBorder = 8;  // words: parts begin on multiples of 64 bytes

struct Layout {
  std::array<int64_t, kParts> begin{}, length{};
  int64_t total = 0;

  explicit Layout(const Batch& batch) {
    const auto tokens = static_cast<int64_t>(batch.tokens.size());
    const auto starts = static_cast<int64_t>(batch.document_starts.size());
    length = {tokens, tokens, batch.target_count, batch.target_count, (starts + 1) / 2};
    for (size_t part = 0; part < kParts; ++part) {
      begin[part] = total;
      total += (length[part] + kBorder - 1) / kBorder * kBorder;
    }
  }
};

void fill(int64_t* words, const Layout& layout, const Batch& batch) {
  std::copy(batch.tokens.begin(), batch.tokens.end(), words + layout.begin[kTokens]);
  std::copy(batch.positions.begin(), batch.positions.end(), words + layout.begin[kPositions]);
  int64_t* row = words + layout.begin[kTargetRows];
  int64_t* id = words + layout.begin[kTargetIds];
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] == kIgnoreTarget) continue;
    *row++ = static_cast<int64_t>(i);
    *id++ = batch.targets[i];
  }
  TORCH_CHECK(id == words + layout.begin[kTargetIds] + batch.target_count,
              "a batch that miscounts its targets");
  std::copy(batch.document_starts.begin(), batch.document_starts.end(),
            reinterpret_cast<int32_t*>(words + layout.begin[kDocumentStarts]));
}

}  // namespace

DeviceBatch to_device(const Batch& batch, at::Device device) {
  const Layout layout(batch);
  // Out of pinned memory, which LibTorch keeps until the copy has been made.
  const at::Tensor host =
      at::empty({layout.total}, at::TensorOptions(at::kLong).pinned_memory(!device.is_cpu()));
  fill(host.mutable_data_ptr<int64_t>(), layout, batch);
  const at::Tensor there = device.is_cpu() ? host : host.to(device, /*non_blocking=*/true);
  const auto part = [&](Part which) { return there.narrow(0, layout.begin[which], layout.length[which]); };
  DeviceBatch result;
  result.tokens_N = part(kTokens);
  result.positions_N = part(kPositions);
  result.targets = {part(kTargetRows), part(kTargetIds)};
  result.document_starts.assign(batch.document_starts.begin(), batch.document_starts.end());
  if (!device.is_cpu()) {
    result.document_starts_on_card =
        part(kDocumentStarts).view(at::kInt).narrow(0, 0, static_cast<int64_t>(batch.document_starts.size()));
  }
  return result;
}

}  // namespace satune
