#include "trainer/device_metrics.h"

#include "model/flops.h"

namespace satune {

DeviceMetrics::DeviceMetrics(const RunPlan& plan, const at::Device& device, int64_t world_size,
                             const CardLibraries& libraries)
    : plan_(plan) {
  if (!device.is_cuda()) return;
  card_.emplace(device.has_index() ? device.index() : 0, libraries);
  if (plan.settings().precision == Precision::kFp32) return;
  if (const auto peak = peak_half_flops(card_->name())) {
    peak_flops_ = *peak * static_cast<double>(world_size);
  }
}

void DeviceMetrics::fill(StepMetrics& metrics, double mean_document_length) {
  if (!card_) return;
  const CardReading& reading = card_->read();
  metrics.device_power_w = reading.power_w;
  metrics.device_temperature_c = reading.temperature_c;
  metrics.device_utilisation = reading.utilisation_percent;
  if (!peak_flops_) return;
  const double flops_per_token =
      training_flops_per_token(plan_.config(), plan_.table(), plan_.trained_mask(), mean_document_length);
  metrics.mfu = flops_per_token * metrics.tokens_per_s / *peak_flops_;
}

}  // namespace satune
