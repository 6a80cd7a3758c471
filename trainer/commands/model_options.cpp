#include "trainer/commands/model_options.h"

#include <CLI/CLI.hpp>
#include <system_error>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/utf8.h"
#include "trainer/device.h"

namespace satune {
namespace fs = std::filesystem;

void add_sharing_options(CLI::App& command, std::string& sharing, std::optional<std::string>& anchor) {
  command.add_option("--sharing", sharing,
                     "Layers that reuse another layer's attention weights, 0-based and inclusive: 23-26 or "
                     "10-12,23-26 (default: the checkpoint's own plan)");
  command.add_option("--anchor", anchor,
                     "before: every listed layer reuses, the layer before the run computes (default); first: "
                     "the first of each run computes");
}

void add_model_options(CLI::App& command, ModelOptions& options) {
  ModelRequest& request = options.request;
  command.add_option("model", request.name_or_path, "Hugging Face directory, or a hub id in the local cache")
      ->required();
  add_sharing_options(command, request.sharing, request.anchor);
  command.add_option("--precision", request.precision,
                     "fp32 | bf16 (default auto: bf16 for a bf16 checkpoint, else fp32)");
  command.add_option("--device", options.device,
                     "auto | cpu | cuda (default auto: a card where there is one)");
}

at::Device device_of(const std::string& name, int64_t local_rank) {
  if (name == "auto") return choose_device(DeviceChoice::kAuto, local_rank);
  if (name == "cpu") return choose_device(DeviceChoice::kCpu, local_rank);
  if (name == "cuda") return choose_device(DeviceChoice::kCuda, local_rank);
  throw bad_input("--device", "\"" + name + "\"", "auto, cpu or cuda");
}

ModelSource find_model_for(ModelOptions options, int64_t local_rank) {
  options.request.device = device_of(options.device, local_rank);
  return find_model(options.request);
}

DType parse_export_dtype(const std::string& text) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    if (text == torch_name(dtype)) return dtype;
  throw bad_input("--dtype", "\"" + text + "\"", "float32, bfloat16 or float16");
}

void require_new_directory(const fs::path& out) {
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status)) throw bad_input(out.string(), "a file", "a new or empty folder to write to");
  const bool empty = fs::is_empty(out, error);
  if (error) throw EnvironmentError(out.string() + ": " + error.message());
  if (!empty)
    throw bad_input(out.string(), "a folder that is not empty", "a new or empty folder to write to");
}

void require_folder_for(const fs::path& path, std::string_view option) {
  // Of "out/", too, the name is "out".
  const fs::path name = path.has_filename() ? path : path.parent_path();
  const fs::path folder = name.parent_path().empty() ? fs::path(".") : name.parent_path();
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw bad_input(fmt::format("{} {}", option, path.string()), "no folder " + folder.string(), "one");
}

void require_new_file(const fs::path& file, std::string_view option) {
  std::error_code error;
  if (fs::exists(file, error))
    throw bad_input(fmt::format("{} {}", option, file.string()), "an existing file", "a new file to write");
  require_folder_for(file, option);
  const AtomicFile trial(file);  // leaves nothing
}

void require_utf8(std::string_view text, std::string_view option) {
  if (const std::optional<size_t> bad = find_invalid_utf8(text))
    throw bad_input(option, fmt::format("a byte at offset {} that is not UTF-8", *bad), "UTF-8 text");
}

}  // namespace satune
