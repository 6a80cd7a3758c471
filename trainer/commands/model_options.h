// Command line options that several subcommands share.
#pragma once

#include <CLI/App.hpp>
#include <filesystem>
#include <string>

#include "evaluation/model_loader.h"

namespace satune {

struct ModelOptions {
  ModelRequest request;
  std::string device = "auto";
};

/// The MODEL argument, --sharing, --anchor, --precision and --device.
void add_model_options(CLI::App& command, ModelOptions& options);

/// "auto", "cpu" or "cuda". Throws BadInput for another word, EnvironmentError for cuda where there is no
/// card.
at::Device device_of(const std::string& name, int64_t local_rank = 0);

/// find_model() on the chosen device. Throws EnvironmentError for cuda where there is no card.
ModelSource find_model_for(ModelOptions options, int64_t local_rank = 0);

/// --sharing and --anchor alone.
void add_sharing_options(CLI::App& command, std::string& sharing, std::optional<std::string>& anchor);

/// "float32" | "bfloat16" | "float16". Throws BadInput naming --dtype.
DType parse_export_dtype(const std::string& text);

/// Throws BadInput when OUT exists and is not an empty folder, so that it shows before any work is done.
void require_new_directory(const std::filesystem::path& out);

/// Throws BadInput when the folder that `path` would be in does not exist.
void require_folder_for(const std::filesystem::path& path, std::string_view option);

/// Throws BadInput when the file exists already or its folder does not, EnvironmentError when nothing can be
/// written there, so that it shows before any work is done.
void require_new_file(const std::filesystem::path& file, std::string_view option);

/// Throws BadInput that names the option and the first bad byte.
void require_utf8(std::string_view text, std::string_view option);

}  // namespace satune
