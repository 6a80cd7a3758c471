#include "data/tokenizers/byte_pair_encoder.h"

#include <algorithm>
#include <array>
#include <queue>
#include <stdexcept>

#include "data/files/hash.h"

namespace satune {
namespace {

constexpr size_t kShortWord = 64;  // up to here looking through all pairs beats a heap
constexpr uint32_t kNoMerge = UINT32_MAX;
constexpr uint32_t kNone = UINT32_MAX;
constexpr int32_t kGone = -2;  // -1 is a character without a token

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

PairTable::PairTable(size_t expected) {
  size_t size = 16;
  while (size < 2 * expected + 2) size *= 2;
  slots_.resize(size);
}

size_t PairTable::slot_of(uint64_t key) const {
  const uint64_t product = key * kGoldenGamma;
  size_t i = (product ^ product >> 32) & (slots_.size() - 1);
  while (slots_[i].key != key && slots_[i].key != UINT64_MAX) i = (i + 1) & (slots_.size() - 1);
  return i;
}

void PairTable::add(int32_t left, int32_t right, Merge merge) {
  if (2 * (used_ + 1) > slots_.size()) throw std::logic_error("PairTable: more pairs than expected");
  const uint64_t key = pair_key(left, right);
  Slot& slot = slots_[slot_of(key)];
  if (slot.key == UINT64_MAX) ++used_;
  slot = {key, merge};
}

PairTable::Merge PairTable::find(int32_t left, int32_t right) const {
  return slots_[slot_of(pair_key(left, right))].merge;
}

/// A stretch of the word that is a token, in a doubly linked list.
struct BytePairEncoder::Part {
  uint32_t begin = 0, end = 0;
  uint32_t previous = kNone, next = kNone;
  int32_t id = -1;
};

BytePairEncoder::BytePairEncoder(const TokenTable& tokens, PairTable pairs, Words words)
    : tokens_(tokens),
      pairs_(std::move(pairs)),
      by_joined_bytes_(false),
      whole_(static_cast<size_t>(tokens.size()), true) {
  find_single_bytes();
  if (words == Words::kMerge) find_whole_words();
}

BytePairEncoder::BytePairEncoder(const TokenTable& tokens)
    : tokens_(tokens), by_joined_bytes_(true), whole_(static_cast<size_t>(tokens.size()), true) {
  find_single_bytes();
}

BytePairEncoder::BytePairEncoder(const TokenTable& tokens, std::vector<uint32_t> ranks,
                                 const std::array<int32_t, 256>& bytes)
    : tokens_(tokens),
      by_joined_bytes_(true),
      by_character_(true),
      ranks_(std::move(ranks)),
      fallback_ids_(bytes),
      whole_(static_cast<size_t>(tokens.size())) {
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    single_ids_[static_cast<size_t>(byte)] = tokens.find({&text, 1});
  }
  find_whole_words();
}

void BytePairEncoder::find_whole_words() {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokens_.size(); ++id) {
    if (!tokens_.has(id)) continue;
    ids.clear();
    merge(tokens_.bytes(id), ids);
    whole_[static_cast<size_t>(id)] = ids.size() == 1;
  }
}

void BytePairEncoder::find_single_bytes() {
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    single_ids_[static_cast<size_t>(byte)] = tokens_.find({&text, 1});
    if (single_ids_[static_cast<size_t>(byte)] < 0)
      throw std::logic_error("BytePairEncoder: a byte is no token");
  }
}

void BytePairEncoder::encode(std::string_view word, std::vector<int32_t>& ids) const {
  const int32_t id = tokens_.find(word);
  if (id >= 0 && whole_[static_cast<size_t>(id)]) {
    ids.push_back(id);
  } else {
    merge(word, ids);
  }
}

void BytePairEncoder::merge(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.size() <= kShortWord) {
    merge_short(word, ids);
  } else {
    merge_long(word, ids);
  }
}

size_t BytePairEncoder::unit_end(std::string_view word, size_t begin) const {
  size_t end = begin + 1;
  while (by_character_ && end < word.size() && (word[end] & 0xC0) == 0x80) ++end;
  return end;
}

int32_t BytePairEncoder::unit_id(std::string_view unit) const {
  return unit.size() == 1 ? single_ids_[static_cast<unsigned char>(unit[0])] : tokens_.find(unit);
}

