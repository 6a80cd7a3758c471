// In which element type the CPU's matrix products run.
#pragma once

#include <c10/core/ScalarType.h>

namespace satune {

/// `type` itself where LibTorch has fast products of it on this CPU (oneDNN: AVX-512 or AMX for bf16, AVX-512
/// FP16 or AMX-FP16 for fp16, their likes on Arm); fp32 for a 16-bit type elsewhere, where LibTorch falls
/// back to scalar loops that are 5 to 150 times slower than widening, an fp32 product and one rounding. Asked
/// once in a process; part of what a bitwise resume calls the instruction set.
at::ScalarType cpu_product_type(at::ScalarType type);

}  // namespace satune
