#include "trainer/attention_choice.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "data/files/error.h"
#include "trainer/compute_types.h"

namespace satune {
namespace {

constexpr int64_t kTrialTokens = 128;  // of each of two documents

const char* name_of(AttentionKernel kernel) {
  switch (kernel) {
    case AttentionKernel::kFlash:
      return "flash";
    case AttentionKernel::kCudnn:
      return "cudnn";
    case AttentionKernel::kEager:
      break;
  }
  return "eager";
}

bool is_half(at::ScalarType type) {
  return type == at::kBFloat16 || type == at::kHalf;
}

/// Five times and more what LibTorch's kernels of the CPU leave: 4e-3, 5e-4, 3e-7.
double tolerance_of(at::ScalarType type) {
  if (type == at::kBFloat16) return 2e-2;
  if (type == at::kHalf) return 3e-3;
  return type == at::kFloat ? 1e-5 : 1e-10;
}

/// Output, d_q, d_k, d_v.
std::array<at::Tensor, 4> attend(AttentionKernel kernel, const at::Tensor& qkv_NHD, const at::Tensor& d_NHD,
                                 int64_t heads, int64_t kv) {
  const std::vector<int64_t> starts = {0, kTrialTokens, 2 * kTrialTokens};
  const at::Tensor q = qkv_NHD.narrow(1, 0, heads), k = qkv_NHD.narrow(1, heads, kv),
                   v = qkv_NHD.narrow(1, heads + kv, kv);
  AttentionOptions options;
  options.choice = {kernel, kTrialTokens};
  const AttentionOut out = attention_forward(q, k, v, starts, options);
  const at::Tensor d_qkv = at::empty_like(qkv_NHD);
  std::array<at::Tensor, 4> results = {out.out_NHD, d_qkv.narrow(1, 0, heads), d_qkv.narrow(1, heads, kv),
                                       d_qkv.narrow(1, heads + kv, kv)};
  attention_backward(d_NHD, q, k, v, out, starts, results[1], results[2], results[3]);
  return results;
}

/// Why a kernel is not to be used; empty when it agrees with the reference.
std::string fault_of(AttentionKernel kernel, at::ScalarType type,
                     const std::function<double(AttentionKernel)>& error) {
  try {
    const double found = error(kernel);
    if (found <= tolerance_of(type)) return "";  // NaN is not
    return fmt::format("results {:.1e} off the reference, expected {:.0e} at most", found,
                       tolerance_of(type));
  } catch (const std::exception& failure) {
    const std::string_view what = failure.what();
    return std::string(what.substr(0, what.find('\n')));
  }
}

AttentionKernel kernel_of(AttnImplementation wanted) {
  if (wanted == AttnImplementation::kCudnn) return AttentionKernel::kCudnn;
  return wanted == AttnImplementation::kEager ? AttentionKernel::kEager : AttentionKernel::kFlash;
}

void refuse_what_is_not_there(AttentionKernel kernel, at::ScalarType type, at::Device device) {
  if (kernel == AttentionKernel::kCudnn && device.is_cpu())
    throw bad_input("attn_implementation", "\"cudnn\" on the CPU", "\"auto\", \"flash\" or \"eager\"");
  if (kernel != AttentionKernel::kEager && !device.is_cpu() && !is_half(type))
    throw bad_input("attn_implementation",
                    fmt::format("\"{}\" with precision fp32 on a card", name_of(kernel)),
                    "\"auto\" or \"eager\", or precision bf16 or fp16");
}

}  // namespace

void check_attention(const Settings& settings, const at::Device& device) {
  if (settings.attn_implementation == AttnImplementation::kAuto) return;
  refuse_what_is_not_there(kernel_of(settings.attn_implementation), weight_type(settings.precision), device);
}

double attention_error(AttentionKernel kernel, const ModelConfig& config, at::ScalarType type,
                       at::Device device) {
  const int64_t heads = config.num_attention_heads, kv = config.num_key_value_heads, D = config.head_dim;
  at::Generator random = at::detail::createCPUGenerator(/*seed=*/42);
  const auto numbers = [&](int64_t count) {
    return at::randn({2 * kTrialTokens, count, D}, random, at::kFloat).to(device, type);
  };
  const at::Tensor qkv = numbers(heads + 2 * kv), d = numbers(heads);
  const auto found = attend(kernel, qkv, d, heads, kv);
  const auto expected = attend(AttentionKernel::kEager, qkv.to(at::kDouble), d.to(at::kDouble), heads, kv);
  double largest = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const at::Tensor difference = found[i].to(at::kDouble) - expected[i];
    const double error = (difference.norm() / expected[i].norm()).item<double>();
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

ChosenAttention choose_attention(AttnImplementation wanted, const ModelConfig& config, at::ScalarType type,
                                 at::Device device, int64_t full_row,
                                 const std::function<double(AttentionKernel)>& given_error) {
  const auto error = given_error ? given_error : [&](AttentionKernel kernel) {
    return attention_error(kernel, config, type, device);
  };
  const auto chosen = [&](AttentionKernel kernel, std::string reason, bool first = true) {
    return ChosenAttention{{kernel, full_row}, name_of(kernel), std::move(reason), first};
  };
  if (wanted != AttnImplementation::kAuto) {
    const AttentionKernel kernel = kernel_of(wanted);
    refuse_what_is_not_there(kernel, type, device);
    const std::string fault = fault_of(kernel, type, error);
    if (fault.empty()) return chosen(kernel, "as configured");
    throw EnvironmentError(
        fmt::format("attn_implementation: found that \"{}\" fails its trial ({}), expected a kernel that "
                    "agrees with \"eager\"",
                    name_of(kernel), fault));
  }
  if (device.is_cpu()) return chosen(AttentionKernel::kFlash, "on the CPU");
  if (!is_half(type)) return chosen(AttentionKernel::kEager, "cards have no other of this precision");
  std::string faults;
  for (const AttentionKernel kernel : {AttentionKernel::kCudnn, AttentionKernel::kFlash}) {
    const std::string fault = fault_of(kernel, type, error);
    if (fault.empty() && faults.empty()) return chosen(kernel, "agrees with eager");
    if (fault.empty()) return chosen(kernel, faults, /*first=*/false);
    faults += fmt::format("{}{}: {}", faults.empty() ? "" : "; ", name_of(kernel), fault);
  }
  return chosen(AttentionKernel::kEager, faults, /*first=*/false);
}

void attend(Llama& model, const Settings& settings, bool log) {
  const Weights& weights = model.weights();
  const ChosenAttention chosen = choose_attention(settings.attn_implementation, model.config(),
                                                  weights.type(), weights.device(), settings.max_length);
  model.attend_by(chosen.choice);
  if (!log) return;
  spdlog::log(chosen.first ? spdlog::level::info : spdlog::level::warn, "attention: {} ({})", chosen.name,
              chosen.reason);
}

}  // namespace satune
