#include "trainer/attention_choice.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "data/files/error.h"
#include "model/ops/attention_cudnn.h"
#include "model/ops/cuda_stream.h"
#include "trainer/compute_types.h"

namespace satune {
namespace {

// Cards before 9.0 have no graphs of packed documents, those of 12.x no backward of them.
constexpr int kFirstWithCudnn = 90, kFirstWithoutBackward = 120;
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

/// Five times and more what LibTorch's kernels of the CPU leave: 4e-3, 5e-4, 3e-7. Those of cards make fp32
/// products of three in TF32, which has not been measured.
double tolerance_of(at::ScalarType type, bool on_card) {
  if (type == at::kBFloat16) return 2e-2;
  if (type == at::kHalf) return 3e-3;
  if (type == at::kFloat) return on_card ? 1e-4 : 1e-5;
  return 1e-10;
}

bool has_cudnn(const at::Device& card, bool in_fixed_order) {
  const int capability = cuda::compute_capability(card);
  return capability >= kFirstWithCudnn && (in_fixed_order || capability < kFirstWithoutBackward);
}

/// Full rows, and five packed documents, so that a graph of cuDNN with eight slots has three empty ones.
const std::vector<int64_t> kTrials[] = {{0, kTrialTokens, 2 * kTrialTokens}, {0, 100, 140, 141, 228, 256}};

AttentionChoice make_choice(AttentionKernel kernel, bool in_fixed_order, int64_t full_row) {
  AttentionChoice choice{kernel, in_fixed_order, full_row};
  if (kernel == AttentionKernel::kCudnn) choice.cudnn = std::make_shared<CudnnAttention>();
  return choice;
}

/// Output, d_q, d_k, d_v.
std::array<at::Tensor, 4> attend(const AttentionChoice& choice, const at::Tensor& qkv_NHD,
                                 const at::Tensor& d_NHD, int64_t kv, const std::vector<int64_t>& starts) {
  const int64_t heads = d_NHD.size(1);
  const at::Tensor q = qkv_NHD.narrow(1, 0, heads), k = qkv_NHD.narrow(1, heads, kv),
                   v = qkv_NHD.narrow(1, heads + kv, kv);
  const AttentionOut out = attention_forward(q, k, v, starts, {choice});
  const at::Tensor d_qkv = at::empty_like(qkv_NHD);
  std::array<at::Tensor, 4> results = {out.out_NHD, d_qkv.narrow(1, 0, heads), d_qkv.narrow(1, heads, kv),
                                       d_qkv.narrow(1, heads + kv, kv)};
  attention_backward(d_NHD, q, k, v, out, starts, results[1], results[2], results[3]);
  return results;
}

/// Why a kernel is not to be used; empty when it agrees with the reference.
std::string fault_of(AttentionKernel kernel, at::ScalarType type, bool on_card,
                     const std::function<double(AttentionKernel)>& error) {
  try {
    const double found = error(kernel);
    if (found <= tolerance_of(type, on_card)) return "";  // NaN is not
    return fmt::format("results {:.1e} off the reference, expected {:.0e} at most", found,
                       tolerance_of(type, on_card));
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
  if (kernel == AttentionKernel::kCudnn && !is_half(type))
    throw bad_input("attn_implementation", "\"cudnn\" with precision fp32",
                    "\"auto\", \"flash\" or \"eager\", or precision bf16 or fp16");
}

}  // namespace

void check_attention(const Settings& settings, const at::Device& device) {
  if (settings.attn_implementation == AttnImplementation::kAuto) return;
  refuse_what_is_not_there(kernel_of(settings.attn_implementation), weight_type(settings.precision), device);
}

double attention_error(AttentionKernel kernel, bool in_fixed_order, const ModelConfig& config,
                       at::ScalarType type, at::Device device) {
  const int64_t heads = config.num_attention_heads, kv = config.num_key_value_heads, D = config.head_dim;
  at::Generator random = at::detail::createCPUGenerator(/*seed=*/42);
  const auto numbers = [&](int64_t count) {
    return at::randn({2 * kTrialTokens, count, D}, random, at::kFloat).to(device, type);
  };
  const at::Tensor qkv = numbers(heads + 2 * kv), d = numbers(heads);
  const at::Tensor wide_qkv = qkv.to(at::kDouble), wide_d = d.to(at::kDouble);
  const AttentionChoice choice = make_choice(kernel, in_fixed_order, kTrialTokens);
  double largest = 0;
  for (const std::vector<int64_t>& starts : kTrials) {
    const auto found = attend(choice, qkv, d, kv, starts);
    const auto expected = attend({AttentionKernel::kEager}, wide_qkv, wide_d, kv, starts);
    for (size_t i = 0; i < found.size(); ++i) {
      const at::Tensor difference = found[i].to(at::kDouble) - expected[i];
      const double error = (difference.norm() / expected[i].norm()).item<double>();
      if (std::isnan(error)) return error;
      largest = std::max(largest, error);
    }
  }
  return largest;
}

WantedAttention wanted_attention(const Settings& settings) {
  return {settings.attn_implementation, settings.deterministic, settings.max_length};
}

ChosenAttention choose_attention(const WantedAttention& wanted, const ModelConfig& config,
                                 at::ScalarType type, at::Device device,
                                 const std::function<double(AttentionKernel)>& given_error) {
  const bool fixed = wanted.deterministic;
  const auto error = given_error ? given_error : [&](AttentionKernel kernel) {
    return attention_error(kernel, fixed, config, type, device);
  };
  const auto chosen = [&](AttentionKernel kernel, std::string reason, bool first = true) {
    const bool mixed = kernel == AttentionKernel::kCudnn && fixed;
    return ChosenAttention{make_choice(kernel, fixed, wanted.full_row),
                           mixed ? "cudnn, backward flash" : name_of(kernel), std::move(reason), first};
  };
  if (wanted.implementation != AttnImplementation::kAuto) {
    const AttentionKernel kernel = kernel_of(wanted.implementation);
    refuse_what_is_not_there(kernel, type, device);
    const std::string fault = fault_of(kernel, type, !device.is_cpu(), error);
    if (fault.empty()) return chosen(kernel, "as configured");
    throw EnvironmentError(
        fmt::format("attn_implementation: found that \"{}\" fails its trial ({}), expected a kernel that "
                    "agrees with \"eager\"",
                    name_of(kernel), fault));
  }
  if (device.is_cpu()) return chosen(AttentionKernel::kFlash, "on the CPU");
  std::vector<AttentionKernel> candidates = {AttentionKernel::kFlash};
  if (is_half(type) && (given_error || has_cudnn(device, fixed)))
    candidates.insert(candidates.begin(), AttentionKernel::kCudnn);
  std::string faults;
  for (const AttentionKernel kernel : candidates) {
    const std::string fault = fault_of(kernel, type, !device.is_cpu(), error);
    if (fault.empty() && faults.empty())
      return chosen(kernel, fixed ? "agrees with eager; deterministic" : "agrees with eager");
    if (fault.empty()) return chosen(kernel, faults, /*first=*/false);
    faults += fmt::format("{}{}: {}", faults.empty() ? "" : "; ", name_of(kernel), fault);
  }
  return chosen(AttentionKernel::kEager, faults, /*first=*/false);
}

ChosenAttention choose_attention(const Settings& settings, const ModelConfig& config,
                                 const at::Device& device) {
  ChosenAttention chosen =
      choose_attention(wanted_attention(settings), config, weight_type(settings.precision), device);
  if (!device.is_cpu()) at::accelerator::emptyCache();
  return chosen;
}

void log_attention(const ChosenAttention& chosen) {
  spdlog::log(chosen.first ? spdlog::level::info : spdlog::level::warn, "attention: {} ({})", chosen.name,
              chosen.reason);
}

}  // namespace satune
