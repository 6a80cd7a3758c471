// What `satune diff` computes both sides on: ids, a prompt, records of a file, or the ids of a dump.
#pragma once

#include <optional>
#include <string>

#include "data/batch.h"
#include "evaluation/model_loader.h"
#include "model/files/safetensors.h"
#include "trainer/commands/diff_table.h"

namespace satune {

struct DiffInputOptions {
  std::optional<std::string> prompt, tokens, data, template_name;
  int64_t max_records = 4;
};

/// Of --prompt and --tokens every token but the first is a target; of --data what training learns. Prompts
/// and records are encoded by `source`'s tokenizer, records that are longer than `max_length` are left out.
/// Throws BadInput, also where not exactly one of the three is given.
Batch read_diff_input(const DiffInputOptions& options, const ModelSource& source, int64_t max_length);

/// The `tokens` of a dump; every one but the first is a target. Throws BadInput.
Batch dumped_tokens(const SafetensorsFile& dump);

/// The other tensors of a dump, as views of the mapped file. Throws BadInput for a type that no dump has.
NamedTensors dumped_tensors(const SafetensorsFile& dump);

/// Throws BadInput naming `where` for an id that the model's vocabulary lacks.
void check_ids(const Batch& batch, const ModelSource& source, const std::string& where);

}  // namespace satune
