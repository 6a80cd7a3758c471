// Token ids and their bytes, both ways.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

/// A fast 64-bit hash, the same in every build; strings that differ in one place never share it.
uint64_t hash_bytes(std::string_view bytes);

/// Byte strings with ids >= 0; holes between ids are allowed. Looking up is read-only and thread-safe.
class TokenTable {
 public:
  TokenTable() : slots_(1024) {}

  bool has(int32_t id) const { return id >= 0 && id < size() && entries_[id].length > 0; }
  /// Adds a token that find() yields. False when its id or its bytes are already taken.
  bool add(int32_t id, std::string_view bytes);
  /// Adds a token that only bytes() knows (a special token). False when the id is already taken.
  bool add_hidden(int32_t id, std::string_view bytes);

  /// Id of exactly these bytes, or -1.
  int32_t find(std::string_view bytes) const;
  /// The bytes of a token, empty for an id without one.
  std::string_view bytes(int32_t id) const;
  /// Highest id + 1.
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }

 private:
  struct Entry {
    uint32_t offset = 0, length = 0;
  };
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;
    Entry entry;
  };

  std::string_view view(Entry entry) const { return {blob_.data() + entry.offset, entry.length}; }
  void insert(Slot slot, uint64_t hash);
  void grow();

  std::string blob_;
  std::vector<Entry> entries_;  // by id
  std::vector<Slot> slots_;     // open addressing, a power of two, at most half full
  size_t used_ = 0;
};

}  // namespace satune
