// Exports from sources that do not hold their tensors in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>

#include "data/files/atomic_file.h"
#include "model/files/hf_directory.h"

namespace satune {

/// Elements [begin, begin + count) of a tensor of the table, flat, of any type and device; read until the
/// next call. A tensor's pieces are asked for in order.
using ReadElements = std::function<at::Tensor(size_t tensor, int64_t begin, int64_t count)>;

/// export_model() of parameters.h, a piece of a few MiB at a time: what is needed beside the source does not
/// grow with the model.
void export_pieces(const std::filesystem::path& directory, const ModelConfig& config,
                   const TensorTable& table, const ReadElements& read, DType dtype,
                   const ExportOptions& options, FileOps& ops = posix_file_ops());

}  // namespace satune
