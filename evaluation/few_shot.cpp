#include <fmt/format.h>

#include <algorithm>

#include "data/files/error.h"
#include "evaluation/benchmark.h"
#include "evaluation/python_random.h"

namespace satune {
namespace {

constexpr uint32_t kSeed = 1234;  // lm-eval's, of a new generator for each task

bool same_document(const BenchmarkDocument& a, const BenchmarkDocument& b) {
  return a.row == b.row;
}

class Examples {
 public:
  Examples(const DocumentGroup& group, int64_t shots) : group_(group), shots_(shots) {
    const auto there = static_cast<int64_t>(group.pool.size()),
               needed = shots + (group.pool_has_document ? 1 : 0);
    if (there < needed)
      throw bad_input(group.shots_from,
                      fmt::format("{} with {} examples to draw from{}", shots, there,
                                  group.name.empty() ? "" : " for " + group.name),
                      fmt::format("at least {}", needed));
  }

  std::string text_for(const BenchmarkDocument& document) {
    std::string text;
    for (const int64_t index : draw(document)) {
      const BenchmarkDocument& example = group_.pool[index];
      text += fmt::format("{} {}\n\n", example.text, example.answer());
    }
    return text;
  }

 private:
  std::vector<int64_t> draw(const BenchmarkDocument& document) {
    std::vector<int64_t> drawn;
    const auto there = static_cast<int64_t>(group_.pool.size());
    if (group_.first_of_pool) {
      for (int64_t i = 0; i < there && static_cast<int64_t>(drawn.size()) < shots_; ++i) {
        if (group_.pool_has_document && same_document(group_.pool[i], document)) continue;
        drawn.push_back(i);
      }
      return drawn;
    }
    if (!group_.pool_has_document) return random_.sample(there, shots_);
    drawn = random_.sample(there, shots_ + 1);
    std::erase_if(drawn, [&](int64_t i) { return same_document(group_.pool[i], document); });
    if (static_cast<int64_t>(drawn.size()) >= shots_) {
      drawn.resize(static_cast<size_t>(shots_));
      return drawn;
    }
    // The document stood in what was drawn more than once: once more, from all others.
    std::vector<int64_t> others;
    for (int64_t i = 0; i < there; ++i)
      if (!same_document(group_.pool[i], document)) others.push_back(i);
    if (static_cast<int64_t>(others.size()) < shots_)
      throw bad_input(group_.shots_from,
                      fmt::format("{} with {} examples that are not the question itself ({})", shots_,
                                  others.size(), document.where),
                      fmt::format("at least {}", shots_));
    drawn = random_.sample(static_cast<int64_t>(others.size()), shots_);
    for (int64_t& index : drawn) index = others[index];
    return drawn;
  }

  const DocumentGroup& group_;
  int64_t shots_;
  PythonRandom random_{kSeed};
};

}  // namespace

std::vector<std::string> few_shot_contexts(const DocumentGroup& group, int64_t shots,
                                           std::optional<int64_t> limit) {
  const size_t count = std::min(group.documents.size(), static_cast<size_t>(limit.value_or(INT64_MAX)));
  std::vector<std::string> contexts;
  std::optional<Examples> examples;
  if (shots > 0) examples.emplace(group, shots);
  for (size_t i = 0; i < count; ++i) {
    const BenchmarkDocument& document = group.documents[i];
    contexts.push_back(group.description + (examples ? examples->text_for(document) : "") + document.text);
  }
  return contexts;
}

}  // namespace satune