void BytePairEncoder::push(int32_t id, std::string_view part, std::vector<int32_t>& ids) const {
  if (id >= 0) {
    ids.push_back(id);
  } else {
    for (const char byte : part) ids.push_back(fallback_ids_[static_cast<unsigned char>(byte)]);
  }
}

PairTable::Merge BytePairEncoder::find(int32_t left, int32_t right, std::string_view joined) const {
  if (!by_joined_bytes_) return pairs_.find(left, right);
  const int32_t id = tokens_.find(joined);
  if (id < 0) return {};
  return {ranks_.empty() ? static_cast<uint32_t>(id) : ranks_[static_cast<size_t>(id)], id};
}

void BytePairEncoder::merge_short(std::string_view word, std::vector<int32_t>& ids) const {
  struct Piece {
    uint32_t begin, end;
    int32_t id;
    PairTable::Merge with_next;
  };
  std::array<Piece, kShortWord> pieces;
  size_t count = 0;
  const auto update = [&](size_t i) {
    pieces[i].with_next = i + 1 < count
                              ? find(pieces[i].id, pieces[i + 1].id,
                                     word.substr(pieces[i].begin, pieces[i + 1].end - pieces[i].begin))
                              : PairTable::Merge{};
  };
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = unit_end(word, begin);
    pieces[count++] = {static_cast<uint32_t>(begin),
                       static_cast<uint32_t>(end),
                       unit_id(word.substr(begin, end - begin)),
                       {}};
    begin = end;
  }
  for (size_t i = 0; i < count; ++i) update(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pieces[i].with_next.rank < pieces[best].with_next.rank) best = i;
    }
    if (pieces[best].with_next.rank == kNoMerge) break;
    pieces[best].id = pieces[best].with_next.id;
    pieces[best].end = pieces[best + 1].end;
    std::copy(pieces.begin() + best + 2, pieces.begin() + count, pieces.begin() + best + 1);
    --count;
    update(best);
    if (best > 0) update(best - 1);
  }
  for (size_t i = 0; i < count; ++i) {
    push(pieces[i].id, word.substr(pieces[i].begin, pieces[i].end - pieces[i].begin), ids);
  }
}

PairTable::Merge BytePairEncoder::merge_of(std::string_view word, const std::vector<Part>& parts,
                                           uint32_t left) const {
  const uint32_t right = parts[left].next;
  if (right == kNone) return {};
  return find(parts[left].id, parts[right].id,
              word.substr(parts[left].begin, parts[right].end - parts[left].begin));
}

void BytePairEncoder::merge_long(std::string_view word, std::vector<int32_t>& ids) const {
  struct Candidate {
    uint32_t rank, left;
    int32_t left_id, right_id;  // stale once the parts have other ids: they only ever grow
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Part> parts;
  parts.reserve(word.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](uint32_t left) {
    const PairTable::Merge merge = merge_of(word, parts, left);
    if (merge.rank != kNoMerge) queue.push({merge.rank, left, parts[left].id, parts[parts[left].next].id});
  };
  for (size_t begin = 0; begin < word.size();) {
    const size_t end = unit_end(word, begin);
    const auto place = static_cast<uint32_t>(parts.size());
    parts.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), place == 0 ? kNone : place - 1,
                     end < word.size() ? place + 1 : kNone, unit_id(word.substr(begin, end - begin))});
    begin = end;
  }
  for (uint32_t i = 0; i < parts.size(); ++i) propose(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Part& left = parts[best.left];
    if (left.id != best.left_id || left.next == kNone || parts[left.next].id != best.right_id) continue;
    const uint32_t gone = left.next;
    left.id = merge_of(word, parts, best.left).id;
    left.end = parts[gone].end;
    left.next = parts[gone].next;
    parts[gone].id = kGone;
    if (left.next != kNone) parts[left.next].previous = best.left;
    propose(best.left);
    if (left.previous != kNone) propose(left.previous);
  }
  for (uint32_t i = 0; i != kNone; i = parts[i].next) {
    push(parts[i].id, word.substr(parts[i].begin, parts[i].end - parts[i].begin), ids);
  }
}

}  // namespace satune
