// Reading and writing safetensors files. The reader trusts nothing: every malformed case of the format is
// refused with a BadInput that names file, tensor, found and expected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/atomic_file.h"
#include "data/files/mapped_file.h"

namespace satune {

/// One tensor inside a mapped file; valid as long as the SafetensorsFile lives.
struct StoredTensor {
  std::string name;
  std::string dtype;  ///< "F32", "BF16", "I64", ... as in the header
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

class SafetensorsFile {
 public:
  /// Maps the file and validates its header. Throws BadInput.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  /// By name.
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  const StoredTensor* find(std::string_view name) const;
  /// __metadata__ of the header.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  void release(const StoredTensor& tensor) const { file_.release(tensor.bytes); }

 private:
  MappedFile file_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
};

/// Streams one file: the header is fixed by the specs, then bytes are appended in the order of the specs
/// (any number of write() calls; a tensor may be split). The data start is 8-byte aligned.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorSpec> specs,
                    std::map<std::string, std::string> metadata = {{"format", "pt"}},
                    FileOps& ops = posix_file_ops());
  void write(std::span<const std::byte> bytes);
  /// Checks that exactly the declared bytes were written, fsyncs and renames into place.
  void commit();
  uint64_t bytes_written() const { return file_.bytes_written(); }
  uint32_t checksum() const { return file_.checksum(); }

 private:
  AtomicFile file_;
  uint64_t expected_bytes_ = 0;
};

/// A checkpoint of one file or of shards with an index, opened lazily and validated whole.
class Checkpoint {
 public:
  /// `directory` holds model.safetensors or model.safetensors.index.json. Throws BadInput, with what to run
  /// where only .bin or .pth files are there.
  explicit Checkpoint(const std::filesystem::path& directory);

  /// Names of all tensors, ascending.
  std::vector<std::string> names() const;
  /// nullptr if absent.
  const StoredTensor* find(std::string_view name) const;
  /// The file that holds the tensor.
  const std::filesystem::path& file_of(std::string_view name) const;
  /// Gives the pages of a tensor back to the system.
  void release(const StoredTensor& tensor) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*, std::less<>> owner_;
};

/// 8 hexadecimal digits that two copies of a model have in common, and two that were trained differently
/// have not: the CRC-32C of names, dtypes, shapes and bytes. Of a model of more than `most_bytes` it reads
/// about so many, in blocks of 64 KiB at equal distances and at the start of each tensor.
std::string sampled_fingerprint(const Checkpoint& checkpoint, uint64_t most_bytes = uint64_t{256} << 20);

}  // namespace satune
