#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <vector>

#include "model/ops/attention_devices.h"
#include "model/ops/attention_kernels.h"
#include "model/ops/dispatch.h"

namespace satune {
namespace {

using kernels::accumulate_t;
using kernels::HeadGroup;
using kernels::HeadGroupGradient;
using kernels::RowsOf;

constexpr int64_t kQueriesAtOnce = 4 * kernels::kAttentionBlock;  // of a forward, per thread

/// Memory that only this thread uses.
class Workspace {
 public:
  std::byte* of(int64_t bytes) {
    if (!memory_.defined() || memory_.numel() < bytes) memory_ = at::empty({bytes}, at::kByte);
    return static_cast<std::byte*>(memory_.mutable_data_ptr());
  }

 private:
  at::Tensor memory_;
};

/// Calls f(i, workspace) for every i below `count`; each thread takes the next one when it is done.
template <typename F>
void in_any_order(int64_t count, F&& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Workspace workspace;
    for (int64_t i = next++; i < count; i = next++) f(i, workspace);
  });
}

/// Whether a row's heads stand side by side.
bool heads_are_together(const at::Tensor& x_NHD) {
  return x_NHD.stride(2) == 1 && (x_NHD.size(1) == 1 || x_NHD.stride(1) == x_NHD.size(2));
}

at::Tensor heads_together(const at::Tensor& x_NHD) {
  return heads_are_together(x_NHD) ? x_NHD : x_NHD.contiguous();
}

template <typename T>
RowsOf<const T> rows_of(const at::Tensor& x_NHD, int64_t row, int64_t head) {
  return {x_NHD.const_data_ptr<T>() + row * x_NHD.stride(0) + head * x_NHD.size(2), x_NHD.stride(0)};
}

template <typename T>
RowsOf<T> writable_rows_of(const at::Tensor& x_NHD, int64_t row, int64_t head) {
  if (!x_NHD.defined()) return {};
  TORCH_CHECK(heads_are_together(x_NHD));
  return {x_NHD.mutable_data_ptr<T>() + row * x_NHD.stride(0) + head * x_NHD.size(2), x_NHD.stride(0)};
}

struct Operands {
  at::Tensor q_NHD, k_NKD, v_NKD;

  int64_t groups() const { return k_NKD.size(1); }
  int64_t heads() const { return q_NHD.size(1) / groups(); }
  int64_t head_dim() const { return q_NHD.size(2); }

  template <typename T>
  HeadGroup<T> group(int64_t start, int64_t length, int64_t kv) const {
    return {length,
            head_dim(),
            heads(),
            rows_of<T>(q_NHD, start, kv * heads()),
            rows_of<T>(k_NKD, start, kv),
            rows_of<T>(v_NKD, start, kv)};
  }
};

/// Queries [begin, end) of a document, for one key/value head.
struct ForwardTask {
  int64_t start, length, kv, begin, end;
};

std::vector<ForwardTask> forward_tasks(const std::vector<int64_t>& starts, int64_t kv_heads) {
  std::vector<ForwardTask> tasks;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    const int64_t length = starts[i + 1] - starts[i];
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      for (int64_t begin = 0; begin < length; begin += kQueriesAtOnce)
        tasks.push_back({starts[i], length, kv, begin, std::min(length, begin + kQueriesAtOnce)});
    }
  }
  // The longest first: those left over are short.
  std::stable_sort(tasks.begin(), tasks.end(), [](const ForwardTask& a, const ForwardTask& b) {
    return (a.end - a.begin) * a.end > (b.end - b.begin) * b.end;
  });
  return tasks;
}

/// Query heads [first, last) of one key/value head of a document.
struct BackwardTask {
  int64_t start, length, kv, first, last;
};

std::vector<BackwardTask> backward_tasks(const std::vector<int64_t>& starts, int64_t kv_heads, int64_t heads,
                                         int64_t heads_of_task) {
  std::vector<BackwardTask> tasks;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      for (int64_t head = 0; head < heads; head += heads_of_task)
        tasks.push_back({starts[i], starts[i + 1] - starts[i], kv, head, head + heads_of_task});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const BackwardTask& a, const BackwardTask& b) { return a.length > b.length; });
  return tasks;
}

