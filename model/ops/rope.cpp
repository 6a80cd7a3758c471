#include "model/ops/rope.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <numbers>

#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/rope_kernels.h"

namespace satune {

at::Tensor rope_inverse_frequencies(const ModelConfig& config) {
  const int64_t dim = config.head_dim;
  // The same fp32 operations as transformers, so that the table's bits agree.
  const at::Tensor exponent = at::arange(0, dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(dim);
  const at::Tensor inv_freq = at::reciprocal(at::pow(at::Scalar(config.rope_theta), exponent));
  if (!config.rope_scaling) return inv_freq;
  const Llama3RopeScaling& scaling = *config.rope_scaling;
  const double context = static_cast<double>(scaling.original_max_position_embeddings);
  const double low_wavelength = context / scaling.low_freq_factor;
  const double high_wavelength = context / scaling.high_freq_factor;
  const at::Tensor wavelength = 2.0 * std::numbers::pi / inv_freq;
  at::Tensor scaled = at::where(wavelength > low_wavelength, inv_freq / scaling.factor, inv_freq);
  const at::Tensor smooth =
      (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor blend = (1 - smooth) * scaled / scaling.factor + smooth * scaled;
  const at::Tensor medium = (wavelength >= high_wavelength).logical_and(wavelength <= low_wavelength);
  return at::where(medium, blend, scaled);
}

RopeTable make_rope_table(const ModelConfig& config, int64_t length, at::ScalarType type, at::Device device) {
  const at::Tensor positions = at::arange(0, length, at::kLong).to(at::kFloat);
  const at::Tensor angles =
      (positions.unsqueeze(1) * rope_inverse_frequencies(config).unsqueeze(0)).to(statistics_type(type));
  return {angles.cos().contiguous().to(device), angles.sin().contiguous().to(device)};
}

void rope_apply(const at::Tensor& x_NHD, const at::Tensor& positions_N, const RopeTable& table,
                bool inverse) {
  const int64_t heads = x_NHD.size(1), dim = x_NHD.size(2);
  TORCH_CHECK(x_NHD.stride(2) == 1 && x_NHD.stride(1) == dim && dim % 2 == 0);
  if (cuda::on_card(x_NHD)) {
    cuda::rope_apply(cuda::element_of(x_NHD), x_NHD.mutable_data_ptr(), x_NHD.stride(0),
                     positions_N.const_data_ptr<int64_t>(), table.cos_PD2.const_data_ptr(),
                     table.sin_PD2.const_data_ptr(), x_NHD.size(0), heads, dim, inverse ? -1 : 1,
                     cuda::current_stream(x_NHD));
    return;
  }
  dispatch_floating(x_NHD.scalar_type(), [&]<typename T>() {
    using A = kernels::accumulate_t<T>;
    at::parallel_for(0, x_NHD.size(0), rows_per_task(heads * dim), [&](int64_t begin, int64_t end) {
      kernels::rope_apply<T>(x_NHD.mutable_data_ptr<T>(), x_NHD.stride(0),
                             positions_N.const_data_ptr<int64_t>(), table.cos_PD2.const_data_ptr<A>(),
                             table.sin_PD2.const_data_ptr<A>(), begin, end, heads, dim, inverse ? -1 : 1);
    });
  });
}

}  // namespace satune
