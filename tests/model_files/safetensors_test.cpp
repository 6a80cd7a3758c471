#include "model/files/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "data/files/error.h"
#include "data/files/json.h"
#include "tests/files/faulty_file_ops.h"
#include "tests/model_files/raw_safetensors.h"
#include "tests/realdata.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// What the reader says of these bytes; every message must name the file and be one line.
std::string error_of_bytes(std::string_view bytes) {
  const TemporaryDirectory folder;
  const std::filesystem::path path = folder.write("m.safetensors", bytes);
  try {
    SafetensorsFile{path};
  } catch (const BadInput& error) {
    const std::string message = error.what();
    EXPECT_THAT(message, StartsWith(path.string()));
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  return "accepted";
}

std::string error_of(std::string_view header, size_t data_bytes) {
  return error_of_bytes(raw_safetensors(header, data_bytes));
}

// One tensor "t" with the given fields, over 8 bytes of data.
std::string error_of_tensor(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return error_of(
      fmt::format(R"({{"t":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets), 8);
}

constexpr std::string_view kGood = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST(SafetensorsFile, ReadsTensorsAndMetadata) {
  const TemporaryDirectory folder;
  const SafetensorsFile file(folder.write(
      "m.safetensors",
      raw_safetensors(
          R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[4,8]},)"
          R"("a":{"data_offsets":[0,4],"dtype":"I32","shape":[1]}})",
          8)));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().size(), 2u);
  const StoredTensor* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->name, "b");
  EXPECT_EQ(b->dtype, "BF16");
  EXPECT_THAT(b->shape, ElementsAre(1, 2));
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(b->bytes.data()), b->bytes.size()), "efgh");
  EXPECT_EQ(file.find("a")->bytes.size(), 4u);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(SafetensorsFile, AcceptsScalarsEmptyTensorsWhitespaceAndAnyOrder) {
  EXPECT_EQ(error_of(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4), "accepted");
  EXPECT_EQ(error_of(R"({"e":{"dtype":"F32","shape":[2,0],"data_offsets":[0,0]}})", 0), "accepted");
  // Empty tensors may lie anywhere between others, several at one place.
  EXPECT_EQ(
      error_of(R"({"z":{"dtype":"U8","shape":[0],"data_offsets":[2,2]},"e":{"dtype":"U8","shape":[0,3],)"
               R"("data_offsets":[2,2]},"b":{"dtype":"U8","shape":[3],"data_offsets":[2,5]},)"
               R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
               5),
      "accepted");
  EXPECT_EQ(error_of(" \n\t" + std::string(kGood) + " \r\n  ", 8), "accepted");
  EXPECT_EQ(error_of(R"({"t":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"},"__metadata__":{}})", 8),
            "accepted");
  EXPECT_EQ(error_of("{}", 0), "accepted");
  EXPECT_EQ(error_of(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "accepted");
  // Sub-byte types, where they fill whole bytes.
  EXPECT_EQ(error_of_tensor("\"F4\"", "[4,4]", "[0,8]"), "accepted");
  EXPECT_THAT(error_of_tensor("\"F4\"", "[5,3]", "[0,8]"), HasSubstr("fills whole bytes"));
}

TEST(SafetensorsFile, RefusesFilesThatEndTooEarly) {
  EXPECT_THAT(error_of_bytes(""), HasSubstr("found an empty file"));
  EXPECT_THAT(error_of_bytes("1234567"), HasSubstr("found a file of 7 bytes"));
  const std::string good = raw_safetensors(kGood, 8);
  for (size_t size = 8; size < good.size(); ++size) {
    EXPECT_NE(error_of_bytes(std::string_view(good).substr(0, size)), "accepted") << size;
  }
  EXPECT_THAT(error_of_bytes(std::string_view(good).substr(0, 20)),
              HasSubstr("found a header length of 54 in a file of 20 bytes"));
  // Two bytes missing.
  EXPECT_THAT(error_of(kGood, 6), HasSubstr("tensor \"t\": found bytes [0, 8) of 6 bytes of data"));
}

