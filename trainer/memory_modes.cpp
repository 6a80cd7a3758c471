#include "trainer/memory_modes.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/device_rates.h"
#include "trainer/progress.h"

namespace satune {
namespace {

constexpr int64_t kShortestRow = 128;  // tokens: shorter ones are not proposed

/// `run` with other settings, which must outlive it. Its largest micro-batch shrinks as they do.
PlannedRun with_settings(const PlannedRun& run, const Settings& settings) {
  const int64_t before = run.settings.per_device_train_batch_size * run.settings.max_length;
  const int64_t now = settings.per_device_train_batch_size * settings.max_length;
  PlannedRun changed = {
      settings,    run.config, run.table, run.trained_mask, std::max<int64_t>(1, run.tokens * now / before),
      run.on_card, run.threads};
  if (settings.attn_implementation == run.settings.attn_implementation) changed.attention = run.attention;
  return changed;
}

std::string size(int64_t bytes) {
  return format_bytes(static_cast<double>(bytes));
}

/// Settings that are changed one after another until the run fits; each step stands on those before.
class Proposal {
 public:
  Proposal(const PlannedRun& run, const Sharded& sharded, int64_t available)
      : run_(run), sharded_(sharded), available_(available), settings_(run.settings) {}

  /// Applies `change` and notes `text`; fits now?
  template <typename Change>
  bool fits_with(std::string text, Change&& change) {
    change(settings_, sharded_);
    texts_.push_back(std::move(text));
    need_ = plan_memory(with_settings(run_, settings_), sharded_, available_).total();
    return need_ <= available_;
  }
  /// The same, where it saves a part of the need that is worth a change; left out otherwise.
  template <typename Change>
  bool fits_with_less(std::string text, Change&& change) {
    Settings changed = settings_;
    change(changed);
    const int64_t before = plan_memory(with_settings(run_, settings_), sharded_, available_).total();
    const int64_t after = plan_memory(with_settings(run_, changed), sharded_, available_).total();
    if (before - after < before / 100) return false;
    return fits_with(std::move(text), [&](Settings& settings, Sharded&) { change(settings); });
  }
  /// The same, where that is enough; left out otherwise.
  template <typename Change>
  bool fits_at_once_with(std::string text, Change&& change) {
    Settings changed = settings_;
    change(changed);
    if (plan_memory(with_settings(run_, changed), sharded_, available_).total() > available_) return false;
    return fits_with(std::move(text), [&](Settings& settings, Sharded&) { change(settings); });
  }
  /// Undoes what has turned out to be of no use: `key` is as the run has it again.
  template <typename Restore>
  void take_back(std::string_view key, Restore&& restore) {
    restore(settings_, run_.settings);
    std::erase_if(texts_, [&](const std::string& text) { return text.starts_with(key); });
  }
  const Settings& settings() const { return settings_; }
  const Sharded& sharded() const { return sharded_; }
  /// "gradient_checkpointing=true optimizer_offload=cpu", one setting of each name: the last.
  std::string text() const {
    std::string text;
    for (size_t i = 0; i < texts_.size(); ++i) {
      const std::string key = texts_[i].substr(0, texts_[i].find('=') + 1);
      const bool replaced = std::any_of(texts_.begin() + static_cast<std::ptrdiff_t>(i) + 1, texts_.end(),
                                        [&](const std::string& later) { return later.starts_with(key); });
      if (!replaced) text += (text.empty() ? "" : " ") + texts_[i];
    }
    return text;
  }
  int64_t need() const { return need_; }

