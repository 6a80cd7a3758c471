// What a person sees of an evaluation: a bar on a terminal, a plain line now and then otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace satune {

/// Items that were computed, and the tokens that went through the model for them.
struct ItemCount {
  int64_t items = 0, tokens = 0;
};

class ItemProgress {
 public:
  /// Of `total` items, `done` of which were there before.
  /// Writes nothing unless `shown`: of several ranks, one does.
  ItemProgress(std::string name, int64_t total, int64_t done, bool shown = true, std::FILE* out = stderr);
  ~ItemProgress();  ///< ends the bar's line
  ItemProgress(const ItemProgress&) = delete;
  ItemProgress& operator=(const ItemProgress&) = delete;

  /// Of several ranks: `others` is asked what they have done whenever this one draws; one that shows nothing
  /// hands what it has done itself to `tell`, twice a second at most.
  void with_others(std::function<ItemCount()> others, std::function<void(ItemCount)> tell);

  void item(int64_t tokens);
  /// Draws again when it is time: others may have gone on.
  void look();
  /// All have done all there is, of which the others may not have told the last.
  void all_done() { others_count_.items = total_ - before_ - here_.items; }

 private:
  void draw(double seconds);

  std::string name_;
  int64_t total_, before_;
  ItemCount here_, others_count_;
  std::function<ItemCount()> others_;
  std::function<void(ItemCount)> tell_;
  std::FILE* out_;
  bool shown_, terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

/// "hellaswag  [#####.....] 5021/10042  18.4k tok/s  0:42 left"
std::string item_bar(const std::string& name, int64_t done, int64_t total, double tokens_per_second,
                     double seconds_left);

}  // namespace satune
