// What a report of `satune eval` says its tasks were measured on, so that `satune compare` can refuse
// another.
#pragma once

#include "data/files/json.h"
#include "trainer/commands/eval_tasks.h"

namespace satune {

/// {TASK: {"items": Task::fingerprint(), "data": bytes of its files, "template": of the prompt template or
/// the task file, null where it has neither, "tokenizer": ids and BOS and EOS}}, SHA-256 each. Reads the data
/// once more. Throws BadInput where it is gone.
Json eval_fingerprints(const EvalTasks& tasks);

}  // namespace satune
