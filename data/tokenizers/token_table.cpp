#include "data/tokenizers/token_table.h"

#include <cstring>
#include <utility>

#include "data/files/hash.h"

namespace satune {
namespace {

uint64_t mix(uint64_t h) {
  h *= kGoldenGamma;
  return h ^ h >> 32;
}

}  // namespace

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t h = bytes.size();
  const char* data = bytes.data();
  size_t left = bytes.size();
  uint64_t word = 0;
  for (; left > 8; left -= 8, data += 8) {
    std::memcpy(&word, data, 8);
    h = mix(h ^ word);
  }
  word = 0;
  std::memcpy(&word, data, left);
  return mix(mix(h ^ word));
}

bool TokenTable::add_hidden(int32_t id, std::string_view bytes) {
  if (id < 0 || bytes.empty() || has(id)) return false;
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  entries_[id] = {static_cast<uint32_t>(blob_.size()), static_cast<uint32_t>(bytes.size())};
  blob_ += bytes;
  return true;
}

bool TokenTable::add(int32_t id, std::string_view bytes) {
  if (find(bytes) >= 0 || !add_hidden(id, bytes)) return false;
  if (2 * (used_ + 1) > slots_.size()) grow();
  const uint64_t hash = hash_bytes(bytes);
  insert({static_cast<uint32_t>(hash >> 32), id, entries_[id]}, hash);
  ++used_;
  return true;
}

int32_t TokenTable::find(std::string_view bytes) const {
  const uint64_t hash = hash_bytes(bytes);
  const uint32_t tag = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & (slots_.size() - 1); slots_[i].id >= 0; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].tag == tag && view(slots_[i].entry) == bytes) return slots_[i].id;
  }
  return -1;
}

std::string_view TokenTable::bytes(int32_t id) const {
  return has(id) ? view(entries_[id]) : std::string_view();
}

void TokenTable::insert(Slot slot, uint64_t hash) {
  size_t i = hash & (slots_.size() - 1);
  while (slots_[i].id >= 0) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = slot;
}

void TokenTable::grow() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
  for (const Slot& slot : old) {
    if (slot.id >= 0) insert(slot, hash_bytes(view(slot.entry)));
  }
}

}  // namespace satune
