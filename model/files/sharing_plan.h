// Which layer's attention weights does layer i use? (Shared Attention, arXiv 2407.12866)
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace satune {

enum class AnchorRule {
  kBefore,  ///< every listed layer reuses; the anchor is the nearest unlisted layer before the run
  kFirst,   ///< the first layer of each run computes, the rest reuse (the paper's Algorithm 1)
};

/// Immutable. Layers are 0-based.
class SharingPlan {
 public:
  /// No sharing: every layer is its own source.
  explicit SharingPlan(int num_layers = 0);

  /// Parses "23-26" or "10-12,23-26" (inclusive ranges and single layers, ascending order not required).
  /// Throws BadInput naming the layer for: a layer out of range, a layer listed twice, a reversed range,
  /// an empty list, `before` with a run that begins at layer 0, `first` with a run of one layer.
  /// Ranges that touch ("10-12,13-15") are two runs: under `first` 10 and 13 compute; under `before` the
  /// anchor of both is 9 (13's nearest unlisted layer).
  /// `key`: the option or setting that the list came with, for the message.
  static SharingPlan parse(std::string_view layers, AnchorRule rule, int num_layers,
                           std::string_view key = "sharing layers");

  int num_layers() const { return static_cast<int>(source_.size()); }
  /// The layer whose Q and K layer i attends with; i itself where it computes its own.
  int source(int layer) const { return source_[layer]; }
  bool is_shared(int layer) const { return source_[layer] != layer; }
  /// Whether another layer uses this one's Q and K.
  bool is_anchor(int layer) const { return !users(layer).empty(); }
  /// Layers that use `layer`'s Q and K, ascending, without itself.
  std::vector<int> users(int layer) const;
  bool empty() const;  ///< no shared layer at all
  int num_shared() const;

  /// The text that parse() was given, normalised ("23-26"); "" without sharing.
  const std::string& layers_text() const { return layers_text_; }
  AnchorRule rule() const { return rule_; }

  /// Two plans are equal when every layer has the same source, however they were written.
  bool operator==(const SharingPlan& other) const { return source_ == other.source_; }

 private:
  std::vector<int> source_;
  std::string layers_text_;
  AnchorRule rule_ = AnchorRule::kBefore;
};

/// "no sharing", or "23-26" with anchor "before": for messages.
std::string describe_sharing(const SharingPlan& plan);

std::string_view to_string(AnchorRule rule);
/// Throws BadInput for anything but "before" and "first".
AnchorRule parse_anchor_rule(std::string_view text);

}  // namespace satune
