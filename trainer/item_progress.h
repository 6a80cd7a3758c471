// What a person sees of an evaluation: a bar on a terminal, a plain line now and then otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace satune {

class ItemProgress {
 public:
  /// Of `total` items, `done` of which were there before.
  /// Writes nothing unless `shown`: of several ranks, one does.
  ItemProgress(std::string name, int64_t total, int64_t done, bool shown = true, std::FILE* out = stderr);
  ~ItemProgress();  ///< ends the bar's line
  ItemProgress(const ItemProgress&) = delete;
  ItemProgress& operator=(const ItemProgress&) = delete;

  void item(int64_t tokens);

 private:
  void draw(double seconds);

  std::string name_;
  int64_t total_, before_, done_, tokens_ = 0;
  std::FILE* out_;
  bool shown_, terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

/// "hellaswag  [#####.....] 5021/10042  18.4k tok/s  0:42 left"
std::string item_bar(const std::string& name, int64_t done, int64_t total, double tokens_per_second,
                     double seconds_left);

}  // namespace satune