// rival: header length unchecked.
TEST(SafetensorsFile, RefusesHeaderLengthsBeyondTheLimit) {
  std::string file = raw_safetensors(kGood, 8);
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_THAT(error_of_bytes(file), HasSubstr(fmt::format("found a header length of {}", length)));
  }
  const uint64_t zero = 0;
  std::memcpy(file.data(), &zero, 8);
  EXPECT_NE(error_of_bytes(file), "accepted");
}

TEST(SafetensorsFile, TheLimitOfTheHeaderItselfIsAccepted) {
  const TemporaryDirectory folder;
  std::string header(kGood);
  header.resize(100'000'000, ' ');
  const SafetensorsFile file(folder.write("m.safetensors", raw_safetensors(header, 8)));
  EXPECT_EQ(file.tensors().size(), 1u);
}

TEST(SafetensorsFile, RefusesHeadersThatAreNotJson) {
  for (const char* header :
       {"", " ", "x", "{", "[]", "null", "\"t\"", "{}{}", "{} x", "{'t':1}", "{\"t\":1,}"}) {
    EXPECT_NE(error_of(header, 0), "accepted") << header;
  }
  EXPECT_THAT(error_of("{\"\xFF\":{}}", 0), HasSubstr("UTF-8"));
  EXPECT_THAT(error_of("{\"\xC0\xAF\":{}}", 0), HasSubstr("UTF-8"));
  EXPECT_THAT(error_of("\xEF\xBB\xBF{}", 0), HasSubstr("byte order mark"));
  EXPECT_NE(error_of(std::string_view("{}\0\0", 4), 0), "accepted");
  EXPECT_NE(error_of(std::string(100'000, '['), 0), "accepted");
}

TEST(SafetensorsFile, RefusesDuplicateKeys) {
  EXPECT_THAT(error_of(R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                       R"("t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                       8),
              HasSubstr("found the key \"t\" twice"));
  EXPECT_THAT(error_of(R"({"t":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}})", 8),
              HasSubstr("found the key \"dtype\" twice"));
}

TEST(SafetensorsFile, RefusesTrailingBytesHolesAndOverlap) {
  EXPECT_THAT(error_of(kGood, 9),
              AllOf(HasSubstr("found 9 bytes of data, expected 8"), HasSubstr("trailing")));
  EXPECT_THAT(error_of("{}", 1), HasSubstr("found 1 bytes of data, expected 0"));
  const auto two = [](std::string_view a, std::string_view b) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                       R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                       a, b);
  };
  EXPECT_EQ(error_of(two("[4,8]", "[0,4]"), 8), "accepted");
  EXPECT_THAT(error_of(two("[0,4]", "[5,9]"), 9),
              HasSubstr("tensor \"b\": found bytes [5, 9) after a hole, expected data from byte 4 on"));
  EXPECT_THAT(error_of(two("[1,5]", "[5,9]"), 9), HasSubstr("tensor \"a\": found bytes [1, 5) after a hole"));
  EXPECT_THAT(error_of(two("[0,4]", "[3,7]"), 7),
              HasSubstr("tensor \"b\": found bytes [3, 7) over tensor \"a\" at bytes [0, 4)"));
  // Several tensors at one range.
  EXPECT_THAT(error_of(two("[0,4]", "[0,4]"), 4),
              HasSubstr("tensor \"b\": found bytes [0, 4) over tensor \"a\" at bytes [0, 4)"));
}

// rival: offsets unchecked.
TEST(SafetensorsFile, RefusesBadOffsets) {
  EXPECT_THAT(error_of_tensor("\"F32\"", "[2]", "[8,0]"),
              HasSubstr("tensor \"t\": found bytes [8, 0), expected a begin that is not after the end"));
  for (const char* offsets : {"[-8,0]", "[0,8.0]", "[0.0,8]", "[0]", "[]", "[0,8,8]", "8", "null", "\"0,8\"",
                              "{\"0\":8}", "[0,\"8\"]", "[0,1e1]", "[false,8]", "[0,18446744073709551616]"}) {
    EXPECT_THAT(error_of_tensor("\"F32\"", "[2]", offsets), HasSubstr("tensor \"t\": found data_offsets "))
        << offsets;
  }
  EXPECT_THAT(error_of_tensor("\"F32\"", "[2]", "[18446744073709551608,18446744073709551615]"),
              HasSubstr("tensor \"t\": found bytes [18446744073709551608,"));
  // The right size at the end of the number range.
  EXPECT_THAT(error_of_tensor("\"U8\"", "[7]", "[18446744073709551608,18446744073709551615]"),
              HasSubstr("of 8 bytes of data"));
}

TEST(SafetensorsFile, RefusesSizesThatDoNotMatch) {
  EXPECT_THAT(
      error_of_tensor("\"F32\"", "[3]", "[0,8]"),
      HasSubstr("tensor \"t\": found bytes [0, 8) of data, expected 12 bytes for dtype F32 and shape [3]"));
  EXPECT_THAT(error_of_tensor("\"F64\"", "[2]", "[0,8]"), HasSubstr("expected 16 bytes"));
  EXPECT_THAT(error_of_tensor("\"F32\"", "[2,0]", "[0,8]"), HasSubstr("expected 0 bytes"));
  EXPECT_THAT(error_of_tensor("\"F32\"", "[]", "[0,8]"), HasSubstr("expected 4 bytes"));
}

TEST(SafetensorsFile, RefusesShapesThatOverflow) {
  for (const char* shape :
       {"[2,18446744073709551614]", "[4294967296,4294967296]", "[9223372036854775807,3]",
        "[4611686018427387904,2,2]", "[2305843009213693953]", "[4294967296,4294967296,0]"}) {
    EXPECT_THAT(error_of_tensor("\"F32\"", shape, "[0,8]"),
                AllOf(HasSubstr("tensor \"t\": found "), HasSubstr("does not overflow")))
        << shape;
  }
  for (const char* shape : {"[-1]", "[1.0]", "[\"2\"]", "[null]", "[[2]]", "2", "null", "\"2\"", "{}",
                            "[1e3]", "[18446744073709551616]"}) {
    EXPECT_THAT(error_of_tensor("\"F32\"", shape, "[0,8]"), HasSubstr("tensor \"t\": found ")) << shape;
  }
}

TEST(SafetensorsFile, RefusesUnknownDTypesAndFields) {
  EXPECT_THAT(error_of_tensor("\"F31\"", "[2]", "[0,8]"),
              HasSubstr("tensor \"t\": found the unknown dtype \"F31\""));
  EXPECT_THAT(error_of_tensor("\"f32\"", "[2]", "[0,8]"), HasSubstr("unknown dtype"));
  EXPECT_THAT(error_of_tensor("32", "[2]", "[0,8]"), HasSubstr("tensor \"t\": found as dtype the number 32"));
  EXPECT_THAT(error_of(R"({"t":[]})", 0), HasSubstr("tensor \"t\": found an empty array"));
  EXPECT_THAT(error_of(R"({"t":{"shape":[2],"data_offsets":[0,8]}})", 8),
              HasSubstr("tensor \"t\": found no dtype"));
  EXPECT_THAT(error_of(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", 8), HasSubstr("found no shape"));
  EXPECT_THAT(error_of(R"({"t":{"dtype":"F32","shape":[2]}})", 8), HasSubstr("found no data_offsets"));
}

TEST(SafetensorsFile, RefusesMetadataThatIsNoStrings) {
  EXPECT_THAT(error_of(R"({"__metadata__":{"format":1}})", 0),
              HasSubstr("__metadata__: key \"format\": found the number 1, expected a string"));
  EXPECT_THAT(error_of(R"({"__metadata__":{"a":null}})", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(error_of(R"({"__metadata__":"pt"})", 0), HasSubstr("__metadata__: found the string \"pt\""));
  EXPECT_THAT(error_of(R"({"__metadata__":null})", 0), HasSubstr("__metadata__: found null"));
}

TEST(SafetensorsFile, NamesInMessagesStayOnOneLine) {
  EXPECT_THAT(error_of(R"({"a\nb\u0000":{}})", 0), HasSubstr(R"(tensor "a\nb\u0000")"));
}

TEST(SafetensorsFile, ReadsARealFile) {
  SATUNE_REALDATA_OR_SKIP(path, "stories260K_hf/model.safetensors");
  const SafetensorsFile file(path);
  EXPECT_THAT(file.find("model.embed_tokens.weight")->shape, ElementsAre(512, 64));
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST(SafetensorsWriter, WhatItWritesIsReadBack) {
  const TemporaryDirectory folder;
  const std::string data = "0123456789abcdef";
  const auto bytes = std::as_bytes(std::span(data.data(), data.size()));
  {
    SafetensorsWriter writer(folder / "m.safetensors",
                             {{"b", "F32", {1, 2}}, {"e", "F16", {0}}, {"a", "I64", {}}});
    // Pieces need not follow the tensors.
    writer.write(bytes.first(3));
    writer.write(bytes.subspan(3));
    EXPECT_THAT(entries_of(folder.path()), ElementsAre(StartsWith(".m.safetensors.tmp-")));
    writer.commit();
  }
  const SafetensorsFile file(folder / "m.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_THAT(file.find("b")->shape, ElementsAre(1, 2));
  EXPECT_THAT(file.find("a")->shape, IsEmpty());
  EXPECT_EQ(std::memcmp(file.find("b")->bytes.data(), data.data(), 8), 0);
  EXPECT_EQ(std::memcmp(file.find("a")->bytes.data(), data.data() + 8, 8), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.find("b")->bytes.data()) % 8, 0u);
}

TEST(SafetensorsWriter, TheDataIsAlignedWhateverTheNames) {
  const TemporaryDirectory folder;
  for (size_t length = 1; length <= 9; ++length) {
    SafetensorsWriter writer(folder / "m.safetensors", {{std::string(length, 'n'), "U8", {1}}}, {});
    EXPECT_EQ(writer.bytes_written() % 8, 0u);
    const std::byte byte{7};
    writer.write({&byte, 1});
    writer.commit();
    const SafetensorsFile file(folder / "m.safetensors");
    EXPECT_EQ(file.tensors().begin()->second.bytes[0], byte);
    EXPECT_TRUE(file.metadata().empty());
  }
}

TEST(SafetensorsWriter, WrongAmountsOfDataAreOurMistake) {
  const TemporaryDirectory folder;
  const std::byte bytes[5] = {};
  {
    SafetensorsWriter writer(folder / "m.safetensors", {{"t", "U8", {4}}});
    writer.write(std::span(bytes).first(3));
    EXPECT_THROW(writer.commit(), std::logic_error);
    EXPECT_THROW(writer.write(std::span(bytes).first(2)), std::logic_error);
  }
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
  using Specs = std::vector<TensorSpec>;
  EXPECT_THROW(SafetensorsWriter(folder / "m", Specs{{"t", "F99", {4}}}), std::logic_error);
  EXPECT_THROW(SafetensorsWriter(folder / "m", Specs{{"t", "U8", {-4}}}), std::logic_error);
  EXPECT_THROW(SafetensorsWriter(folder / "m", Specs{{"t", "U8", {1}}, {"t", "U8", {1}}}), std::logic_error);
  EXPECT_THROW(SafetensorsWriter(folder / "m", Specs{{"__metadata__", "U8", {1}}}), std::logic_error);
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

TEST(SafetensorsWriter, AFullDiskLeavesThePreviousFile) {
  for (int call = 1; call <= 7; ++call) {
    const TemporaryDirectory folder;
    const std::filesystem::path path = folder.write("m.safetensors", raw_safetensors(kGood, 8));
    FaultyFileOps ops(call, ENOSPC);
    const std::byte bytes[4] = {};
    const auto save = [&] {
      SafetensorsWriter writer(path, {{"t", "U8", {4}}}, {}, ops);
      writer.write(bytes);
      writer.commit();
    };
    EXPECT_THROW(save(), EnvironmentError) << call;
    EXPECT_THAT(entries_of(folder.path()), ElementsAre("m.safetensors"));
    EXPECT_EQ(content_of(path), raw_safetensors(kGood, 8));
  }
}

}  // namespace
}  // namespace satune
