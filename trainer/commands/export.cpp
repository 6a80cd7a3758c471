// satune export: a Hugging Face directory from a snapshot.
#include "model/export.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "data/files/error.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/final_export.h"
#include "trainer/snapshot_reader.h"
#include "trainer/snapshot_store.h"
#include "trainer/trained_text.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

struct CommandOptions {
  std::string snapshot, out;
  std::optional<std::string> dtype;
};

std::unique_ptr<SnapshotReader> open_verified(const fs::path& folder) {
  auto snapshot = std::make_unique<SnapshotReader>(folder);
  snapshot->verify();
  return snapshot;
}

/// The snapshot itself, or the newest complete one of a run folder or its snapshots/ folder; verified.
std::unique_ptr<SnapshotReader> snapshot_to_export(const fs::path& given) {
  std::error_code error;
  if (!fs::is_directory(given, error))
    throw bad_input(given.string(), "no such folder", "a snapshot or a run folder");
  if (fs::exists(given / kManifestFile, error) || snapshot_step(given.filename().string()) >= 0)
    return open_verified(given);
  const fs::path inside = given / kSnapshotFolder;
  const SnapshotStore store(fs::is_directory(inside, error) ? inside : given);
  std::vector<StoredSnapshot> snapshots = store.scan();
  for (auto snapshot = snapshots.rbegin(); snapshot != snapshots.rend(); ++snapshot) {
    try {
      return open_verified(snapshot->folder);
    } catch (const BadInput& error) {
      spdlog::warn("{} is left out: {}", snapshot->folder.string(), error.what());
    }
  }
  throw bad_input(given.string(), "no complete snapshot",
                  "a snapshot (step-00001234) or a run folder with one");
}

int run_export(const CommandOptions& options) {
  require_new_directory(options.out);
  const std::unique_ptr<SnapshotReader> opened = snapshot_to_export(options.snapshot);
  const SnapshotReader& snapshot = *opened;
  const Settings settings =
      parse_settings(snapshot.settings().dump(), (snapshot.folder() / kStateFile).string() + ": settings");
  const DType dtype =
      options.dtype ? parse_export_dtype(*options.dtype) : export_dtype(settings, snapshot.config());
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(snapshot.base_model());
  const TrainedText text = read_trained_text(snapshot);
  const ExportOptions files = export_options(snapshot.base_model(), text.prompt_template, *tokenizer,
                                             text.format == DataFormat::kText);
  export_pieces(
      options.out, snapshot.config(), snapshot.table(),
      [&](size_t tensor, int64_t begin, int64_t count) { return snapshot.elements(tensor, begin, count); },
      dtype, files);
  spdlog::info("{}: step {}, {} parameters in {}", options.out, snapshot.step(),
               snapshot.table().parameter_count(), torch_name(dtype));
  return kExitOk;
}

}  // namespace

void add_export_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CommandOptions>();
  CLI::App* command = app.add_subcommand("export", "Write a Hugging Face directory from a snapshot");
  command
      ->add_option("snapshot", options->snapshot,
                   "A snapshot folder (step-00001234), or a run folder: its newest complete snapshot")
      ->required();
  command->add_option("out", options->out, "New or empty folder for the result")->required();
  command->add_option(
      "--dtype", options->dtype,
      "float32 | bfloat16 | float16 (default: the run's export_dtype, else that of the model it "
      "started from)");
  command->footer(
      "The result loads in transformers (trust_remote_code=True where attention is shared), lm-eval, vLLM "
      "and\n"
      "satune. Checksums of the snapshot are compared first.\n"
      "Examples:\n"
      "  satune export runs/sa/snapshots/step-00000200 sa-model\n"
      "  satune export runs/sa sa-model --dtype bfloat16");
  command->callback([options, &exit_code] { exit_code = run_export(*options); });
}

}  // namespace satune
