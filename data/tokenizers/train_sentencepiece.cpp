#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/files/sentencepiece_files.h"
#include "data/tokenizer.h"
#include "data/tokenizers/code_points.h"

namespace satune {
namespace {

/// Hands the trainer one line at a time. It skips sentences that hold a tab (its own separator), and no
/// learned piece should span a line, so both end a sentence here.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      const std::string clean = replace_invalid_utf8(text);
      for (size_t begin = 0; begin < clean.size();) {
        const size_t end = std::min(clean.find_first_of("\n\t", begin), clean.size());
        if (end > begin) lines_.push_back(clean.substr(begin, end - begin));
        begin = end + 1;
      }
    }
  }
  bool empty() const { return lines_.empty(); }
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t next_ = 0;
};

std::unordered_map<std::string, std::string> trainer_arguments(const SentencePieceTraining& options) {
  return {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"byte_fallback", options.byte_fallback ? "true" : "false"},
      {"split_digits", options.split_digits ? "true" : "false"},
      {"character_coverage", std::to_string(options.character_coverage)},
      // Text must come back as it was: no folding of spaces, no other normalisation.
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"num_threads", "1"},
      {"max_sentence_length", "1000000"},
      {"minloglevel", "4"},
  };
}

/// sentencepiece's messages begin with the source line and the condition that failed, in brackets.
std::string reason(const sentencepiece::util::Status& status) {
  const std::string message = status.error_message();
  const size_t bracket = message.find("] ");
  return bracket == std::string::npos ? message : message.substr(bracket + 2);
}

}  // namespace

void train_sentencepiece(const std::vector<std::string>& texts, const SentencePieceTraining& options,
                         const std::filesystem::path& directory) {
  Lines lines(texts);
  if (lines.empty()) throw bad_input("tokenizer training", "no text", "at least one non-empty line");
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(trainer_arguments(options), &lines, &model);
  if (!status.ok()) {
    throw bad_input("tokenizer training",
                    fmt::format("vocab_size {} ({})", options.vocab_size, reason(status)),
                    "a size that the texts can fill");
  }
  std::filesystem::create_directories(directory);
  write_file_atomic(directory / "tokenizer.model", model);
  write_file_atomic(directory / "tokenizer_config.json",
                    write_json(sentencepiece_tokenizer_config(/*legacy=*/false)));
}

}  // namespace satune
