#include "data/files/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <random>

#include "data/files/error.h"
#include "tests/files/faulty_file_ops.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

uint32_t crc_of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

TEST(AtomicFile, NothingIsVisibleBeforeCommit) {
  const TemporaryDirectory folder;
  const fs::path path = folder.write("f", "old");
  {
    AtomicFile file(path);
    file.write("new ");
    file.write("content");
    EXPECT_EQ(content_of(path), "old");
    EXPECT_EQ(file.bytes_written(), 11u);
    EXPECT_EQ(file.checksum(), crc_of("new content"));
    file.commit();
    EXPECT_EQ(content_of(path), "new content");
  }
  EXPECT_THAT(entries_of(folder.path()), ElementsAre("f"));
}

TEST(AtomicFile, WithoutCommitNothingStays) {
  const TemporaryDirectory folder;
  { AtomicFile(folder / "f").write("half"); }
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

TEST(AtomicFile, TheTemporaryNameCarriesTheProcess) {
  const TemporaryDirectory folder;
  const AtomicFile file(folder / "f");
  EXPECT_THAT(entries_of(folder.path()), ElementsAre(fmt::format(".f.tmp-{}", ::getpid())));
}

TEST(AtomicFile, ARelativePathWorks) {
  const TemporaryDirectory folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_file_atomic("f", "x");
  fs::current_path(before);
  EXPECT_EQ(content_of(folder / "f"), "x");
}

// Every system call of a save fails once, with and without a file that was there before.
TEST(AtomicFile, AFailureAtAnyCallLeavesOldOrNewWhole) {
  for (const int error : {ENOSPC, EIO}) {
    for (const bool previous : {false, true}) {
      std::vector<std::string> failed;
      for (int call = 1;; ++call) {
        const TemporaryDirectory folder;
        const fs::path path = folder / "f";
        if (previous) folder.write("f", "old");
        FaultyFileOps ops(call, error);
        std::string message;
        try {
          AtomicFile file(path, ops);
          file.write("new ");
          file.write("content");
          file.commit();
        } catch (const EnvironmentError& bad) {
          message = bad.what();
        }
        if (ops.calls() < call) break;  // nothing failed: all calls have been tried
        failed.push_back(ops.failed());
        EXPECT_EQ(content_of(path), ops.renamed() ? "new content" : previous ? "old" : "") << ops.failed();
        EXPECT_EQ(entries_of(folder.path()).size(), ops.renamed() || previous ? 1u : 0u) << ops.failed();
        if (!ops.renamed()) {
          EXPECT_THAT(message, StartsWith(path.string() + ": cannot be "));
        }
        // All but the close of the folder, which tells nothing, is reported.
        if (call < ops.calls() || ops.failed() != "close") {
          EXPECT_THAT(message, HasSubstr(std::strerror(error)));
        }
      }
      EXPECT_THAT(failed, ElementsAre("open", "write", "write", "fsync", "close", "rename", "open", "fsync",
                                      "close"));
    }
  }
}

TEST(AtomicFile, AfterAFailureItCannotBeCommitted) {
  const TemporaryDirectory folder;
  FaultyFileOps ops(3, ENOSPC);
  AtomicFile file(folder / "f", ops);
  file.write("one");
  EXPECT_THROW(file.write("two"), EnvironmentError);
  EXPECT_THROW(file.write("three"), std::logic_error);
  EXPECT_THROW(file.commit(), std::logic_error);
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

TEST(AtomicFile, ShortWritesAndInterruptionsAreRetried) {
  const TemporaryDirectory folder;
  InterruptedFileOps ops;
  AtomicFile file(folder / "f", ops);
  file.write("a text of several short writes");
  EXPECT_EQ(file.checksum(), crc_of("a text of several short writes"));
  file.commit();
  EXPECT_EQ(content_of(folder / "f"), "a text of several short writes");
}

TEST(AtomicFile, AFullDiskIsNamed) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "needs /dev/full";
  // The real kernel's ENOSPC, through the real calls.
  struct FullDisk : FileOps {
    int open(const char*, int flags, unsigned mode) override {
      return FileOps::open("/dev/full", flags, mode);
    }
  } ops;
  const TemporaryDirectory folder;
  AtomicFile file(folder / "f", ops);
  try {
    file.write("x");
    FAIL() << "written";
  } catch (const EnvironmentError& error) {
    EXPECT_EQ(error.what(), (folder / "f").string() + ": cannot be written: No space left on device");
  }
}

TEST(AtomicFile, AMissingFolderIsAnError) {
  const TemporaryDirectory folder;
  EXPECT_THROW(AtomicFile(folder / "none/f"), EnvironmentError);
}

TEST(AtomicDirectory, AppearsWholeOrNotAtAll) {
  const TemporaryDirectory folder;
  {
    AtomicDirectory directory(folder / "a/b/out/");
    EXPECT_EQ(directory.path().filename().string(), fmt::format(".out.tmp-{}", ::getpid()));
    write_file_atomic(directory.path() / "f", "x");
    fs::create_directory(directory.path() / "sub");
    write_file_atomic(directory.path() / "sub" / "g", "y");
    EXPECT_FALSE(fs::exists(folder / "a/b/out"));
    directory.commit();
  }
  EXPECT_EQ(content_of(folder / "a/b/out/f"), "x");
  EXPECT_EQ(content_of(folder / "a/b/out/sub/g"), "y");
  EXPECT_THAT(entries_of(folder / "a/b"), ElementsAre("out"));
  {
    const AtomicDirectory dropped(folder / "other");
    write_file_atomic(dropped.path() / "f", "x");
  }
  EXPECT_THAT(entries_of(folder.path()), ElementsAre("a"));
}

TEST(AtomicDirectory, TakesAnEmptyTargetAndRefusesAFullOne) {
  const TemporaryDirectory folder;
  fs::create_directory(folder / "empty");
  AtomicDirectory directory(folder / "empty");
  write_file_atomic(directory.path() / "f", "x");
  directory.commit();
  EXPECT_EQ(content_of(folder / "empty/f"), "x");
  EXPECT_THROW(AtomicDirectory(folder / "empty"), BadInput);
  EXPECT_THROW(AtomicDirectory(folder / "empty/f"), BadInput);
  EXPECT_THAT(entries_of(folder.path()), ElementsAre("empty"));
}

TEST(AtomicDirectory, AFailureAtAnyCallLeavesNothingHalfWritten) {
  for (const int error : {ENOSPC, EIO}) {
    std::vector<std::string> failed;
    for (int call = 1;; ++call) {
      const TemporaryDirectory folder;
      FaultyFileOps ops(call, error);
      bool thrown = false;
      try {
        AtomicDirectory directory(folder / "new/out", ops);
        write_file_atomic(directory.path() / "f", "content");
        directory.commit();
      } catch (const EnvironmentError& bad) {
        EXPECT_THAT(bad.what(), HasSubstr(std::strerror(error)));
        thrown = true;
      }
      if (ops.calls() < call) break;
      failed.push_back(ops.failed());
      EXPECT_TRUE(thrown || ops.failed() == "close") << ops.failed();
      EXPECT_EQ(content_of(folder / "new/out/f"), ops.renamed() ? "content" : "");
      if (!ops.renamed() && fs::exists(folder / "new")) {
        EXPECT_THAT(entries_of(folder / "new"), IsEmpty());
      }
    }
    // mkdir parent and its parent; mkdir; open, fsync, close of the file; the same of the folder; rename;
    // parent.
    EXPECT_THAT(failed, ElementsAre("mkdir", "open", "fsync", "close", "mkdir", "open", "fsync", "close",
                                    "open", "fsync", "close", "rename", "open", "fsync", "close"));
  }
}

TEST(AtomicDirectory, AnEarlierOneStaysUntilItIsReplaced) {
  for (int call = 1;; ++call) {
    const TemporaryDirectory folder;
    folder.write("out/old", "x");
    FaultyFileOps ops(call, ENOSPC);
    try {
      AtomicDirectory directory(folder / "out", ops, AtomicDirectory::Existing::kReplace);
      write_file_atomic(directory.path() / "new", "y");
      EXPECT_THAT(entries_of(folder / "out"), ElementsAre("old"));
      directory.commit();
    } catch (const EnvironmentError&) {
    }
    EXPECT_THAT(entries_of(folder / "out"), ElementsAre(ops.renamed() ? "new" : "old")) << ops.failed();
    if (ops.calls() < call) {
      EXPECT_THAT(entries_of(folder.path()), ElementsAre("out"));
      break;
    }
  }
  const TemporaryDirectory folder;
  folder.write("file", "x");
  EXPECT_THROW(AtomicDirectory(folder / "file", posix_file_ops(), AtomicDirectory::Existing::kReplace),
               BadInput);
}

// NFS and others.
TEST(ReplaceFolder, WhereNamesCannotBeExchanged) {
  class NoExchange : public FileOps {
   public:
    int exchange(const char*, const char*) override {
      errno = EINVAL;
      return -1;
    }
    int rename(const char* from, const char* to) override {
      if (++renames != failing) return FileOps::rename(from, to);
      errno = EIO;
      return -1;
    }
    int renames = 0, failing = 0;
  };
  for (const int failing : {0, 1, 2}) {
    const TemporaryDirectory folder;
    folder.write("made/new", "y");
    folder.write("out/old", "x");
    NoExchange ops;
    ops.failing = failing;
    if (failing == 0) {
      const fs::path replaced = replace_folder(folder / "made", folder / "out", ops);
      EXPECT_THAT(entries_of(folder / "out"), ElementsAre("new"));
      EXPECT_EQ(replaced, folder / fmt::format(".out-old.tmp-{}", ::getpid()));
      EXPECT_THAT(entries_of(replaced), ElementsAre("old"));
    } else {
      EXPECT_THROW(replace_folder(folder / "made", folder / "out", ops), EnvironmentError);
      EXPECT_THAT(entries_of(folder / "out"), ElementsAre("old")) << failing;
      EXPECT_THAT(entries_of(folder / "made"), ElementsAre("new")) << failing;
    }
  }
}

TEST(AtomicDirectory, ALeftoverOfADeadProcessWithOurIdIsReplaced) {
  const TemporaryDirectory folder;
  folder.write(fmt::format(".out.tmp-{}/old", ::getpid()), "x");
  AtomicDirectory directory(folder / "out");
  directory.commit();
  EXPECT_THAT(entries_of(folder / "out"), IsEmpty());
}

// A process beside this one that lives as long as the object.
class LivingProcess {
 public:
  LivingProcess() : id_(::fork()) {
    while (id_ == 0) ::pause();
  }
  ~LivingProcess() {
    ::kill(id_, SIGKILL);
    ::waitpid(id_, nullptr, 0);
  }
  LivingProcess(const LivingProcess&) = delete;
  LivingProcess& operator=(const LivingProcess&) = delete;
  pid_t id() const { return id_; }

 private:
  const pid_t id_;
};

// A process that is gone for sure: ours, waited for.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(StaleTemporaries, OnlyThoseOfDeadProcessesGo) {
  const TemporaryDirectory folder;
  const pid_t dead = dead_process();
  folder.write(fmt::format(".step-1.tmp-{}/rank0", dead), "x");
  folder.write(fmt::format(".state.json.tmp-{}", dead), "x");
  const LivingProcess other;
  const std::string living = fmt::format(".step-2.tmp-{}", other.id());
  folder.write(living, "x");
  for (const char* name :
       {"step-3.tmp-1", ".hidden", ".tmp-x", ".a.tmp-", ".a.tmp-12x", ".a.tmp--4", "keep"}) {
    folder.write(name, "x");
  }
  remove_stale_temporaries(folder.path());
  EXPECT_THAT(entries_of(folder.path()),
              ::testing::UnorderedElementsAre(living, "step-3.tmp-1", ".hidden", ".tmp-x", ".a.tmp-",
                                              ".a.tmp-12x", ".a.tmp--4", "keep"));
  remove_stale_temporaries(folder / "no such folder");
}

