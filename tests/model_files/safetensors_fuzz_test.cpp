// Seeded mutations of valid files. Whatever comes out is refused with a BadInput, or is a file whose every
// tensor can be read to its last byte; run under the asan-ubsan preset, out-of-bounds reads end the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <iterator>
#include <random>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/safetensors.h"
#include "tests/model_files/raw_safetensors.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t bound) {
  return bound == 0 ? 0 : random() % bound;
}

std::string valid_file() {
  return raw_safetensors(
      R"({"__metadata__":{"format":"pt"},"model.a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("model.b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
      R"("empty":{"dtype":"I64","shape":[0,7],"data_offsets":[32,32]},)"
      R"("model.c":{"dtype":"U8","shape":[],"data_offsets":[32,33]}} )",
      33);
}

// Pieces that matter to the format, put where they do not belong.
constexpr const char* kPieces[] = {"18446744073709551615",
                                   "-1",
                                   "0",
                                   "1e308",
                                   "[",
                                   "]",
                                   "{",
                                   "}",
                                   ",",
                                   ":",
                                   "\"",
                                   "\\u0000",
                                   "\\",
                                   "null",
                                   "F64",
                                   "[0,0]",
                                   "24",
                                   "9223372036854775807",
                                   "\xFF",
                                   "__metadata__",
                                   "\"model.a\":",
                                   "4294967296",
                                   "\n"};

void mutate(std::string& file, Random& random) {
  const size_t at = below(random, file.size());
  switch (random() % 7) {
    case 0:  // a bit
      if (!file.empty()) file[at] = static_cast<char>(file[at] ^ (1 << random() % 8));
      break;
    case 1:  // a byte
      if (!file.empty()) file[at] = static_cast<char>(random());
      break;
    case 2:  // cut short
      if (random() % 4 == 0) file.resize(at);
      break;
    case 3:  // a piece inserted
      file.insert(at, kPieces[below(random, std::size(kPieces))]);
      break;
    case 4:  // some bytes removed
      file.erase(at, below(random, 12));
      break;
    case 5: {  // some bytes repeated elsewhere
      const std::string piece = file.substr(at, below(random, 60));
      file.insert(below(random, file.size()), piece);
      break;
    }
    default:  // a digit
      for (size_t i = at; i < file.size(); ++i) {
        if (file[i] >= '0' && file[i] <= '9') {
          file[i] = static_cast<char>('0' + random() % 10);
          break;
        }
      }
  }
}

// Makes the length in front fit again, so that mutations reach the checks behind it.
void repair_length(std::string& file) {
  const size_t end = file.rfind('}');
  if (file.size() < 8 || end == std::string::npos || end < 8) return;
  const uint64_t length = end - 7;
  std::memcpy(file.data(), &length, 8);
}

TEST(SafetensorsFuzz, MutatedFilesAreRefusedOrReadable) {
  const TemporaryDirectory folder;
  const std::filesystem::path path = folder / "m.safetensors";
  Random random(20240712);
  int accepted = 0, refused = 0;
  unsigned sum = 0;
  for (int round = 0; round < 6'000; ++round) {
    std::string bytes = valid_file();
    for (size_t i = 1 + random() % 4; i > 0; --i) mutate(bytes, random);
    if (random() % 4 != 0) repair_length(bytes);
    // A new file: some file systems wait for the disk when an old one is cut and written again.
    std::filesystem::remove(path);
    folder.write("m.safetensors", bytes);
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, tensor] : file.tensors()) {
        for (const std::byte byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);
      }
      ++accepted;
    } catch (const BadInput&) {
      ++refused;
    }
  }
  // The mutations must be neither harmless nor hopeless for the test to mean something.
  EXPECT_GT(accepted, 60);
  EXPECT_GT(refused, 3'000);
  EXPECT_GT(sum, 0u);
}

TEST(JsonFuzz, MutatedTextIsRefusedOrParsed) {
  const std::string valid =
      R"({"model_type":"llama","eos_token_id":[1,2],"rope":{"a":1e-05,"b":null,"c":[true,false,{}]},"s":"ä\u00e4\n"})";
  Random random(7);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 50'000; ++round) {
    std::string text = valid;
    for (size_t i = 1 + random() % 3; i > 0; --i) mutate(text, random);
    try {
      const Json json = parse_json(text, "fuzz", {.allow_comments = random() % 2 == 0});
      // What was accepted is written and read back the same.
      EXPECT_EQ(parse_json(write_json(json), "fuzz"), json);
      ++accepted;
    } catch (const BadInput&) {
      ++refused;
    }
  }
  EXPECT_GT(accepted, 1'000);
  EXPECT_GT(refused, 10'000);
}

}  // namespace
}  // namespace satune
