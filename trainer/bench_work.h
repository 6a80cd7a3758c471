// FLOPs and bytes of each part of a training step, by shape alone: what the floors of `satune bench` count
// with, and what the launch order of a step can be checked against.
//
// FLOPs: 2MNK of every matrix product that the part runs, products of an activation policy's second forward
// and of attention's backward (which computes the scores again: five products where the forward has two)
// among them; attention halved by causality; nothing for element-wise work. Bytes: every operand read once,
// every result written once, as if all that fits into no cache were free; a gradient that is added to is
// read, too. All tensors count as trained.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/files/model_config.h"
#include "model/llama.h"

namespace satune {

struct WorkShape {
  const ModelConfig& config;
  int64_t tokens = 0;           ///< of one micro-batch
  int64_t document_length = 0;  ///< tokens
  int64_t micro_steps = 1;
  int64_t element = 2;           ///< bytes of a weight or an activation
  int64_t gradient_element = 4;  ///< of a weight's gradient
  bool accumulates = true;       ///< gradients of later micro-batches are added by the products themselves
  std::vector<Recording> recording;
  int64_t update_bytes = 0;  ///< read and written by the optimizer
  int64_t norm_bytes = 0;    ///< read by the norm of the gradients
  /// Products of layers that take them are of 8-bit floats: their operands are made (read in `element` bytes,
  /// written by rows, and by columns where and when a weight's gradient needs them) and read again; weights
  /// in 8 bits are there. All weights are trained.
  bool fp8 = false;
};

struct PartWork {
  double flops = 0, bytes = 0;
  double flops8 = 0;  ///< of `flops`, those of products of 8-bit floats
  PartWork& operator+=(const PartWork& other) {
    flops += other.flops;
    bytes += other.bytes;
    flops8 += other.flops8;
    return *this;
  }
};

/// Of one step, all layers and micro-batches together. `path`: kinds from the step down, as part_totals() has
/// them ("layer backward", "forward again", "norm"). Zero for a part that only holds others, and for one that
/// is no such work.
PartWork work_of(const WorkShape& shape, const std::vector<std::string>& path);

}  // namespace satune
