// The emulated card's own promises: without them the tests on it would show nothing.
#include "tests/emulated_card/card.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace satune::emulated_card {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const auto kOnCard = at::TensorOptions(at::Device(at::kCUDA, 0));

at::Tensor pinned_zeros() {
  const at::Tensor pinned = at::empty({4}, at::dtype(at::kFloat).pinned_memory(true));
  std::fill_n(pinned.mutable_data_ptr<float>(), 4, 0.0F);
  return pinned;
}

TEST(EmulatedCard, NothingIsDoneBeforeTheHostWaits) {
  const at::Tensor result = at::ones({4}, kOnCard) * 3, pinned = pinned_zeros();
  pinned.copy_(result, /*non_blocking=*/true);
  EXPECT_EQ(pinned.const_data_ptr<float>()[3], 0);
  c10::impl::VirtualGuardImpl(at::kCUDA).synchronizeDevice(0);
  EXPECT_EQ(pinned.const_data_ptr<float>()[3], 3);
}

TEST(EmulatedCard, ReadingAndPageableMemoryWait) {
  const int64_t before = counts().waits;
  EXPECT_EQ((at::ones({4}, kOnCard) * 3).sum().item<float>(), 12);
  EXPECT_EQ((at::ones({4}, kOnCard) * 3).cpu().sum().item<float>(), 12);
  EXPECT_EQ(counts().waits, before + 2);
  // In both directions; out of pinned memory only where it is asked for.
  for (const bool pinned : {false, true}) {
    for (const bool non_blocking : {false, true}) {
      const at::Tensor source = pinned ? pinned_zeros() : at::zeros({4}), there = at::ones({4}, kOnCard);
      const int64_t so_far = counts().waits;
      there.copy_(source, non_blocking);
      EXPECT_EQ(counts().waits - so_far, pinned && non_blocking ? 0 : 1);
      EXPECT_EQ(there.sum().item<float>(), 0);
    }
  }
}

TEST(EmulatedCard, StreamsGoOnByThemselvesUntilOneWaitsForTheOther) {
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  const at::Device card(at::kCUDA, 0);
  for (const bool waits : {false, true}) {
    const at::Tensor value = at::ones({4}, kOnCard), pinned = pinned_zeros();
    guard.synchronizeDevice(0);
    value.fill_(7);
    const c10::Stream other = guard.getStreamFromGlobalPool(card);
    c10::Event filled(at::kCUDA);
    filled.record(guard.getStream(card));
    if (waits) filled.block(other);
    {
      const c10::StreamGuard on_other(other);
      pinned.copy_(value, true);
    }
    other.synchronize();
    EXPECT_EQ(pinned.const_data_ptr<float>()[0], waits ? 7 : 1);
    guard.synchronizeDevice(0);
  }
}

TEST(EmulatedCard, AnEventIsReadyOnlyOnceItsWorkIsDone) {
  const c10::impl::VirtualGuardImpl guard(at::kCUDA);
  const at::Tensor value = at::ones({4}, kOnCard);
  c10::Event event(at::kCUDA);
  event.record(guard.getStream(value.device()));
  EXPECT_FALSE(event.query());
  event.synchronize();
  EXPECT_TRUE(event.query());
}

TEST(EmulatedCard, TensorsOfTheHostAreRefused) {
  const at::Tensor there = at::ones({4}, kOnCard), here = at::ones({4});
  EXPECT_THAT([&] { at::add(there, here); }, ThrowsMessage<c10::Error>(HasSubstr("on the same device")));
  EXPECT_THAT(
      [&] {
        at::mm(there.view({2, 2}), here.view({2, 2}));
      },
      ThrowsMessage<c10::Error>(HasSubstr("on the same device")));
  EXPECT_EQ(at::add(there, at::scalar_tensor(2)).sum().item<float>(), 12);
}

TEST(EmulatedCard, NewMemoryIsFullOfNan) {
  EXPECT_TRUE(at::isnan(at::empty({4 << 20}, kOnCard)).all().item<bool>());
}

TEST(EmulatedCard, MemoryEnds) {
  EXPECT_THROW(at::empty({static_cast<int64_t>(memory_bytes())}, kOnCard.dtype(at::kDouble)),
               c10::OutOfMemoryError);
}

TEST(EmulatedCard, OperatorsFollowTheShapesOfTheirResults) {
  const at::Tensor x = at::arange(6, kOnCard.dtype(at::kLong)).view({2, 3});
  EXPECT_EQ(at::nonzero(x).size(0), 5);
  EXPECT_EQ(at::index_select(x, 1, at::tensor({2, 0}, kOnCard.dtype(at::kLong))).sum().item<int64_t>(), 10);
  const auto [sorted, places] = at::sort(x.flatten(), /*stable=*/true, 0, /*descending=*/true);
  EXPECT_EQ(sorted[0].item<int64_t>() * 10 + places[0].item<int64_t>(), 55);
  at::Tensor out = at::empty({0}, kOnCard.dtype(at::kLong));
  at::add_out(out, x, x);
  EXPECT_EQ(out.sum().item<int64_t>(), 30);
  EXPECT_EQ(at::cat({x, x}).to(at::kDouble).mean().item<double>(), 2.5);
  EXPECT_EQ(x.t().contiguous().view({6})[1].item<int64_t>(), 3);
}

}  // namespace
}  // namespace satune::emulated_card