/// Whether there are too few key/value heads for the threads.
bool each_head_alone(int64_t documents, int64_t kv_heads, int64_t heads, int64_t threads) {
  return heads > 1 && documents * kv_heads < 2 * threads;
}

/// Of a task over all query heads of a key/value head: its sums, then the kernel's workspace.
template <typename T>
int64_t group_workspace(int64_t length, int64_t head_dim) {
  const int64_t sums = 2 * length * kernels::attention_columns<T>(head_dim);
  return kernels::attention_backward_workspace<T>(length, head_dim) +
         sums * static_cast<int64_t>(sizeof(accumulate_t<T>));
}

struct Gradients {
  at::Tensor d_q_NHD, d_k_NKD, d_v_NKD;
};

template <typename T>
class Backward {
 public:
  using A = accumulate_t<T>;

  Backward(const Operands& operands, const at::Tensor& d_out_NHD, const AttentionOut& forward,
           const Gradients& gradients)
      : operands_(operands),
        d_out_NHD_(d_out_NHD),
        forward_(forward),
        gradients_(gradients),
        columns_(kernels::attention_columns<T>(operands.head_dim())) {}

  /// All query heads of a key/value head after one another.
  void by_group(const std::vector<int64_t>& starts) {
    const std::vector<BackwardTask> tasks =
        backward_tasks(starts, operands_.groups(), operands_.heads(), operands_.heads());
    in_any_order(static_cast<int64_t>(tasks.size()), [&](int64_t i, Workspace& workspace) {
      const BackwardTask& task = tasks[i];
      const int64_t sums = task.length * columns_;
      std::byte* memory = workspace.of(group_workspace<T>(task.length, operands_.head_dim()));
      A* d_k = reinterpret_cast<A*>(memory);
      run(task, d_k, d_k + sums, memory + 2 * sums * sizeof(A));
      store(task, d_k, d_k + sums);
    });
  }

  /// Every query head by itself, and their sums after that: for more threads than key/value heads.
  void by_head(const std::vector<int64_t>& starts) {
    const int64_t heads = operands_.heads(), per_row = operands_.groups() * heads * columns_;
    const auto options = d_out_NHD_.options().dtype(statistics_type(d_out_NHD_.scalar_type()));
    const bool need_k = gradients_.d_k_NKD.defined();
    const at::Tensor d_v = at::empty({starts.back() * per_row}, options);
    const at::Tensor d_k = need_k ? at::empty_like(d_v) : d_v;
    const auto sums_of = [&](const at::Tensor& of, const BackwardTask& task, int64_t head) {
      return of.mutable_data_ptr<A>() + task.start * per_row +
             (task.kv * heads + head) * task.length * columns_;
    };
    const std::vector<BackwardTask> tasks = backward_tasks(starts, operands_.groups(), heads, 1);
    in_any_order(static_cast<int64_t>(tasks.size()), [&](int64_t i, Workspace& workspace) {
      const BackwardTask& task = tasks[i];
      run(task, sums_of(d_k, task, task.first), sums_of(d_v, task, task.first),
          workspace.of(kernels::attention_backward_workspace<T>(task.length, operands_.head_dim())));
    });
    const std::vector<BackwardTask> groups = backward_tasks(starts, operands_.groups(), heads, heads);
    in_any_order(static_cast<int64_t>(groups.size()), [&](int64_t i, Workspace&) {
      const BackwardTask& task = groups[i];
      for (int64_t head = 1; head < heads; ++head) {
        if (need_k) add(sums_of(d_k, task, head), task, sums_of(d_k, task, 0));
        add(sums_of(d_v, task, head), task, sums_of(d_v, task, 0));
      }
      store(task, sums_of(d_k, task, 0), sums_of(d_v, task, 0));
    });
  }

 private:
  void run(const BackwardTask& task, A* d_k, A* d_v, std::byte* workspace) {
    const int64_t q_head = task.kv * operands_.heads();
    const at::Tensor& log_sum_HN = forward_.saved[0];
    const HeadGroupGradient<T> gradient{
        rows_of<T>(d_out_NHD_, task.start, q_head), rows_of<T>(forward_.out_NHD, task.start, q_head),
        log_sum_HN.const_data_ptr<A>() + q_head * log_sum_HN.size(1) + task.start, log_sum_HN.size(1),
        writable_rows_of<T>(gradients_.d_q_NHD, task.start, q_head)};
    kernels::attention_backward<T>(operands_.group<T>(task.start, task.length, task.kv), gradient, task.first,
                                   task.last, d_k, d_v, workspace);
  }

