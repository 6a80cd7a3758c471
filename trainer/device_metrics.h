// What a step's metrics say about the device: model FLOPs utilisation and the card's readings.
#pragma once

#include <c10/core/Device.h>

#include <optional>

#include "trainer/card.h"
#include "trainer/metrics.h"
#include "trainer/run_plan.h"

namespace satune {

class DeviceMetrics {
 public:
  /// Of a run of `plan` over `world_size` devices like `device`. The plan must outlive it.
  DeviceMetrics(const RunPlan& plan, const at::Device& device, int64_t world_size,
                const CardLibraries& libraries = {});

  /// Sets the device_* fields to what this process's card says, and mfu from metrics.tokens_per_s (all ranks
  /// together) and the step's mean document length, which is a lower bound of the length that its attention
  /// work amounts to. mfu is of the 16-bit peak: unset in fp32 runs. A CPU has neither peak nor readings.
  void fill(StepMetrics& metrics, double mean_document_length);

 private:
  const RunPlan& plan_;
  std::optional<Card> card_;
  std::optional<double> peak_flops_;  ///< of all devices
};

}  // namespace satune