// In a container the ids begin anew, so a living process may have the id of a dead one's leftover.
TEST(StaleTemporaries, OlderThanTheProcessOfThatIdIsStale) {
  const TemporaryDirectory folder;
  const LivingProcess other;
  const fs::path old = folder.write(fmt::format(".f.tmp-{}", other.id()), "x");
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(24 * 365));
  remove_stale_temporaries(folder.path());
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

// A run that is the first process of its container each time, and is started again at once.
TEST(StaleTemporaries, OneWithTheIdOfThisProcessIsStale) {
  const TemporaryDirectory folder;
  folder.write(fmt::format(".step-1.tmp-{}/rank0", ::getpid()), "x");
  remove_stale_temporaries(folder.path());
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

TEST(Temporaries, AllGoWhereNobodyWrites) {
  const TemporaryDirectory folder;
  const LivingProcess other;
  folder.write(fmt::format(".step-1.tmp-{}/rank0", other.id()), "x");
  folder.write("step-2/rank0", "x");
  remove_temporaries(folder.path());
  EXPECT_THAT(entries_of(folder.path()), ::testing::ElementsAre("step-2"));
}

// RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
TEST(Crc32c, KnownVectors) {
  std::string ascending(32, '\0'), descending(32, '\0');
  for (int i = 0; i < 32; ++i) {
    ascending[i] = static_cast<char>(i);
    descending[i] = static_cast<char>(31 - i);
  }
  const std::pair<std::string, uint32_t> vectors[] = {{"", 0},
                                                      {"123456789", 0xE3069283},
                                                      {std::string(32, '\0'), 0x8A9136AA},
                                                      {std::string(32, '\xFF'), 0x62A8AB43},
                                                      {ascending, 0x46DD794E},
                                                      {descending, 0x113FDB5C}};
  for (const auto& [text, expected] : vectors) {
    const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
    EXPECT_EQ(crc32c(bytes), expected);
    EXPECT_EQ(crc32c_portable(bytes), expected);
  }
}

TEST(Crc32c, ContinuesAndAgreesWithThePortableOne) {
  std::mt19937_64 random(7);
  std::vector<std::byte> bytes(1000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const std::span<const std::byte> all(bytes);
  for (size_t size = 0; size <= all.size(); size += 1 + random() % 17) {
    const size_t offset = random() % 8 % (all.size() - size + 1);
    const auto part = all.subspan(offset, size);
    const size_t cut = size == 0 ? 0 : random() % size;
    EXPECT_EQ(crc32c(part), crc32c_portable(part));
    EXPECT_EQ(crc32c(part.subspan(cut), crc32c(part.first(cut))), crc32c(part));
  }
}

TEST(FreeDiskBytes, AsksTheNearestExistingParent) {
  const TemporaryDirectory folder;
  EXPECT_GT(free_disk_bytes(folder / "not/there/yet"), 0u);
  EXPECT_GT(free_disk_bytes("not there yet"), 0u);
}

}  // namespace
}  // namespace satune
