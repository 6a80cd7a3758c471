#include "data/token_cache_folder.h"

#include <gmock/gmock.h>
#include <sys/wait.h>

#include "data/files/file_lock.h"
#include "data/token_cache.h"
#include "tests/data/data_fixtures.h"

namespace satune {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class TokenCacheFolderTest : public DataTest {
 protected:
  /// A file of that many bytes, last used so many hours ago.
  fs::path file(const std::string& name, size_t bytes, int hours_ago) const {
    const fs::path path = write(name, std::string(bytes, 'x'));
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(hours_ago));
    return path;
  }
  static constexpr int kDay = 24;
};

TEST_F(TokenCacheFolderTest, RemovesWhatNobodyUsedForLong) {
  const fs::path old = file("tokens-a.bin", 10, 31 * kDay);
  file("tokens-b.bin", 10, 29 * kDay);
  EXPECT_THAT(sweep_token_caches(folder_, {}), ElementsAre(old));
  EXPECT_THAT(sweep_token_caches(folder_, {}), IsEmpty());
  EXPECT_TRUE(fs::exists(folder_ / "tokens-b.bin"));
}

TEST_F(TokenCacheFolderTest, RemovesTheLongestUnusedUntilTheRestFits) {
  const fs::path second = file("tokens-a.bin", 40, 3), newest = file("tokens-b.bin", 40, 1),
                 oldest = file("tokens-c.bin", 40, 5);
  EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 120}), IsEmpty());
  EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 119}), ElementsAre(oldest));
  EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 39}), ElementsAre(second, newest));
}

TEST_F(TokenCacheFolderTest, TouchesNothingOfOthers) {
  file("notes.txt", 1000, 400 * kDay);
  file("tokens-a.bin.bak", 1000, 400 * kDay);
  file(".tokens-b.bin.tmp-17", 1000, 2);  // being written, perhaps by another machine
  fs::create_directories(folder_ / "tokens-d.bin");
  const fs::path abandoned = file(".tokens-c.bin.tmp-17", 1000, 25);
  EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 0}), ElementsAre(abandoned));
  EXPECT_THAT(sweep_token_caches(folder_ / "none", {}), IsEmpty());
}

TEST_F(TokenCacheFolderTest, AFileInUseStaysAndCounts) {
  const fs::path used = file("tokens-a.bin", 60, 40 * kDay), other = file("tokens-b.bin", 60, 1);
  {
    const auto lock = FileLock::try_lock(used, FileLock::Kind::kShared);
    ASSERT_TRUE(lock);
    EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 100}), ElementsAre(other));
    EXPECT_TRUE(fs::exists(used));
  }
  EXPECT_THAT(sweep_token_caches(folder_, {.bytes = 100}), ElementsAre(used));
}

TEST_F(TokenCacheFolderTest, AFileThatAnotherProcessUsesStays) {
  const fs::path used = file("tokens-a.bin", 60, 40 * kDay);
  int ready[2], done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = FileLock::try_lock(used, FileLock::Kind::kShared);
    char byte = lock ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1 || ::read(done[0], &byte, 1) != 1) ::_exit(1);
    ::_exit(0);
  }
  char byte = 'n';
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_THAT(sweep_token_caches(folder_, {}), IsEmpty());
  ASSERT_EQ(::write(done[1], &byte, 1), 1);
  ::waitpid(child, nullptr, 0);
  EXPECT_THAT(sweep_token_caches(folder_, {}), ElementsAre(used));
}

/// Token caches of three data files in one folder that has room for two of them.
class SharedTokenCachesTest : public TokenCacheFolderTest {
 protected:
  std::shared_ptr<const TokenCache> open(const std::string& output) const {
    const fs::path data = write(output + ".json", R"([{"instruction":"a","output":")" + output + "\"}]");
    return TokenCache::open_or_build(
        data, FakeTokenizer(), PromptTemplate::load("alpaca"),
        {.columns = {}, .directory = folder_ / "cache", .threads = 1, .limits = limits_});
  }
  fs::path file_of(const TokenCache& cache) const {
    return token_cache_file(folder_ / "cache", cache.fingerprint());
  }
  void set_age(const fs::path& path, int hours) const {
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(hours));
  }

  TokenCacheLimits limits_;
};

TEST_F(SharedTokenCachesTest, AddingOneSweepsTheOthers) {
  const fs::path first = file_of(*open("one")), second = file_of(*open("two"));
  set_age(first, 9);
  set_age(second, 5);
  limits_.bytes = fs::file_size(first) + fs::file_size(second);
  EXPECT_TRUE(open("one")->reused());  // that is a use: now the second is the longest unused
  const fs::path third = file_of(*open("tri"));
  EXPECT_TRUE(fs::exists(first));
  EXPECT_FALSE(fs::exists(second));
  EXPECT_TRUE(fs::exists(third));
}

TEST_F(SharedTokenCachesTest, AnOpenOneSurvivesEverySweep) {
  const auto kept = open("one");
  set_age(file_of(*kept), 24 * 90);
  limits_ = {.unused = std::chrono::seconds(0), .bytes = 0};
  const auto newest = open("two");
  EXPECT_TRUE(fs::exists(file_of(*kept)));
  EXPECT_TRUE(fs::exists(file_of(*newest)));
  EXPECT_EQ(newest->note(), "");
}

TEST_F(SharedTokenCachesTest, OneBeingRemovedIsBuiltAgain) {
  const fs::path path = file_of(*open("one"));
  const auto sweeper = FileLock::try_lock(path, FileLock::Kind::kExclusive);
  ASSERT_TRUE(sweeper);
  EXPECT_FALSE(FileLock::try_lock(path, FileLock::Kind::kShared));
  fs::remove(path);
  EXPECT_FALSE(sweeper->is_at(path));
  const auto cache = open("one");
  EXPECT_FALSE(cache->reused());
  EXPECT_EQ(cache->note(), "");
  EXPECT_EQ(cache->records(), 1);
  EXPECT_FALSE(sweeper->is_at(path));
}

}  // namespace
}  // namespace satune
