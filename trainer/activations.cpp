#include "trainer/activations.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "model/ops/fp8.h"
#include "model/ops/fp8_format.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/linear_fp32.h"
#include "trainer/host_allocator.h"

namespace satune {
namespace {

constexpr int64_t kFloatBytes = 4;

using Buffers = std::vector<int64_t>;

/// Bytes of buffers that are alive together: of the heap, which keeps what it once had, and of maps of their
/// own. A card's count as the latter.
class Live {
 public:
  explicit Live(bool on_card) : on_card_(on_card) {}

  void add(int64_t bytes) {
    if (on_card_ || bytes >= kHeapLimit) {
      mapped_ += bytes;
    } else {
      heap_ += bytes;
    }
  }
  void add(const Buffers& buffers) {
    for (const int64_t bytes : buffers) add(bytes);
  }
  void raise_to(const Live& other) {
    heap_ = std::max(heap_, other.heap_);
    mapped_ = std::max(mapped_, other.mapped_);
  }
  int64_t total() const { return heap_ + mapped_; }

 private:
  bool on_card_;
  int64_t heap_ = 0, mapped_ = 0;
};

/// LayerRecord, buffer by buffer: own_activations(), each with the memory that it is a view of, and the
/// others.
struct RecordBuffers {
  Buffers own, others;
};

/// Bytes of what a projection's input is kept as: in 8 bits by columns, where it takes them.
int64_t kept_input(const PassShape& shape, int64_t outputs, int64_t inputs) {
  if (shape.fp8 && takes_fp8(outputs, inputs)) return fp8::padded_rows(shape.tokens) * inputs;
  return shape.tokens * inputs * shape.element;
}

RecordBuffers record_of(const PassShape& shape, int layer, Recording recording) {
  const ModelConfig& config = shape.config;
  const int64_t hidden = config.hidden_size, ffn = config.intermediate_size;
  const int64_t query_width = config.query_size(), key_width = config.key_value_size();
  const int64_t stream = shape.tokens * hidden * shape.element, mlp = shape.tokens * ffn * shape.element;
  const int64_t query = shape.tokens * query_width * shape.element,
                key = shape.tokens * key_width * shape.element;
  const int64_t scalar = shape.tokens * kFloatBytes;
  const bool shared = config.sharing.is_shared(layer);
  RecordBuffers record{{stream}, {}};
  if (config.sharing.is_anchor(layer)) record.others = {query, key};  // copies for its span
  if (recording == Recording::kRecompute) return record;
  // The projection's output, attention's, the stream between attention and MLP, gate and up.
  record.own.insert(record.own.end(), {shared ? key : query + 2 * key, query, stream, 2 * mlp});
  // 1 / rms of both norms and the attention's log-sum-exp per head.
  record.others.insert(record.others.end(), {scalar, scalar, scalar * config.num_attention_heads});
  if (recording == Recording::kSelective) return record;
  record.own.push_back(kept_input(shape, shared ? key_width : query_width + 2 * key_width, hidden));
  record.own.push_back(kept_input(shape, 2 * ffn, hidden));
  record.own.push_back(kept_input(shape, hidden, ffn));
  // Attention's output in 8 bits too: its own backward reads it in 16.
  if (shape.fp8 && takes_fp8(hidden, query_width))
    record.own.push_back(kept_input(shape, hidden, query_width));
  return record;
}

RecordBuffers kept_of(const PassShape& shape, int layer, Recording recording) {
  const ModelConfig& config = shape.config;
  if (layer + 1 >= shape.lowest_trained) return record_of(shape, layer, recording);
  if (!config.sharing.is_anchor(layer)) return {};
  return {{},
          {shape.tokens * config.query_size() * shape.element,
           shape.tokens * config.key_value_size() * shape.element}};
}

/// While the gradient of a weight [outputs, inputs] is made: on the CPU, where it is wider than the operands,
/// the product in their type, then added; through fp32, tiles of the tokens' two sides, and of the gradient
/// where it is narrower.
Buffers weight_gradient(const PassShape& shape, int64_t outputs, int64_t inputs, int64_t gradient_element) {
  if (!shape.widened) {
    if (shape.on_card || gradient_element == shape.element) return {};
    return {outputs * inputs * shape.element};
  }
  const Fp32Tile tile(shape.tokens, outputs, inputs);
  Buffers buffers = {tile.tokens * tile.outputs * kFloatBytes, tile.tokens * tile.inputs * kFloatBytes};
  if (gradient_element < kFloatBytes) buffers.push_back(tile.outputs * tile.inputs * kFloatBytes);
  return buffers;
}

/// In 8 bits, while gate and up get their gradients. For N tokens and F = intermediate_size, in bytes: the
/// gradient of SwiGLU's result 2 NF, that of gate and up 4 NF, by rows and by columns 4 NF more; of the
/// layer's record gate and up are gone, 4 NF, and SwiGLU's result in 8 bits, NF. That is 5 NF beside the
/// record, of which `live` has 4. Also the weights, where they are made for the product, and a gradient that
/// is added afterwards; "selective" has the inputs of both fused projections in 16 bits, too, and one of them
/// in 8.
void raise_to_fp8(Live& most, const PassShape& shape, Recording recording, Live live) {
  const int64_t ffn = shape.config.intermediate_size, hidden = shape.config.hidden_size;
  live.add(shape.tokens * ffn);
  if (!shape.fp8_weights_kept) live.add(2 * ffn * hidden);
  live.add(2 * ffn * hidden * shape.gradient_element);
  if (recording == Recording::kSelective) live.add(shape.tokens * hidden * shape.element);
  most.raise_to(live);
}

/// What a layer's backward holds beside its record, at two moments: both sides of SwiGLU; the fused weights.
void raise_to_backward(Live& most, const PassShape& shape, int layer, Recording recording, Live live) {
  const ModelConfig& config = shape.config;
  const int64_t stream = shape.tokens * config.hidden_size;
  live.add(stream * shape.element);  // the gradient of the layer's output
  if (config.sharing.is_shared(layer) || config.sharing.is_anchor(layer)) {  // SpanGradient
    live.add({shape.tokens * config.query_size() * kFloatBytes,
              shape.tokens * config.key_value_size() * kFloatBytes});
  }
  Live weights = live;
  live.add(2 * shape.tokens * config.intermediate_size * shape.element);
  if (shape.fp8) raise_to_fp8(most, shape, recording, live);
  most.raise_to(live);
  weights.add(stream * shape.element);
  Live down = weights;
  down.add(weight_gradient(shape, config.hidden_size, config.intermediate_size, shape.gradient_element));
  most.raise_to(down);
  weights.add(
      weight_gradient(shape, 2 * config.intermediate_size, config.hidden_size, shape.gradient_element));
  most.raise_to(weights);
}

/// Attention, which wants most in its backward, where what the MLP recorded is gone. `live`: without the
/// layer's record.
void raise_to_attention(Live& most, const PassShape& shape, int layer, Live live) {
  const ModelConfig& config = shape.config;
  const int64_t stream = shape.tokens * config.hidden_size * shape.element;
  const int64_t query = shape.tokens * config.query_size(), key = shape.tokens * config.key_value_size();
  const int64_t projected = config.sharing.is_shared(layer) ? key : query + 2 * key;
  const int64_t e = shape.element;
  live.add(record_of(shape, layer, Recording::kKeep).others);
  live.add({stream, stream, stream, stream, query * e, projected * e});
  live.add(
      {stream, query * e, (query + 2 * key) * e});  // gradients of the stream, attention's output, q, k, v
  if (config.sharing.is_shared(layer) || config.sharing.is_anchor(layer)) {
    live.add({query * kFloatBytes, key * kFloatBytes});
  }
  live.add(shape.attention);
  most.raise_to(live);
}

/// The head: input, norm and gradient of the stream, one chunk of logits, the gradient of the matrix. Every
/// token may be a target.
void raise_to_head(Live& most, const PassShape& shape, Live live) {
  const int64_t vocabulary = shape.config.vocab_size, hidden = shape.config.hidden_size;
  const int64_t stream = shape.tokens * hidden * shape.element;
  const int64_t rows = std::min(shape.tokens, cross_entropy_chunk_rows(vocabulary, shape.on_card));
  const int64_t chunk = rows * hidden * shape.element;
  live.add({stream, stream, stream, chunk, chunk, rows * vocabulary * shape.element});
  const bool summed_wide = rows < shape.tokens && shape.gradient_element < kFloatBytes;
  if (summed_wide) live.add(vocabulary * hidden * kFloatBytes);
  live.add(weight_gradient(shape, vocabulary, hidden, summed_wide ? kFloatBytes : shape.gradient_element));
  most.raise_to(live);
}

}  // namespace

int64_t pinned_bytes(const std::vector<int64_t>& sizes) {
  int64_t bytes = 0;
  for (const int64_t size : sizes) bytes += static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size)));
  return bytes;
}

