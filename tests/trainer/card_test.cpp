#include "trainer/card.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

namespace satune {
namespace {

using std::chrono::milliseconds;

const CardLibraries kFake{SATUNE_FAKE_DRIVER, SATUNE_FAKE_DRIVER};

TEST(Card, PeakByNameIsTheDenseFigure) {
  EXPECT_EQ(peak_half_flops("NVIDIA H100 80GB HBM3"), 989.4e12);
  EXPECT_EQ(peak_half_flops("NVIDIA H200"), 989.4e12);
  EXPECT_EQ(peak_half_flops("NVIDIA GH200 480GB"), 989.4e12);
  EXPECT_EQ(peak_half_flops("NVIDIA H100 PCIe"), 756e12);
  EXPECT_EQ(peak_half_flops("NVIDIA H100 NVL"), std::nullopt) << "not taken for an H100 on an SXM board";
  EXPECT_EQ(peak_half_flops("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(peak_half_flops("NVIDIA B200"), 2250e12);
  EXPECT_EQ(peak_half_flops("NVIDIA GB200"), std::nullopt);
  EXPECT_EQ(peak_half_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), std::nullopt);
  EXPECT_EQ(peak_half_flops("NVIDIA GeForce GTX 1080"), std::nullopt);
  EXPECT_EQ(peak_half_flops(""), std::nullopt);
}

TEST(Card, ReadsTheCardThatCudaNumbersAtMostOnceASecond) {
  const Card::Clock::time_point start = Card::Clock::now();
  Card card(0, kFake);
  EXPECT_EQ(card.name(), "NVIDIA H100 80GB HBM3");
  const CardReading first = card.read(start);
  const double power = first.power_w.value();
  EXPECT_EQ(first.temperature_c, 61.0);
  EXPECT_EQ(first.utilisation_percent, 97.0);
  EXPECT_EQ(card.read(start + milliseconds(999)).power_w, power);
  EXPECT_EQ(card.read(start + milliseconds(1000)).power_w, power + 1);
  // From the third on the card does not tell its utilisation: unset, not the old value.
  const CardReading third = card.read(start + milliseconds(2500));
  EXPECT_EQ(third.power_w, power + 2);
  EXPECT_EQ(third.utilisation_percent, std::nullopt);
}

TEST(Card, EveryNvmlSessionIsClosed) {
  void* library = dlopen(SATUNE_FAKE_DRIVER, RTLD_NOW);
  ASSERT_NE(library, nullptr);
  auto* open_sessions = reinterpret_cast<int (*)()>(dlsym(library, "fake_driver_open_sessions"));
  ASSERT_NE(open_sessions, nullptr);
  {
    const Card known(0, kFake), unknown(1, kFake);
    EXPECT_EQ(open_sessions(), 1);  // that of the card that was not found is closed at once
  }
  EXPECT_EQ(open_sessions(), 0);
  dlclose(library);
}

TEST(Card, WhatIsMissingStaysUnset) {
  Card no_driver(0, {"libno-such-driver.so.1", "libno-such-nvml.so.1"});
  EXPECT_EQ(no_driver.name(), "");
  EXPECT_FALSE(no_driver.read().power_w);
  Card no_nvml(0, {SATUNE_FAKE_DRIVER, "libno-such-nvml.so.1"});
  EXPECT_EQ(no_nvml.name(), "NVIDIA H100 80GB HBM3");
  EXPECT_FALSE(no_nvml.read().power_w);
  Card another(1, kFake);
  EXPECT_EQ(another.name(), "");
  EXPECT_FALSE(another.read().temperature_c);
}

}  // namespace
}  // namespace satune
