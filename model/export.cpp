// A Hugging Face directory out of any source of tensors.
#include <ATen/ATen.h>

#include <algorithm>

#include "model/parameters.h"

namespace satune {
namespace {

constexpr int64_t kPieceElements = int64_t{8} << 20;

/// Appends a tensor's elements in `type`, a piece at a time so that no second copy of it exists.
void write_streamed(SafetensorsWriter& writer, const at::Tensor& tensor, at::ScalarType type) {
  const at::Tensor flat = tensor.reshape({-1});
  for (int64_t first = 0; first < flat.numel(); first += kPieceElements) {
    const int64_t count = std::min(kPieceElements, flat.numel() - first);
    const at::Tensor piece = flat.narrow(0, first, count).to(at::kCPU, type).contiguous();
    writer.write(std::span(static_cast<const std::byte*>(piece.const_data_ptr()), piece.nbytes()));
  }
}

}  // namespace

void export_model(const std::filesystem::path& directory, const ModelConfig& config, const TensorTable& table,
                  const std::function<at::Tensor(size_t)>& read, DType dtype, const ExportOptions& options) {
  AtomicDirectory target(directory);
  ModelConfig written = config;
  written.dtype = dtype;
  write_export_files(target.path(), written, options);
  const std::vector<ExportShard> shards = plan_export_shards(table, dtype, options.max_shard_bytes);
  for (const ExportShard& shard : shards) {
    SafetensorsWriter writer(target.path() / shard.file_name, shard.tensors);
    for (const TensorSpec& spec : shard.tensors) {
      const size_t index = static_cast<size_t>(table.find(spec.name) - table.tensors().data());
      write_streamed(writer, read(index), scalar_type(dtype));
    }
    writer.commit();
  }
  write_export_index(target.path(), shards);
  target.commit();
}

}  // namespace satune
