#include <array>
#include <charconv>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/tokenizers/bpe_tokenizer.h"

namespace satune {
namespace {

constexpr int32_t kLlama3Ranks = 128000;
constexpr int32_t kLlama3Specials = 256;

/// Strict base64 (RFC 4648, padded). Nothing for anything else.
std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const auto digit = [](char c) -> int {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  text.remove_suffix(padding);
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = digit(c);
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xFF);
  }
  if ((bits & ((1u << count) - 1)) != 0) return std::nullopt;
  return bytes;
}

void read_line(std::string_view line, const std::string& where, TokenTable& tokens) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos) {
    throw bad_input(where, fmt::format("\"{}\"", line), "a token in base64, a space and its rank");
  }
  const std::string_view rank_text = line.substr(space + 1);
  const auto bytes = decode_base64(line.substr(0, space));
  if (!bytes) throw bad_input(where, fmt::format("\"{}\"", line.substr(0, space)), "a token in base64");
  int32_t rank = -1;
  const auto [end, error] = std::from_chars(rank_text.data(), rank_text.data() + rank_text.size(), rank);
  if (error != std::errc() || end != rank_text.data() + rank_text.size() || rank < 0 || rank > 1 << 24) {
    throw bad_input(where, fmt::format("rank \"{}\"", rank_text), "a number");
  }
  if (tokens.has(rank))
    throw bad_input(where, fmt::format("rank {} again", rank), "a rank that is not taken");
  if (!tokens.add(rank, *bytes)) {
    throw bad_input(where, fmt::format("the token of rank {} again", tokens.find(*bytes)), "a new token");
  }
}

void read_lines(std::string_view text, const std::string& path, TokenTable& tokens) {
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number;
    if (!line.empty()) read_line(line, fmt::format("{}: line {}", path, number), tokens);
    begin = end + 1;
  }
}

void check_complete(const std::string& path, const TokenTable& tokens) {
  for (int32_t rank = 0; rank < tokens.size(); ++rank) {
    if (!tokens.has(rank)) {
      throw bad_input(path, fmt::format("no rank {}", rank), fmt::format("ranks 0 to {}", tokens.size() - 1));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    if (tokens.find({&text, 1}) < 0) {
      throw bad_input(path, fmt::format("no token for the byte 0x{:02x}", byte), "all 256 bytes");
    }
  }
}

/// Llama-3's names by place after the ranks; 3.1 renamed some of the reserved ones.
std::string llama3_special(int32_t place) {
  switch (place) {
    case 0:
      return "<|begin_of_text|>";
    case 1:
      return "<|end_of_text|>";
    case 6:
      return "<|start_header_id|>";
    case 7:
      return "<|end_header_id|>";
    case 9:
      return "<|eot_id|>";
    default:
      break;
  }
  const int32_t reserved = place < 6 ? place - 2 : place < 9 ? place - 4 : place - 5;
  return fmt::format("<|reserved_special_token_{}|>", reserved);
}

constexpr std::pair<int32_t, const char*> kLlama31Names[] = {
    {4, "<|finetune_right_pad_id|>"}, {5, "<|step_id|>"}, {8, "<|eom_id|>"}, {10, "<|python_tag|>"}};

void add_special_tokens(const std::string& path, const SpecialTokens& special_tokens,
                        BpeDefinition& definition) {
  const int32_t ranks = definition.tokens->size();
  const std::vector<AddedToken>& given = special_tokens.added;
  if (ranks != kLlama3Ranks && (given.empty() || given.front().id != ranks)) {
    throw bad_input(path, fmt::format("{} ranks", ranks),
                    given.empty()
                        ? fmt::format("Llama-3's {}, or added_tokens_decoder in a "
                                      "tokenizer_config.json beside it",
                                      kLlama3Ranks)
                        : fmt::format("{}, after which the first added token has its id", given.front().id));
  }
  for (const AddedToken& token : given) {
    if (!definition.tokens->add_hidden(token.id, token.text)) {
      throw bad_input(path, fmt::format("a rank {}", token.id),
                      fmt::format("the added token \"{}\" at that id", token.text));
    }
    definition.added.push_back(token);
  }
  if (ranks != kLlama3Ranks) return;
  for (int32_t place = 0; place < kLlama3Specials; ++place) {
    const AddedToken token{ranks + place, llama3_special(place), true};
    if (definition.tokens->add_hidden(token.id, token.text)) definition.added.push_back(token);
  }
  for (const auto& [place, name] : kLlama31Names) definition.aliases.push_back({ranks + place, name, true});
}

}  // namespace

BpeDefinition read_rank_file(const std::filesystem::path& path, const SpecialTokens& special_tokens) {
  const MappedFile file(path);
  BpeDefinition definition;
  definition.tokens = std::make_unique<TokenTable>();
  read_lines(file.text(), path.string(), *definition.tokens);
  check_complete(path.string(), *definition.tokens);
  add_special_tokens(path.string(), special_tokens, definition);
  definition.merges_by_rank = true;
  definition.pre_tokenizer = std::make_unique<PreTokenizer>(PreTokenizer::llama3());
  definition.bos = resolve_token(special_tokens.bos, definition, {"<|begin_of_text|>"});
  definition.eos = resolve_token(special_tokens.eos, definition, {"<|end_of_text|>"});
  definition.adds_bos = special_tokens.add_bos.value_or(true);
  definition.fingerprint = content_fingerprint("rank file", file.text(), definition.added);
  return definition;
}

}  // namespace satune
