#include "trainer/card.h"

#include <dlfcn.h>
#include <spdlog/spdlog.h>

#include <array>
#include <utility>

namespace satune {
namespace {

struct Peak {
  std::string_view part;  ///< of the card's name; the first entry that occurs in it counts
  double flops;  ///< 0: no figure that we could source, so that a longer name is not taken for a shorter one
};

/// H100 and H200 on SXM boards clock alike; their NVL and PCIe boards run slower.
constexpr std::array kPeaks = {
    Peak{"H100 NVL", 0},    Peak{"H200 NVL", 0},    Peak{"H100 PCIe", 756e12}, Peak{"GH200", 989.4e12},
    Peak{"H200", 989.4e12}, Peak{"H100", 989.4e12}, Peak{"GB200", 0},          Peak{"B200", 2250e12},
    Peak{"A100", 312e12},   Peak{"L40S", 362e12},
};

/// A shared library for the lifetime of the object.
class Library {
 public:
  explicit Library(const std::string& file) : handle_(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) {}
  ~Library() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool loaded() const { return handle_ != nullptr; }
  /// nullptr where the library does not export it.
  template <typename F>
  F* function(const char* name) const {
    return handle_ == nullptr ? nullptr : reinterpret_cast<F*>(dlsym(handle_, name));
  }

 private:
  void* handle_;
};

// The few entry points of the driver that we use, as its stable C interface declares them; 0 is success.
using CuInit = int(unsigned);
using CuDeviceGet = int(int* device, int ordinal);
using CuDeviceText = int(char* text, int size, int device);
using NvmlCall = int();
using NvmlDeviceByBusId = int(const char* bus_id, void** device);
using NvmlPower = int(void* device, unsigned* milliwatts);
using NvmlTemperature = int(void* device, int sensor, unsigned* celsius);
struct NvmlUtilisation {
  unsigned gpu, memory;  // per cent
};
using NvmlUtilisationRates = int(void* device, NvmlUtilisation*);

constexpr int kTextSize = 256;

/// Name and PCI bus id of a card, empty where the driver does not say.
std::pair<std::string, std::string> describe(int ordinal, const std::string& library) {
  const Library cuda(library);
  auto* init = cuda.function<CuInit>("cuInit");
  auto* get = cuda.function<CuDeviceGet>("cuDeviceGet");
  int device = 0;
  if (init == nullptr || get == nullptr || init(0) != 0 || get(&device, ordinal) != 0) return {};
  const auto text = [&](const char* query) -> std::string {
    auto* ask = cuda.function<CuDeviceText>(query);
    std::array<char, kTextSize> buffer{};
    if (ask == nullptr || ask(buffer.data(), kTextSize - 1, device) != 0) return {};
    return buffer.data();
  };
  return {text("cuDeviceGetName"), text("cuDeviceGetPCIBusId")};
}

}  // namespace

std::optional<double> peak_half_flops(std::string_view card_name) {
  if (card_name.find(" MIG ") != std::string_view::npos) return std::nullopt;
  for (const Peak& peak : kPeaks) {
    if (card_name.find(peak.part) == std::string_view::npos) continue;
    return peak.flops > 0 ? std::optional(peak.flops) : std::nullopt;
  }
  return std::nullopt;
}

/// NVML between nvmlInit and nvmlShutdown, and the card in it.
class Card::Nvml {
 public:
  Nvml(const std::string& file, const std::string& bus_id)
      : library_(file),
        power_(library_.function<NvmlPower>("nvmlDeviceGetPowerUsage")),
        temperature_(library_.function<NvmlTemperature>("nvmlDeviceGetTemperature")),
        utilisation_(library_.function<NvmlUtilisationRates>("nvmlDeviceGetUtilizationRates")) {
    auto* init = library_.function<NvmlCall>("nvmlInit_v2");
    auto* find = library_.function<NvmlDeviceByBusId>("nvmlDeviceGetHandleByPciBusId_v2");
    initialised_ = init != nullptr && init() == 0;
    found_ = initialised_ && find != nullptr && find(bus_id.c_str(), &device_) == 0;
  }
  ~Nvml() {
    auto* shutdown = library_.function<NvmlCall>("nvmlShutdown");
    if (initialised_ && shutdown != nullptr) shutdown();
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool found() const { return found_; }

  CardReading read() const {
    CardReading reading;
    unsigned value = 0;
    NvmlUtilisation rates{};
    if (power_ != nullptr && power_(device_, &value) == 0) reading.power_w = value / 1000.0;
    constexpr int kGpuSensor = 0;
    if (temperature_ != nullptr && temperature_(device_, kGpuSensor, &value) == 0) {
      reading.temperature_c = value;
    }
    if (utilisation_ != nullptr && utilisation_(device_, &rates) == 0) {
      reading.utilisation_percent = rates.gpu;
    }
    return reading;
  }

 private:
  Library library_;
  NvmlPower* power_;
  NvmlTemperature* temperature_;
  NvmlUtilisationRates* utilisation_;
  void* device_ = nullptr;
  bool initialised_ = false, found_ = false;
};

Card::Card(int ordinal, const CardLibraries& libraries) {
  auto [name, bus_id] = describe(ordinal, libraries.cuda);
  name_ = std::move(name);
  nvml_ = std::make_unique<Nvml>(libraries.nvml, bus_id);
  if (!nvml_->found()) {
    nvml_.reset();
    spdlog::warn("no power, temperature and utilisation of the card: {} did not find card {} ({})",
                 libraries.nvml, ordinal, bus_id.empty() ? "no PCI bus id" : bus_id);
  }
}

Card::~Card() = default;

const CardReading& Card::read(Clock::time_point now) {
  if (nvml_ && (!read_at_ || now - *read_at_ >= std::chrono::seconds(1))) {
    last_ = nvml_->read();
    read_at_ = now;
  }
  return last_;
}

}  // namespace satune