int64_t layer_activation_bytes(const PassShape& shape, int layer, Recording recording) {
  const RecordBuffers record = record_of(shape, layer, recording);
  return std::accumulate(record.own.begin(), record.own.end(), int64_t{0}) +
         std::accumulate(record.others.begin(), record.others.end(), int64_t{0});
}

PassBytes pass_bytes(const PassShape& shape, const std::vector<Recording>& recording) {
  Live kept(shape.on_card), most(shape.on_card), in_loss(shape.on_card);
  Buffers on_its_way;  // offloaded: what the layer before has of its own
  int64_t host = 0;
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto layer = static_cast<int>(i);
    Live before = kept;
    before.add(on_its_way);
    // Under every policy the layer in progress has its whole record, in the forward and in the backward.
    const RecordBuffers whole = record_of(shape, layer, Recording::kKeep);
    Live live = before;
    live.add(whole.own);
    live.add(whole.others);
    most.raise_to(live);
    if (layer + 1 >= shape.lowest_trained) raise_to_backward(most, shape, layer, recording[i], live);
    if (!shape.attention.empty()) raise_to_attention(most, shape, layer, before);
    const RecordBuffers record = kept_of(shape, layer, recording[i]);
    kept.add(record.others);
    if (shape.offloads) {
      on_its_way = record.own;
      if (i + 1 < recording.size()) host += pinned_bytes(record.own);
    } else {
      kept.add(record.own);
    }
  }
  kept.add(on_its_way);  // the last layer's stays
  const int64_t in_layers = most.total();
  raise_to_head(in_loss, shape, kept);
  most.raise_to(in_loss);
  return {kept.total(), most.total() - kept.total(), in_layers - kept.total(), in_loss.total() - kept.total(),
          host};
}

std::vector<Recording> choose_recording(Checkpointing choice, const PassShape& shape, int64_t available) {
  const auto layers = static_cast<size_t>(shape.config.num_hidden_layers);
  switch (choice) {
    case Checkpointing::kOff:
      return std::vector<Recording>(layers, Recording::kKeep);
    case Checkpointing::kSelective:
      return std::vector<Recording>(layers, Recording::kSelective);
    case Checkpointing::kOn:
      return std::vector<Recording>(layers, Recording::kRecompute);
    case Checkpointing::kAuto:
      break;
  }
  if (shape.offloads) return std::vector<Recording>(layers, Recording::kRecompute);
  std::vector<Recording> recording(layers, Recording::kKeep);
  for (const Recording thinner : {Recording::kSelective, Recording::kRecompute}) {
    for (size_t i = 0; i < layers; ++i) {
      if (pass_bytes(shape, recording).total() <= available) return recording;
      recording[i] = thinner;
    }
  }
  return recording;
}

}  // namespace satune