  void store(const BackwardTask& task, const A* d_k, const A* d_v) {
    const auto write = [&](const A* sums, const at::Tensor& gradient_NKD) {
      kernels::attention_store<T>(sums, columns_, task.length, operands_.head_dim(),
                                  writable_rows_of<T>(gradient_NKD, task.start, task.kv));
    };
    if (gradients_.d_k_NKD.defined()) write(d_k, gradients_.d_k_NKD);
    write(d_v, gradients_.d_v_NKD);
  }

  void add(const A* more, const BackwardTask& task, A* sums) {
    for (int64_t i = 0; i < task.length * columns_; ++i) sums[i] += more[i];
  }

  const Operands& operands_;
  const at::Tensor& d_out_NHD_;
  const AttentionOut& forward_;
  const Gradients& gradients_;
  int64_t columns_;
};

}  // namespace

AttentionOut flash_cpu_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& starts) {
  RECORD_FUNCTION("satune::flash_cpu_forward", std::vector<c10::IValue>({q_NHD, starts}));
  const Operands operands{heads_together(q_NHD), heads_together(k_NKD), heads_together(v_NKD)};
  const int64_t N = q_NHD.size(0), H = q_NHD.size(1);
  const at::Tensor out_NHD = at::empty(q_NHD.sizes(), q_NHD.options());
  const at::Tensor log_sum_HN =
      at::empty({H, N}, q_NHD.options().dtype(statistics_type(q_NHD.scalar_type())));
  const std::vector<ForwardTask> tasks = forward_tasks(starts, operands.groups());
  dispatch_floating(q_NHD.scalar_type(), [&]<typename T>() {
    in_any_order(static_cast<int64_t>(tasks.size()), [&](int64_t i, Workspace& workspace) {
      const ForwardTask& task = tasks[i];
      const int64_t q_head = task.kv * operands.heads();
      kernels::attention_forward<T>(
          operands.group<T>(task.start, task.length, task.kv), task.begin, task.end,
          writable_rows_of<T>(out_NHD, task.start, q_head),
          log_sum_HN.mutable_data_ptr<accumulate_t<T>>() + q_head * N + task.start, N,
          workspace.of(kernels::attention_forward_workspace<T>(task.end, operands.head_dim())));
    });
  });
  return {out_NHD, {log_sum_HN}};
}

void flash_cpu_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  RECORD_FUNCTION("satune::flash_cpu_backward", std::vector<c10::IValue>({q_NHD, starts}));
  const Operands operands{heads_together(q_NHD), heads_together(k_NKD), heads_together(v_NKD)};
  const at::Tensor d_out = heads_together(d_out_NHD);
  const Gradients gradients{d_q_NHD, d_k_NKD, d_v_NKD};
  const auto documents = static_cast<int64_t>(starts.size()) - 1;
  dispatch_floating(q_NHD.scalar_type(), [&]<typename T>() {
    Backward<T> backward(operands, d_out, forward, gradients);
    if (each_head_alone(documents, operands.groups(), operands.heads(), at::get_num_threads())) {
      backward.by_head(starts);
    } else {
      backward.by_group(starts);
    }
  });
}

std::vector<int64_t> attention_backward_buffers(at::ScalarType type, int64_t documents, int64_t length,
                                                int64_t heads, int64_t kv_heads, int64_t head_dim,
                                                int64_t threads) {
  std::vector<int64_t> buffers;
  dispatch_floating(type, [&]<typename T>() {
    const bool alone = each_head_alone(documents, kv_heads, heads / kv_heads, threads);
    const int64_t tasks = documents * (alone ? heads : kv_heads);
    buffers.assign(std::min(threads, tasks), alone
                                                 ? kernels::attention_backward_workspace<T>(length, head_dim)
                                                 : group_workspace<T>(length, head_dim));
    if (!alone) return;
    const int64_t sums = documents * length * heads * kernels::attention_columns<T>(head_dim);
    buffers.insert(buffers.end(), 2, sums * static_cast<int64_t>(sizeof(accumulate_t<T>)));
  });
  return buffers;
}

}  // namespace satune
