// Which attention kernel a model takes on its device, tried out before a run relies on it.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <functional>
#include <string>

#include "model/files/model_config.h"
#include "model/ops/attention.h"
#include "trainer/settings.h"

namespace satune {

/// The largest relative difference (L2) of a kernel's output and three gradients from those of kEager in
/// fp64, over full rows and over packed documents with the config's heads. Throws what a kernel throws that
/// does not take them.
double attention_error(AttentionKernel kernel, bool in_fixed_order, const ModelConfig& config,
                       at::ScalarType type, at::Device device);

/// Throws BadInput for an attn_implementation that the device does not have, or not of the settings'
/// precision.
void check_attention(const Settings& settings, const at::Device& device);

struct ChosenAttention {
  AttentionChoice choice;
  std::string name;    ///< "cudnn", "cudnn, backward flash", "flash", "eager"
  std::string reason;  ///< for the log; of a card's second or third choice what is wrong with those before
  bool first = true;   ///< choice, or as configured
};

struct WantedAttention {
  AttnImplementation implementation = AttnImplementation::kAuto;
  bool deterministic = true;
  int64_t full_row = 0;  ///< tokens of a row
};

WantedAttention wanted_attention(const Settings& settings);

/// "auto": on the CPU flash; on a card the first of cuDNN (Hopper and newer, 16 bits), flash and eager that
/// agrees with the reference. Another is taken as it stands, if it agrees. Throws BadInput for a kernel that
/// the device or the type does not have, EnvironmentError for one that fails its trial. `error` stands in for
/// the trial.
ChosenAttention choose_attention(const WantedAttention& wanted, const ModelConfig& config,
                                 at::ScalarType type, at::Device device,
                                 const std::function<double(AttentionKernel)>& error = nullptr);

/// What the settings want of a model on a device. A card's memory is given back after the trial. Throws as
/// above.
ChosenAttention choose_attention(const Settings& settings, const ModelConfig& config,
                                 const at::Device& device);

/// A card's second or third choice is a warning.
void log_attention(const ChosenAttention& chosen);

}  // namespace satune
