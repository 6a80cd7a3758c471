// What layers recorded waits for its backward in pinned host memory instead of on the card. Of the layers a
// pass has gone through, the card holds what the two last ones recorded: the one in progress and the one on
// its way. Copies run beside the layers' work; the host waits for none.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "model/copy_queue.h"

namespace satune {

class ActivationOffload {
 public:
  /// Host memory is taken at the first pass and kept for the next; grown where a later batch is larger, which
  /// may leave the smaller buffers in LibTorch's cache of pinned memory: the largest batch should come first.
  ActivationOffload(at::Device device, int layers, std::unique_ptr<CopyQueue> copies);

  /// Who is told of the copies from here on; nullptr: nobody.
  void trace_to(StepTrace* trace) { trace_ = trace; }

  /// Forward, when the layer's work is queued: `tensors` go to the host, with all of the memory they are
  /// views of, and are undefined until restore(). They are slots, which stay where they are until then.
  void store(int layer, const std::vector<at::Tensor*>& tensors);
  /// What is on its way to the host leaves the card. store() does it for the layer before.
  void settle();

  /// Backward, a layer ahead: begins to bring back what store() took.
  void fetch(int layer);
  /// The slots are as store() found them, on the card, shape, strides and all. Fetches what was not yet.
  /// Nothing for a layer of which nothing was stored.
  void restore(int layer);

  /// Ends a pass at any point: nothing of it stays on the card.
  void forget();

 private:
  struct Slot {
    at::Tensor* tensor = nullptr;
    at::ScalarType type;
    std::vector<int64_t> sizes, strides;
    int64_t offset = 0;  ///< elements
    size_t storage = 0;  ///< which of the layer's
  };
  struct Layer {
    std::vector<Slot> slots;
    std::vector<int64_t> bytes;       ///< of each storage
    std::vector<at::Tensor> on_host;  ///< so many bytes at least; kept between passes
    std::vector<at::Tensor> on_card;  ///< while a copy reads or writes them
    std::optional<size_t> last_copy;  ///< of those that have not been waited for
  };

  at::Tensor host_bytes(Layer& layer, size_t storage);
  void start_copy(Layer& layer, const at::Tensor& to, const at::Tensor& from);
  /// Nothing that the copies read or write is given to work queued before they are done.
  void wait_for_copies(Layer& layer);
  void leave_card(Layer& layer);

  at::Device device_;
  std::unique_ptr<CopyQueue> copies_;
  std::vector<Layer> layers_;
  StepTrace* trace_ = nullptr;
  int leaving_ = -1;  ///< the layer whose copies to the host are in progress
};

}  // namespace satune
