// Regular expressions as Python's re reads them, as far as the patterns of benchmarks go (PCRE2, UTF-8).
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

/// A pattern took more steps on a text than PCRE2's limits allow (Python's re would go on, perhaps for
/// years).
class MatchLimit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Regex {
 public:
  /// Throws BadInput with `where` when the pattern is not accepted.
  Regex(std::string_view pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  const std::string& pattern() const { return pattern_; }

  // Both throw MatchLimit.

  /// re.findall(): for each match its groups, or the whole match where the pattern has none. `text` is
  /// well-formed UTF-8.
  std::vector<std::vector<std::string>> find_all(std::string_view text) const;

  /// re.sub(pattern, "", text).
  std::string remove_all(std::string_view text) const;

 private:
  struct Match {
    size_t begin, end;
    std::vector<std::string> groups;
  };
  std::vector<Match> matches(std::string_view text) const;

  struct Code;
  std::string pattern_;
  std::unique_ptr<Code> code_;
};

}  // namespace satune
