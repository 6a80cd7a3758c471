#include "data/files/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <utility>

#include "data/files/error.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::HasSubstr;

std::string open_error(const std::filesystem::path& path) {
  try {
    MappedFile{path};
  } catch (const BadInput& error) {
    return error.what();
  }
  return "accepted";
}

// Bytes of files that this process holds in memory (RssFile of /proc/self/status), in KiB.
long resident_file_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stol(line.substr(8));
  }
  return -1;
}

TEST(MappedFile, ReadsAndMoves) {
  const TemporaryDirectory folder;
  MappedFile file(folder.write("f", std::string_view("a\0b", 3)));
  EXPECT_EQ(file.text(), std::string_view("a\0b", 3));
  MappedFile moved(std::move(file));
  EXPECT_TRUE(file.bytes().empty());
  EXPECT_EQ(moved.text().size(), 3u);
  MappedFile other(folder.write("g", "other"));
  other = std::move(moved);
  EXPECT_EQ(other.text(), std::string_view("a\0b", 3));
  EXPECT_EQ(other.path(), folder / "f");
}

TEST(MappedFile, AnEmptyFileIsAnEmptySpan) {
  const TemporaryDirectory folder;
  const MappedFile file(folder.write("f", ""));
  EXPECT_TRUE(file.bytes().empty());
  file.release(file.bytes());
}

TEST(MappedFile, RefusesWhatIsNoReadableFile) {
  const TemporaryDirectory folder;
  EXPECT_EQ(open_error(folder / "none"),
            (folder / "none").string() + ": found no such file, expected a readable file");
  EXPECT_THAT(open_error(folder.write("f", "x") / "g"), HasSubstr("found no such file"));
  EXPECT_THAT(open_error(folder.path()), HasSubstr("found a directory, expected a file"));
  EXPECT_THAT(open_error("/dev/null"), HasSubstr("found no regular file"));
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(open_error(pipe), HasSubstr("found no regular file"));
}

TEST(MappedFile, ReleasedBytesLeaveMemoryAndCanBeReadAgain) {
  const TemporaryDirectory folder;
  constexpr size_t kSize = 32 << 20;
  const MappedFile file(folder.write("f", std::string(kSize, 'x')));
  const auto count = [&] { return std::count(file.text().begin(), file.text().end(), 'x'); };
  const long before = resident_file_kib();
  ASSERT_EQ(count(), static_cast<long>(kSize));
  const long read = resident_file_kib();
  file.release(file.bytes().subspan(1, kSize - 2));
  const long released = resident_file_kib();
  if (before >= 0) {
    EXPECT_GT(read - before, 24 << 10);
    EXPECT_LT(released - before, 8 << 10);
  }
  EXPECT_EQ(count(), static_cast<long>(kSize));
}

TEST(ReadTextFile, ReadsAllOrSaysWhyNot) {
  const TemporaryDirectory folder;
  const std::string text(200'000, 'y');
  EXPECT_EQ(read_text_file(folder.write("f", text)), text);
  EXPECT_EQ(read_text_file(folder.write("g", "")), "");
  EXPECT_THROW(read_text_file(folder / "none"), BadInput);
  EXPECT_THROW(read_text_file(folder.path()), BadInput);
}

}  // namespace
}  // namespace satune
