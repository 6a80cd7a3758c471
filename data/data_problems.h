// What can be wrong with the records of a training file, kind by kind, each with the place in the file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

enum class ProblemKind {
  // Training stops at these.
  kBrokenFile,
  kInvalidJson,
  kNotAnObject,
  kInvalidUtf8,
  kMissingKey,
  kWrongType,
  kPlainTextRecord,
  kOverlengthError,
  // Training leaves these out.
  kEmptyOutput,
  kNothingToLearn,
  kOverlength,
  kNoTargetLeft,
  // Training takes these as they are.
  kTruncated,
  kBlankOutput,
  kEmptyInstruction,
  kDuplicate,
  kConflictingOutput,
  kSpecialTokenText,
  kTemplateText,
  kDamagedText,
};

enum class ProblemEffect { kStops, kDropped, kTrained };
/// "stops training", "dropped", "trained".
std::string_view problem_effect_name(ProblemEffect effect);

struct ProblemKindInfo {
  ProblemKind kind;
  std::string_view key;    ///< in JSON
  std::string_view title;  ///< for a person
  ProblemEffect effect;
};
/// By ProblemKind, in its order.
const std::array<ProblemKindInfo, 20>& problem_kinds();

struct Problem {
  size_t record = 0;  ///< 1-based; 0 = of the file, not of one record
  size_t line = 0;    ///< of the record's first byte, from 1; 0 = not known
  std::string text;
};

/// Counts every problem and keeps the first `listed` of each kind.
class DataProblems {
 public:
  explicit DataProblems(size_t listed = 0) : listed_(listed) {}

  void add(ProblemKind kind, Problem problem);
  /// Whether the text of one more would be kept.
  bool listing(ProblemKind kind) const { return of(kind).kept.size() < listed_; }
  int64_t count(ProblemKind kind) const { return of(kind).count; }
  const std::vector<Problem>& kept(ProblemKind kind) const { return of(kind).kept; }
  int64_t total() const;

 private:
  struct Kind {
    int64_t count = 0;
    std::vector<Problem> kept;
  };
  const Kind& of(ProblemKind kind) const { return kinds_[static_cast<size_t>(kind)]; }

  size_t listed_;
  std::array<Kind, 20> kinds_;
};

}  // namespace satune
