// ATen's operators of a card, by those of the CPU on the same memory. Every operator that has a kernel of its
// own for CUDA gets one that queues the CPU's, so that tensors, views, allocations and streams stay those of
// a card.
//
// As on a card: tensors of the CPU among those of a card are refused but for single numbers and indices;
// results have the shape that the operator's Meta kernel says before any work is done; where there is none
// (nonzero, item) the stream is waited for.
#include "tests/emulated_card/aten.h"

#include <ATen/ATen.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <set>
#include <string>
#include <unordered_map>

#include "tests/emulated_card/card.h"

namespace satune::emulated_card {

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  return at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU).requires_grad(false));
}

Stream& current_stream() {
  return stream_of(c10::cuda::getCurrentCUDAStream().stream());
}

void queue(std::function<void()> work) {
  current_stream().submit([work = std::move(work)] {
    const at::AutoDispatchBelowAutograd no_gradients;
    work();
  });
}

namespace {

using Stack = torch::jit::Stack;
using c10::IValue;

/// A stack with each of its tensors replaced, the same one by the same.
class Replaced {
 public:
  template <typename F>
  Replaced(const Stack& stack, const F& replace) {
    const auto one = [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return tensor;
      const auto [place, is_new] = known_.try_emplace(tensor.unsafeGetTensorImpl());
      if (is_new) place->second = replace(tensor);
      return place->second;
    };
    for (const IValue& value : stack) values.push_back(with(value, one));
  }

  Stack values;

 private:
  template <typename F>
  static IValue with(const IValue& value, const F& one) {
    if (value.isTensor()) return one(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(one(tensor));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional(one(*tensor)) : std::nullopt);
      return list;
    }
    return value;
  }

  std::unordered_map<const c10::TensorImpl*, at::Tensor> known_;
};

void for_each_tensor(const Stack& stack, const std::function<void(const at::Tensor&)>& f) {
  Replaced(stack, [&](const at::Tensor& tensor) {
    f(tensor);
    return tensor;
  });
}

Stack with_device(Stack stack, at::Device device) {
  for (IValue& value : stack) {
    if (value.isDevice() && !value.toDevice().is_cpu()) value = device;
  }
  return stack;
}

/// Single numbers of the CPU are taken when the work is queued.
Stack host_stack(const Stack& arguments) {
  const Replaced host(arguments, [](const at::Tensor& t) { return t.is_cpu() ? t.clone() : on_host(t); });
  return with_device(host.values, at::kCPU);
}

void check_devices(const c10::OperatorHandle& op, const Stack& arguments) {
  const std::string& name = op.schema().name();
  if (name.find("aten::index") == 0 || name.find("aten::_index") == 0) return;
  for_each_tensor(arguments, [&](const at::Tensor& tensor) {
    TORCH_CHECK(tensor.is_cuda() || tensor.dim() == 0, name,
                ": Expected all tensors to be on the same device, but found a tensor of ", tensor.device(),
                " with ", tensor.dim(), " dimensions");
  });
}

/// Which argument each result is, or -1: arguments that are written to are the results, in order.
std::vector<int> arguments_of_results(const c10::FunctionSchema& schema) {
  std::vector<int> places;
  size_t argument = 0;
  for (const c10::Argument& result : schema.returns()) {
    places.push_back(-1);
    if (result.alias_info() == nullptr || !result.alias_info()->isWrite()) continue;
    const auto& arguments = schema.arguments();
    while (argument < arguments.size() &&
           (arguments[argument].alias_info() == nullptr || !arguments[argument].alias_info()->isWrite())) {
      ++argument;
    }
    if (argument < arguments.size()) places.back() = static_cast<int>(argument++);
  }
  return places;
}

at::Tensor like_on_card(const at::Tensor& tensor, at::Device device) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
}

/// What the operator would give, without its numbers; nothing if no Meta kernel says it.
std::optional<Stack> meta_results(const c10::OperatorHandle& op, const Stack& arguments) {
  const Replaced meta(arguments, [](const at::Tensor& tensor) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
  });
  Stack results = with_device(meta.values, at::kMeta);
  try {
    op.callBoxed(&results);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  for (const IValue& result : results) {
    if (!result.isTensor()) return std::nullopt;
  }
  return results;
}

at::Device card_of(const Stack& arguments) {
  at::Device device(at::kCUDA, c10::cuda::current_device());
  for_each_tensor(arguments, [&](const at::Tensor& tensor) {
    if (tensor.is_cuda()) device = tensor.device();
  });
  return device;
}

/// The shape that an operator gave to what it writes to.
void follow_size(const at::Tensor& argument, const at::Tensor& result) {
  if (argument.sizes() == result.sizes()) return;
  TORCH_CHECK(argument.numel() == 0, "a result that has elements would change its shape");
  argument.resize_(result.sizes());
}

