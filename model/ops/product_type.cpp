#include "model/ops/product_type.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace satune {
namespace {

/// The question that at::mm itself asks before it hands a product to oneDNN. A LibTorch without oneDNN does
/// not know it.
bool onednn_supports(const char* question) {
  const auto op = c10::Dispatcher::singleton().findSchema({question, ""});
  return op.has_value() && op->typed<bool()>().call();
}

}  // namespace

at::ScalarType cpu_product_type(at::ScalarType type) {
  static const bool bf16 = onednn_supports("mkldnn::_is_mkldnn_bf16_supported");
  static const bool fp16 = onednn_supports("mkldnn::_is_mkldnn_fp16_supported");
  if (type == at::kBFloat16) return bf16 ? type : at::kFloat;
  if (type == at::kHalf) return fp16 ? type : at::kFloat;
  return type;
}

}  // namespace satune
