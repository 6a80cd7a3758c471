#include "model/export.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/parameters.h"

namespace satune {
namespace {

constexpr int64_t kPieceElements = int64_t{4} << 20;

void write_streamed(SafetensorsWriter& writer, size_t tensor, int64_t numel, const ReadElements& read,
                    at::ScalarType type) {
  for (int64_t begin = 0; begin < numel; begin += kPieceElements) {
    const int64_t count = std::min(kPieceElements, numel - begin);
    const at::Tensor piece = read(tensor, begin, count).to(at::kCPU, type).contiguous();
    writer.write(std::span(static_cast<const std::byte*>(piece.const_data_ptr()), piece.nbytes()));
  }
}

}  // namespace

void export_model(const std::filesystem::path& directory, const ModelConfig& config, const TensorTable& table,
                  const std::function<at::Tensor(size_t)>& read, DType dtype, const ExportOptions& options) {
  at::Tensor flat;
  const auto piece = [&](size_t tensor, int64_t begin, int64_t count) {
    if (begin == 0) flat = read(tensor).reshape({-1});
    return flat.narrow(0, begin, count);
  };
  export_pieces(directory, config, table, piece, dtype, options);
}

void export_pieces(const std::filesystem::path& directory, const ModelConfig& config,
                   const TensorTable& table, const ReadElements& read, DType dtype,
                   const ExportOptions& options, FileOps& ops) {
  AtomicDirectory target(directory, ops);
  ModelConfig written = config;
  written.dtype = dtype;
  write_export_files(target.path(), written, options, ops);
  const std::vector<ExportShard> shards = plan_export_shards(table, dtype, options.max_shard_bytes);
  for (const ExportShard& shard : shards) {
    SafetensorsWriter writer(target.path() / shard.file_name, shard.tensors, {{"format", "pt"}}, ops);
    for (const TensorSpec& spec : shard.tensors) {
      const TensorInfo* info = table.find(spec.name);
      const auto index = static_cast<size_t>(info - table.tensors().data());
      write_streamed(writer, index, info->numel(), read, scalar_type(dtype));
    }
    writer.commit();
  }
  write_export_index(target.path(), shards, ops);
  target.commit();
}

}  // namespace satune