 private:
  const PlannedRun& run_;
  Sharded sharded_;
  int64_t available_;
  Settings settings_;
  std::vector<std::string> texts_;
  int64_t need_ = 0;
};

/// What the proposal may do about the optimizer's state.
enum class Optimizer { kOffload, kShrink };

/// Without the matrices of "eager".
bool flash_attention_fits(Proposal& proposal) {
  if (proposal.settings().attn_implementation != AttnImplementation::kEager) return false;
  return proposal.fits_with_less("attn_implementation=auto", [](Settings& changed) {
    changed.attn_implementation = AttnImplementation::kAuto;
  });
}

/// Masters in half the memory: the same numbers.
bool split_masters_fit(Proposal& proposal) {
  const Settings& settings = proposal.settings();
  if (settings.precision != Precision::kBf16 || settings.master_weights != MasterWeights::kFp32) return false;
  return proposal.fits_with_less("master_weights=split",
                                 [](Settings& changed) { changed.master_weights = MasterWeights::kSplit; });
}

/// Forms that round stochastically.
bool smaller_state_fits(Proposal& proposal) {
  if (proposal.settings().optimizer_moments != OptimizerMoments::k8Bit &&
      proposal.fits_with_less("optimizer_moments=8bit",
                              [](Settings& changed) { changed.optimizer_moments = OptimizerMoments::k8Bit; }))
    return true;
  if (proposal.settings().precision != Precision::kBf16) return false;
  return proposal.fits_with_less("master_weights=none",
                                 [](Settings& changed) { changed.master_weights = MasterWeights::kNone; });
}

bool checkpointing_fits(Proposal& proposal) {
  const Settings& settings = proposal.settings();
  const auto policy = [&](std::string_view text, Checkpointing value) {
    return proposal.fits_with(fmt::format("gradient_checkpointing={}", text),
                              [&](Settings& changed, Sharded&) { changed.gradient_checkpointing = value; });
  };
  if (settings.gradient_checkpointing == Checkpointing::kOff &&
      policy("selective", Checkpointing::kSelective))
    return true;
  return settings.gradient_checkpointing == Checkpointing::kSelective && policy("true", Checkpointing::kOn);
}

/// Costs nothing where the copies are faster than the layers, as those of layer inputs are.
void offload_activations(Settings& settings) {
  settings.activation_offloading = true;
}

bool fewer_tokens_fit(Proposal& proposal) {
  const Settings& settings = proposal.settings();
  while (settings.per_device_train_batch_size > 1) {
    const int64_t rows = settings.per_device_train_batch_size / 2;
    if (proposal.fits_with(fmt::format("per_device_train_batch_size={}", rows),
                           [&](Settings& changed, Sharded&) { changed.per_device_train_batch_size = rows; }))
      return true;
  }
  while (settings.max_length >= 2 * kShortestRow) {
    const int64_t length = settings.max_length / 2;
    if (proposal.fits_with(fmt::format("max_length={}", length),
                           [&](Settings& changed, Sharded&) { changed.max_length = length; }))
      return true;
  }
  return false;
}

/// Changes in the order of what they cost. True where the run fits at last.
bool propose(Proposal& proposal, bool on_card, Optimizer optimizer) {
  if (flash_attention_fits(proposal)) return true;
  for (int64_t stage = proposal.sharded().stage + 1;
       proposal.sharded().world_size > 1 && stage <= kHighestStage; ++stage) {
    if (proposal.fits_with(fmt::format("zero_stage={}", stage), [&](Settings& changed, Sharded& sharded) {
          changed.zero_stage = stage;
          sharded.stage = stage;
        }))
      return true;
  }
  if (split_masters_fit(proposal) || checkpointing_fits(proposal)) return true;
  const bool may_move = on_card && !proposal.settings().activation_offloading;
  constexpr const char* kMove = "activation_offloading=true";
  if (may_move && proposal.fits_at_once_with(kMove, offload_activations)) return true;
  const bool can_offload = on_card && proposal.settings().optimizer_offload == OptimizerOffload::kNone;
  if (can_offload && optimizer == Optimizer::kOffload) {
    // Masters that leave the card take nothing there.
    proposal.take_back("master_weights=", [](Settings& changed, const Settings& original) {
      changed.master_weights = original.master_weights;
    });
    if (proposal.fits_with("optimizer_offload=cpu", [](Settings& changed, Sharded&) {
          changed.optimizer_offload = OptimizerOffload::kCpu;
        }))
      return true;
  }
  if (smaller_state_fits(proposal)) return true;
  if (may_move && proposal.fits_with_less(kMove, offload_activations)) return true;
  return fewer_tokens_fit(proposal);
}

}  // namespace

Settings in_mode(const Settings& settings, size_t mode) {
  constexpr std::array<Checkpointing, 3> policies = {Checkpointing::kOff, Checkpointing::kSelective,
                                                     Checkpointing::kOn};
  const std::string_view name = kMemoryModes.at(mode);
  Settings changed = settings;
  changed.gradient_checkpointing = policies.at(std::min(mode, policies.size() - 1));
  changed.optimizer_offload = name.ends_with("offload") ? OptimizerOffload::kCpu : OptimizerOffload::kNone;
  const bool bf16 = settings.precision == Precision::kBf16;
  if (bf16 && name.ends_with("split") && settings.master_weights == MasterWeights::kFp32)
    changed.master_weights = MasterWeights::kSplit;
  if (name.ends_with("8bit")) {
    changed.optimizer_moments = OptimizerMoments::k8Bit;
    if (bf16) changed.master_weights = MasterWeights::kNone;
  }
  return changed;
}

std::array<PolicyPlan, 3> plan_policies(const PlannedRun& run, const Sharded& sharded, int64_t available) {
  const auto plan = [&](Checkpointing policy) {
    Settings settings = run.settings;
    settings.gradient_checkpointing = policy;
    return plan_memory(with_settings(run, settings), sharded, available);
  };
  return {{{"false", plan(Checkpointing::kOff)},
           {"selective", plan(Checkpointing::kSelective)},
           {"true", plan(Checkpointing::kOn)}}};
}

std::vector<CardFit> fitting_modes(const PlannedRun& run, int64_t world_size, int64_t shard_group) {
  const int64_t stages = world_size == 1 ? 1 : kHighestStage + 1;
  // Memory does not depend on the card, since no mode is "auto".
  std::array<std::array<int64_t, kHighestStage + 1>, kMemoryModes.size()> needs{};
  for (size_t mode = 0; mode < kMemoryModes.size(); ++mode) {
    const Settings settings = in_mode(run.settings, mode);
    PlannedRun changed = with_settings(run, settings);
    changed.on_card = true;
    for (int64_t stage = 0; stage < stages; ++stage) {
      needs[mode][static_cast<size_t>(stage)] =
          plan_memory(changed, {world_size, stage, shard_group}, 0).total();
    }
  }
  std::vector<CardFit> fits;
  for (const CardSize& card : common_cards()) {
    CardFit fit{std::string(card.name), card.memory_bytes, {}};
    for (size_t mode = 0; mode < kMemoryModes.size(); ++mode) {
      for (int64_t stage = 0; stage < stages && !fit.lowest_stage[mode]; ++stage) {
        if (needs[mode][static_cast<size_t>(stage)] <= card.memory_bytes) fit.lowest_stage[mode] = stage;
      }
    }
    fits.push_back(std::move(fit));
  }
  return fits;
}

std::string why_it_will_not_fit(const PlannedRun& run, const Sharded& sharded, int64_t available) {
  const int64_t need = plan_memory(run, sharded, available).total();
  if (need <= available) return "";
  const std::string found = fmt::format("this run needs {}{}, {} available", size(need),
                                        sharded.world_size > 1 ? " a rank" : "", size(available));
  Proposal proposal(run, sharded, available);
  if (propose(proposal, run.on_card, Optimizer::kOffload)) {
    std::string text = fmt::format("{}; with {} it needs {}", found, proposal.text(), size(proposal.need()));
    Proposal small(run, sharded, available);
    if (proposal.settings().optimizer_offload != run.settings.optimizer_offload &&
        propose(small, run.on_card, Optimizer::kShrink)) {
      text += fmt::format(", or without offload, with {}, {}", small.text(), size(small.need()));
    }
    return text;
  }
  // Ranks on the CPU share a machine's memory.
  const std::string takes =
      fmt::format("it takes more {} or a smaller model", run.on_card ? "ranks" : "machines");
  if (proposal.text().empty()) return fmt::format("{}; {}", found, takes);
  return fmt::format("{}; even with {} it needs {}: {}", found, proposal.text(), size(proposal.need()),
                     takes);
}

}  // namespace satune
