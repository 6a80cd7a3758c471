#include "trainer/event_file.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/temporary_directory.h"

namespace satune::event_file_test {
namespace {

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    text += "0123456789abcdef"[static_cast<unsigned char>(c) >> 4];
    text += "0123456789abcdef"[c & 0xF];
  }
  return text;
}

// The expected bytes are those of tensorboard's own RecordWriter and event_pb2 (2.20).
TEST(EventFile, BytesAreTensorBoards) {
  EXPECT_EQ(hex(tfrecord(version_event(1700000000.25))),
            "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9");
  EXPECT_EQ(hex(tfrecord(session_start_event(1700000000.25, 8))),
            "0f000000000000006d532b090900001040fc54d94110083a020801ed76c781");
  EXPECT_EQ(
      hex(tfrecord(scalar_event(1700000000.25, 300, {{"train/loss", 1.5}, {"eval/loss", NAN}}))),
      "33000000000000000ca720560900001040fc54d94110ac022a250a110a0a747261696e2f6c6f7373150000c03f0a100a09"
      "6576616c2f6c6f7373150000c07ff3bc9687");
}

TEST(EventFile, StartsWithItsVersionAndMarksAResume) {
  const TemporaryDirectory folder;
  const auto size_of = [](const EventFile& file) { return content_of(file.path()).size(); };
  const size_t version = tfrecord(version_event(0)).size();
  const EventFile fresh(folder / "tensorboard", 0), resumed(folder / "tensorboard", 7);
  EXPECT_NE(fresh.path(), resumed.path());
  EXPECT_EQ(fresh.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
  EXPECT_EQ(size_of(fresh), version);
  EXPECT_EQ(size_of(resumed), version + tfrecord(session_start_event(0, 8)).size());
}

TEST(EventFile, AppendsOneRecordPerStep) {
  const TemporaryDirectory folder;
  EventFile file(folder.path(), 0);
  const std::string before = content_of(file.path());
  file.write_scalars(3, {{"train/loss", 2.0}});
  const std::string added = content_of(file.path()).substr(before.size());
  EXPECT_EQ(added.size(), tfrecord(scalar_event(0, 3, {{"train/loss", 2.0}})).size());
  EXPECT_NE(added.find("train/loss"), std::string::npos);
}

}  // namespace
}  // namespace satune::event_file_test
