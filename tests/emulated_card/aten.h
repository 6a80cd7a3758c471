// What the files about ATen share.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <functional>
#include <string>

namespace satune::emulated_card {

/// A tensor of the CPU on the same memory; it keeps nothing alive, as work on a card does not.
at::Tensor on_host(const at::Tensor& tensor);

/// On the current stream.
void queue(std::function<void()> work);

/// Operators that the CPU has not: products of 16-bit and 8-bit numbers with wider results, and attention.
void add_products(torch::Library& library);
void add_attention(torch::Library& library);

}  // namespace satune::emulated_card
