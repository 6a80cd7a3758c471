#include "trainer/process_group.h"

#include <ATen/ATen.h>

#include "trainer/sum_parts.h"

namespace satune {
namespace {

class Done final : public Work {
 public:
  void wait() override {}
};

class LocalGroup final : public ProcessGroup {
 public:
  LocalGroup() : ProcessGroup(World{}) {}

  std::unique_ptr<Work> reduce_scatter(const at::Tensor& parts, const at::Tensor&, const at::Tensor& sum,
                                       bool accumulate) override {
    ++traffic_.collectives;
    sum_parts({parts}, sum, accumulate);
    return std::make_unique<Done>();
  }

  std::unique_ptr<Work> all_gather(const at::Tensor& whole, const at::Tensor& part) override {
    ++traffic_.collectives;
    TORCH_CHECK(whole.numel() == part.numel() && whole.scalar_type() == part.scalar_type());
    if (whole.const_data_ptr() != part.const_data_ptr()) whole.copy_(part);
    return std::make_unique<Done>();
  }

  std::vector<double> exchange(std::span<const double> values) override {
    ++traffic_.collectives;
    return {values.begin(), values.end()};
  }

  at::Tensor gather(const at::Tensor& numbers) override {
    ++traffic_.collectives;
    return numbers;
  }
};

}  // namespace

std::unique_ptr<ProcessGroup> make_local_group() {
  return std::make_unique<LocalGroup>();
}

std::vector<double> sum_over_ranks(std::span<const double> all, int64_t world_size) {
  TORCH_CHECK(world_size > 0 && all.size() % static_cast<size_t>(world_size) == 0);
  const size_t count = all.size() / static_cast<size_t>(world_size);
  std::vector<double> sums(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
  for (size_t i = count; i < all.size(); ++i) sums[i % count] += all[i];
  return sums;
}

}  // namespace satune
