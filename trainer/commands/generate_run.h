// What the three ways of `satune generate` (one prompt, a file of prompts, a chat) share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/prompt_template.h"
#include "evaluation/answer_text.h"
#include "evaluation/generation.h"
#include "trainer/commands/model_options.h"

namespace satune {

struct GenerateOptions {
  ModelOptions model;
  std::optional<int64_t> max_new_tokens;
  std::optional<std::string> prompt, instruction, template_name;
  std::optional<std::filesystem::path> prompts, output;
  std::string input;
  std::vector<std::string> stop;
  int64_t batch_size = 8;
  GenerationOptions generation;
  bool json = false, interactive = false;
};

/// A model that is found, with what is known before its weights are loaded.
struct GenerateModel {
  ModelSource source;
  std::unique_ptr<Tokenizer> tokenizer;

  explicit GenerateModel(const GenerateOptions& options);
  int64_t positions() const { return source.config.max_position_embeddings; }
  /// options.generation with the ids that end a text of this model.
  GenerationOptions generation(const GenerateOptions& options, const PromptTemplate* prompt_template) const;
};

/// What goes into the model, and how its answer becomes text.
struct Prompt {
  std::string name;  ///< in errors: "the prompt", "prompts.jsonl record 3"
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<int32_t> text_context;  ///< a plain prompt is continued; a response stands by itself
};

/// Plain text to continue; the instruction of a record. Throw BadInput.
Prompt plain_prompt(std::string name, std::string text, const Tokenizer& tokenizer);
Prompt template_prompt(std::string name, const Record& record, const PromptTemplate& prompt_template,
                       const Tokenizer& tokenizer);

/// Tokens of the answer: what was asked for, which must fit in the model's positions, or what is left of
/// them, 256 at most.
int64_t bounded_answer(const GenerateOptions& options, const Prompt& prompt, int64_t positions);

/// An answer as a JSON object, indented or on one line, with its final newline; `satune generate --help`
/// lists the keys. `number`: the prompt's in its file.
std::string answer_json(const Prompt& prompt, const AnswerText& text, const Generation& generation,
                        const Decoder& decoder, bool one_line, std::optional<size_t> number = std::nullopt);

/// What all answers took, on stderr.
void print_summary(int64_t tokens, double seconds, double first_token_seconds, const Decoder& decoder);

/// Writes to standard output at once. Throws EnvironmentError when that fails.
void write_now(std::string_view text);

int run_prompt(const GenerateOptions& options);        // generate_prompt.cpp
int run_prompt_file(const GenerateOptions& options);   // generate_file.cpp
int run_conversation(const GenerateOptions& options);  // generate_chat.cpp

}  // namespace satune
