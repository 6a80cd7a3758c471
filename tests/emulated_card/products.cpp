// cuBLAS's products whose result has another type than their factors.
#include <ATen/ATen.h>

#include "tests/emulated_card/aten.h"

namespace satune::emulated_card {
namespace {

void check_types(const at::Tensor& a, const at::Tensor& b, at::ScalarType type, const at::Tensor& out) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "factors of ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(type == a.scalar_type() || (type == at::kFloat && at::isReducedFloatingType(a.scalar_type())),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
  TORCH_CHECK(out.scalar_type() == type, "out has ", out.scalar_type(), ", not ", type);
}

at::Tensor& mm_out(const at::Tensor& a, const at::Tensor& b, at::ScalarType type, at::Tensor& out) {
  check_types(a, b, type, out);
  TORCH_CHECK(out.size(0) == a.size(0) && out.size(1) == b.size(1) && a.size(1) == b.size(0), "mm: shapes");
  queue([a = on_host(a), b = on_host(b), to = on_host(out)] {
    to.copy_(at::mm(a.to(at::kFloat), b.to(at::kFloat)));
  });
  return out;
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b, at::ScalarType type) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(type));
  return mm_out(a, b, type, out);
}

at::Tensor& addmm_out(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, at::ScalarType type,
                      const at::Scalar& beta, const at::Scalar& alpha, at::Tensor& out) {
  check_types(a, b, type, out);
  TORCH_CHECK(sum.sizes() == out.sizes() && sum.scalar_type() == type,
              "addmm: the sum has another type or shape");
  queue([=, sum = on_host(sum), a = on_host(a), b = on_host(b), to = on_host(out)] {
    to.copy_(at::addmm(sum, a.to(type), b.to(type), beta, alpha));
  });
  return out;
}

at::Tensor addmm(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, at::ScalarType type,
                 const at::Scalar& beta, const at::Scalar& alpha) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(type));
  return addmm_out(sum, a, b, type, beta, alpha, out);
}

/// By cuBLASLt's rules for one scale a tensor.
at::Tensor& scaled_mm_out(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale_a,
                          const at::Tensor& scale_b, const std::optional<at::Tensor>& bias,
                          const std::optional<at::Tensor>&, std::optional<at::ScalarType> type, bool,
                          at::Tensor& out) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "_scaled_mm: shapes");
  TORCH_CHECK(a.stride(1) == 1 && b.stride(0) == 1, "_scaled_mm: mat1 must be row_major and mat2 col_major");
  TORCH_CHECK(a.size(1) % 16 == 0 && b.size(0) % 16 == 0 && b.size(1) % 16 == 0,
              "_scaled_mm: trailing dimensions must be multiples of 16");
  TORCH_CHECK(at::isFloat8Type(a.scalar_type()) && at::isFloat8Type(b.scalar_type()),
              "_scaled_mm: fp8 factors");
  TORCH_CHECK(a.scalar_type() != at::kFloat8_e5m2 || b.scalar_type() != at::kFloat8_e5m2,
              "_scaled_mm: Multiplication of two Float8_e5m2 matrices is not supported");
  TORCH_CHECK(scale_a.is_cuda() && scale_b.is_cuda() && scale_a.numel() == 1 && scale_b.numel() == 1 &&
                  scale_a.scalar_type() == at::kFloat && scale_b.scalar_type() == at::kFloat,
              "_scaled_mm: scales");
  TORCH_CHECK(!bias && (!type || *type == out.scalar_type()) && out.is_contiguous(), "_scaled_mm: result");
  queue([a = on_host(a), b = on_host(b), scale_a = on_host(scale_a), scale_b = on_host(scale_b),
         to = on_host(out)] {
    to.copy_(at::mm(a.to(at::kFloat), b.to(at::kFloat)).mul(scale_a.reshape({})).mul(scale_b.reshape({})));
  });
  return out;
}

at::Tensor scaled_mm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale_a,
                     const at::Tensor& scale_b, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& scale_result, std::optional<at::ScalarType> type,
                     bool fast) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options().dtype(type.value_or(a.scalar_type())));
  return scaled_mm_out(a, b, scale_a, scale_b, bias, scale_result, type, fast, out);
}

}  // namespace

void add_products(torch::Library& library) {
  library.impl("mm.dtype", TORCH_FN(mm));
  library.impl("mm.dtype_out", TORCH_FN(mm_out));
  library.impl("addmm.dtype", TORCH_FN(addmm));
  library.impl("addmm.dtype_out", TORCH_FN(addmm_out));
  library.impl("_scaled_mm", TORCH_FN(scaled_mm));
  library.impl("_scaled_mm.out", TORCH_FN(scaled_mm_out));
}

}  // namespace satune::emulated_card
