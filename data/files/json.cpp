#include "data/files/json.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <unordered_set>
#include <utility>

#include "data/files/error.h"
#include "data/files/mapped_file.h"

namespace satune {
namespace {

// Deeper documents than this are no config, header or record; the bound keeps recursive readers safe.
constexpr size_t kMaxDepth = 256;
// Objects of more keys look duplicates up in a set instead of scanning.
constexpr size_t kScannedKeys = 16;

// Whose text it is, and the number of its only line (0 = it is the whole).
struct TextPlace {
  std::string_view source;
  size_t line;

  std::string name() const { return line == 0 ? std::string(source) : fmt::format("{}:{}", source, line); }
};

[[noreturn]] void fail_at(const TextPlace& place, std::string_view text, size_t byte,
                          std::string_view detail) {
  byte = std::min(byte, text.size());
  const std::string_view before = text.substr(0, byte);
  const size_t line = std::max<size_t>(place.line, 1) + std::count(before.begin(), before.end(), '\n');
  const size_t newline = before.rfind('\n');
  const std::string_view row = newline == std::string_view::npos ? before : before.substr(newline + 1);
  const auto is_first_byte = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  const size_t column = 1 + std::count_if(row.begin(), row.end(), is_first_byte);
  throw BadInput(fmt::format("{}:{}:{}: {}", place.source, line, column, detail));
}

// Where the key number `index` (from 0, in the order of the text) begins. The text is valid up to there.
size_t find_key(std::string_view text, size_t index) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '"') continue;
    const size_t begin = i;
    for (++i; i < text.size() && text[i] != '"'; ++i) {
      if (text[i] == '\\') ++i;
    }
    const size_t next = text.find_first_not_of(" \t\r\n", i + 1);
    if (next != std::string_view::npos && text[next] == ':' && index-- == 0) return begin;
  }
  return text.size();
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." -> "syntax error ..."
std::string without_prefix(std::string_view what) {
  if (const size_t bracket = what.find("] "); bracket != std::string_view::npos)
    what.remove_prefix(bracket + 2);
  if (what.starts_with("parse error at line")) {
    if (const size_t colon = what.find(": "); colon != std::string_view::npos) what.remove_prefix(colon + 2);
  }
  constexpr size_t kLongest = 240;
  if (what.size() <= kLongest) return std::string(what);
  return fmt::format("{} ... {}", what.substr(0, kLongest / 2), what.substr(what.size() - kLongest / 2));
}

// Builds the document from the parser's events, refusing repeated keys.
class Builder {
 public:
  Builder(const TextPlace& place, std::string_view text) : place_(place), text_(text) {}

  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(int64_t value) { return add(value); }
  bool number_unsigned(uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return open(Json::object()); }
  bool end_object() { return close(); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    Frame& frame = open_.back();
    if (has_key(frame, name)) {
      fail_at(place_, text_, find_key(text_, keys_seen_),
              fmt::format("found the key {} twice in one object, expected it once", quote_json(name)));
    }
    ++keys_seen_;
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) {
    fail_at(place_, text_, position == 0 ? 0 : position - 1, without_prefix(error.what()));
  }

 private:
  struct Frame {
    Json* node;
    std::unordered_set<std::string> names;  // filled once the object has more than kScannedKeys keys
  };

  static bool has_key(Frame& frame, const std::string& name) {
    const Json::object_t& object = frame.node->get_ref<const Json::object_t&>();
    if (object.size() < kScannedKeys) {
      return std::any_of(object.begin(), object.end(),
                         [&](const auto& entry) { return entry.first == name; });
    }
    if (frame.names.empty()) {
      for (const auto& entry : object) frame.names.insert(entry.first);
    }
    return !frame.names.insert(name).second;
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  Json* place(Json&& value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back().node;
    if (parent.is_array()) {
      auto& array = parent.get_ref<Json::array_t&>();
      array.push_back(std::move(value));
      return &array.back();
    }
    // Past ordered_map::emplace, which would scan all the keys again.
    auto& object = parent.get_ref<Json::object_t&>();
    object.emplace_back(std::move(key_), std::move(value));
    return &object.back().second;
  }

  bool open(Json container) {
    if (open_.size() >= kMaxDepth) {
      throw BadInput(fmt::format("{}: found objects and arrays nested deeper than {}, expected less",
                                 place_.name(), kMaxDepth));
    }
    open_.push_back({place(std::move(container)), {}});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  TextPlace place_;
  std::string_view text_;
  Json root_;
  std::vector<Frame> open_;
  std::string key_;
  size_t keys_seen_ = 0;
};

// The same text with every // comment outside strings replaced by spaces, so that positions stay.
std::string blank_comments(std::string_view text) {
  std::string blanked(text);
  for (size_t i = 0; i < blanked.size(); ++i) {
    if (blanked[i] == '"') {
      for (++i; i < blanked.size() && blanked[i] != '"'; ++i) {
        if (blanked[i] == '\\') ++i;
      }
    } else if (blanked[i] == '/' && i + 1 < blanked.size() && blanked[i + 1] == '/') {
      for (; i < blanked.size() && blanked[i] != '\n'; ++i) blanked[i] = ' ';
    }
  }
  return blanked;
}

std::string shortened(std::string_view text) {
  constexpr size_t kLongest = 60;
  if (text.size() <= kLongest) return std::string(text);
  size_t cut = kLongest;
  while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return std::string(text.substr(0, cut)) + "...";
}

char folded(char c) {
  return c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
}

// Insertions, deletions, replacements and swaps of neighbours; case and - against _ count nothing.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> older, previous(b.size() + 1), current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = folded(a[i - 1]) == folded(b[j - 1]);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) && folded(a[i - 2]) == folded(b[j - 1])) {
        current[j] = std::min(current[j], older[j - 2] + 1);
      }
    }
    older = std::exchange(previous, current);
  }
  return previous[b.size()];
}

}  // namespace

Json parse_json(std::string_view text, std::string_view source, JsonOptions options) {
  const TextPlace place{source, options.line};
  if (text.empty()) throw bad_input(place.name(), "nothing", "a JSON document");
  // nlohmann's lexer takes a NUL for the end of the text and would ignore what follows.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    fail_at(place, text, nul, "found a NUL byte, expected JSON text");
  }
  std::string blanked;
  if (options.allow_comments) {
    blanked = blank_comments(text);
    text = blanked;
  }
  Builder builder(place, text);
  if (!Json::sax_parse(text.data(), text.data() + text.size(), &builder)) {
    throw bad_input(place.name(), "text that is not JSON", "a JSON document");
  }
  return builder.take();
}

Json read_json_file(const std::filesystem::path& path, JsonOptions options) {
  const MappedFile file(path);
  if (file.bytes().empty()) throw bad_input(path.string(), "an empty file", "a JSON document");
  return parse_json(file.text(), path.string(), options);
}

std::string write_json(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string quote_json(std::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string describe_json(const Json* value) {
  if (value == nullptr) return "nothing";
  switch (value->type()) {
    case Json::value_t::object:
      return value->empty() ? "an empty object" : "an object";
    case Json::value_t::array:
      return value->empty() ? "an empty array" : "an array";
    case Json::value_t::string:
      return "the string " + quote_json(shortened(value->get_ref<const std::string&>()));
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return "the number " + value->dump();
    default:
      return value->dump();
  }
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    // A name of which nothing is left is no suggestion.
    if (distance < best_distance && distance < std::max(word.size(), candidate.size())) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace satune