void run_now(const c10::OperatorHandle& op, const Stack& arguments, const std::vector<int>& places,
             Stack* stack) {
  wait_for(current_stream(), op.schema().name().c_str());
  // What is to be resized has no memory yet that the CPU could write to.
  const Replaced host(arguments, [](const at::Tensor& t) {
    return t.is_cuda() && t.numel() == 0 ? at::empty(t.sizes(), t.options().device(at::kCPU)) : on_host(t);
  });
  Stack results = with_device(host.values, at::kCPU);
  op.callBoxed(&results);
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].isTensor()) {
      stack->push_back(results[i]);
      continue;
    }
    const at::Tensor result = results[i].toTensor();
    if (places[i] < 0) {
      const at::Tensor there = like_on_card(result, card_of(arguments));
      on_host(there).copy_(result);
      stack->push_back(there);
      continue;
    }
    const at::Tensor argument = arguments[static_cast<size_t>(places[i])].toTensor();
    if (argument.numel() == 0 && result.numel() != 0) {
      follow_size(argument, result);
      on_host(argument).copy_(result);
    }
    stack->push_back(argument);
  }
}

/// LibTorch's workspace for cuBLAS on a card of compute capability 9.0, which lives as long as the process.
void take_workspace() {
  static const auto* workspace =
      new at::Tensor(at::empty({32 << 20}, at::dtype(at::kByte).device(at::kCUDA)));
  static_cast<void>(workspace);
}

void run_on_card(const c10::OperatorHandle& op, Stack* stack) {
  if (op.schema().name() == "aten::mm" || op.schema().name() == "aten::addmm") take_workspace();
  const std::vector<int> places = arguments_of_results(op.schema());
  const Stack arguments = torch::jit::pop(*stack, op.schema().arguments().size());
  check_devices(op, arguments);
  const auto metas = meta_results(op, arguments);
  if (!metas || metas->empty()) return run_now(op, arguments, places, stack);
  std::vector<at::Tensor> results;  // memory of the card that the CPU's results are copied to
  for (size_t i = 0; i < metas->size(); ++i) {
    const at::Tensor meta = (*metas)[i].toTensor();
    if (places[i] >= 0) {
      const at::Tensor argument = arguments[static_cast<size_t>(places[i])].toTensor();
      follow_size(argument, meta);
      stack->push_back(argument);
      results.emplace_back();
    } else {
      const at::Tensor there = meta.defined() ? like_on_card(meta, card_of(arguments)) : at::Tensor();
      stack->push_back(there);
      results.push_back(on_host(there));
    }
  }
  queue([op, host = host_stack(arguments), results] {
    Stack values = host;
    op.callBoxed(&values);
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].defined()) results[i].copy_(values[i].toTensor());
    }
  });
}

/// As at::native's copy for CUDA: memory of the host that is not pinned is read, and written, before it
/// returns.
at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  TORCH_CHECK(to.sizes() == from.sizes() || from.numel() == 1 || from.dim() <= to.dim(),
              "copy_: shapes do not fit");
  if (to.numel() == 0) return to;
  const bool through_host = to.is_cpu() || from.is_cpu();
  const at::Tensor& host_side = to.is_cpu() ? to : from;
  const bool pinned = through_host && is_pinned(host_side.const_data_ptr());
  const at::Tensor source = from.is_cpu() && !pinned ? from.clone() : on_host(from);
  queue([target = on_host(to), source] { target.copy_(source); });
  if (!through_host) return to;
  if (pinned && non_blocking) {
    at::getHostAllocator(at::kCUDA)->record_event(host_side.storage().mutable_data(),
                                                  host_side.storage().data_ptr().get_context(),
                                                  c10::cuda::getCurrentCUDAStream().unwrap());
  } else {  // of pageable memory CUDA's driver waits as well
    wait_for(current_stream(), "copy_");
  }
  return to;
}

/// Has no Meta kernel; its result's shape needs no numbers.
at::Tensor index_select(const at::Tensor& from, int64_t dim, const at::Tensor& index) {
  TORCH_CHECK(index.is_cuda(), "index_select: Expected all tensors to be on the same device");
  std::vector<int64_t> sizes = from.sizes().vec();
  sizes[static_cast<size_t>(dim < 0 ? dim + from.dim() : dim)] = index.numel();
  const at::Tensor out = at::empty(sizes, from.options());
  queue([to = on_host(out), from = on_host(from), dim, index = on_host(index)] {
    to.copy_(at::index_select(from, dim, index));
  });
  return out;
}

/// Those that make or look at tensors without reading their numbers.
bool is_of_any_device(const c10::OperatorHandle& op) {
  static const std::set<std::string> names = {
      "aten::empty",     "aten::empty_strided", "aten::resize_", "aten::record_stream",
      "aten::is_pinned", "aten::_pin_memory",   "aten::set_",    "aten::is_set_to"};
  if (names.count(op.schema().name()) > 0) return true;
  for (const c10::Argument& result : op.schema().returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

/// LibTorch tells of each operator that it gets another kernel.
class Silent final : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

/// Of all operators that have a kernel for CUDA, once LibTorch's libraries are loaded.
const bool operators_are_emulated = [] {
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  auto& library =
      *new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.find("aten::") != 0) continue;
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || !op->hasSchema() || !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) continue;
    if (is_of_any_device(*op)) continue;
    const std::string full = c10::toString(name);
    library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_card>());
  }
  library.impl("copy_", TORCH_FN(copy));
  library.impl("index_select", TORCH_FN(index_select));
  add_products(library);
  add_attention(library);
  return true;
}();

}  // namespace
}  // namespace satune::emulated_card
