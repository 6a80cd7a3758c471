// AdamW over state in memory modes, to the bits of the CPU's formats, noise and loops
// (trainer/adamw_tiles.cpp puts them together for tensors; here they are over plain arrays).
#include "tests/kernels/kernel_fixtures.h"
#include "trainer/cuda_kernels.h"
#include "trainer/rounding_noise.h"
#include "trainer/state_kernels.h"

namespace satune {
namespace {

using namespace testing;

/// An allocation of exactly `count` items, so that ASan sees any other access; `shift` items off a border of
/// 16 bytes.
class Memory {
 public:
  Memory(size_t count, size_t item, size_t shift)
      : bytes_(count * item),
        shift_(shift * item),
        memory_(static_cast<uint8_t*>(::operator new(shift_ + bytes_, kAlignment))) {
    std::memset(memory_, 0xa5, shift_ + bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(memory_, kAlignment); }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(memory_ + shift_);
  }
  void append_to(std::vector<double>& to) const {
    for (size_t i = 0; i < bytes_; ++i) to.push_back(memory_[shift_ + i]);
  }

 private:
  static constexpr std::align_val_t kAlignment{16};
  size_t bytes_, shift_;
  uint8_t* memory_;
};

size_t item_of(StateForm form) {
  return static_cast<size_t>(state_bytes(form, kStateBlock) / kStateBlock);
}

size_t extra_bytes(StateForm form, size_t n) {
  return static_cast<size_t>(state_bytes(form, static_cast<int64_t>(n))) - n * item_of(form);
}

/// One array of the state over plain memory. Tiles as trainer/state_array.h has them.
class Numbers {
 public:
  Numbers(StateForm form, size_t n, size_t shift, size_t weights_shift)
      : form_(form),
        n_(static_cast<int64_t>(n)),
        numbers_(n, item_of(form), shift),
        extra_(extra_bytes(form, n), 1, 0),
        weights_(n, 2, weights_shift) {}

  /// To nearest.
  void fill(const std::vector<float>& values) {
    for (int64_t at = 0; at < n_; at += kStateTile) encode(at, values.data() + at, nullptr);
  }
  /// To be called for all elements of a tile, of which there are `size(at)`.
  void decode(int64_t at, float* values) {
    const int64_t n = size(at);
    switch (form_) {
      case StateForm::kFp32:
        std::copy_n(numbers_.as<float>() + at, n, values);
        return;
      case StateForm::kSplit:
        return join_masters(weights_.as<uint16_t>() + at, numbers_.as<uint16_t>() + at,
                            extra_.as<uint8_t>() + at / kTieBits, values, n);
      case StateForm::kBf16:
        return widen_bf16(numbers_.as<uint16_t>() + at, values, n);
      case StateForm::kFirst8Bit:
      case StateForm::kSecond8Bit:
        break;
    }
    for_blocks(at, [&](int64_t block, int64_t count, uint8_t* codes, float* scale) {
      (form_ == StateForm::kFirst8Bit ? decode_first_moments : decode_second_moments)(codes, *scale,
                                                                                      values + block, count);
    });
  }
  void encode(int64_t at, const float* values, const uint32_t* noise) {
    const int64_t n = size(at);
    auto* words = numbers_.as<uint16_t>() + at;
    switch (form_) {
      case StateForm::kFp32:
        std::copy_n(values, n, numbers_.as<float>() + at);
        return;
      case StateForm::kSplit:
        return split_masters(values, weights_.as<uint16_t>() + at, words,
                             extra_.as<uint8_t>() + at / kTieBits, n);
      case StateForm::kBf16:
        return noise != nullptr ? round_to_bf16_stochastically(values, noise, words, n)
                                : round_to_bf16(values, words, n);
      case StateForm::kFirst8Bit:
      case StateForm::kSecond8Bit:
        break;
    }
    for_blocks(at, [&](int64_t block, int64_t count, uint8_t* codes, float* scale) {
      (form_ == StateForm::kFirst8Bit ? encode_first_moments : encode_second_moments)(
          values + block, noise == nullptr ? nullptr : noise + block, codes, scale, count);
    });
  }

  int64_t size(int64_t at) const { return std::min(kStateTile, n_ - at); }
  Memory& weights() { return weights_; }
  StateMemory memory() {
    return {form_, numbers_.as<void>(), extra_.as<void>(),
            form_ == StateForm::kSplit ? weights_.as<void>() : nullptr};
  }
  void append_to(std::vector<double>& to) const {
    for (const Memory* memory : {&numbers_, &extra_, &weights_}) memory->append_to(to);
  }

 private:
  template <typename F>
  void for_blocks(int64_t at, const F& f) {
    for (int64_t block = 0; block < size(at); block += kStateBlock) {
      f(block, std::min(kStateBlock, size(at) - block), numbers_.as<uint8_t>() + at + block,
        extra_.as<float>() + (at + block) / kStateBlock);
    }
  }

  StateForm form_;
  int64_t n_;
  Memory numbers_, extra_, weights_;
};

StateUpdate update_number(int64_t number) {
  StateUpdate update;
  AdamWCoefficients c{};
  c.gradient_scale = 0.37F;
  c.beta1 = 0.9F;
  c.beta2 = 0.999F;
  c.one_minus_beta1 = 0.1F;
  c.one_minus_beta2 = 0.001F;
  c.decay = 0.9999F;
  c.step_size = 0.013F;
  c.bias_correction2_sqrt = 0.0547F;
  c.epsilon = 1e-8F;
  update.decayed = update.undecayed = c;
  update.undecayed.decay = 1;
  update.seed = 0x299f31d0a4093822;
  update.update = number;
  return update;
}

using Pieces = std::vector<cuda::AdamWPiece>;

/// Forms of the state and, by type, of gradient and weights.
struct Forms {
  StateForm master, exp_avg, exp_avg_sq;
};

/// What lies in the arrays before an update, and what must come out where formats differ from fp32: ties,
/// blocks of zeros and of numbers that are not normalised, numbers at the ends of the range. Values repeat
/// every 1024.
struct Content {
  explicit Content(size_t n) : p(n), m(n), v(n), g(n) {
    const auto p_wave = wave(n, 1), m_wave = wave(n, 2, 1e-3), v_wave = wave(n, 3, 1e-3),
               g_wave = wave(n, 4, 0.01);
    for (size_t i = 0; i < n; ++i) {
      p[i] = static_cast<float>(p_wave[i]);
      m[i] = static_cast<float>(m_wave[i] * std::exp2(-static_cast<double>(i % 21)));
      v[i] = static_cast<float>(v_wave[i] * v_wave[i] * std::exp2(-2.0 * static_cast<double>(i % 19)));
      g[i] = g_wave[i];
      const size_t at = i % 1024;
      if (at % 5 == 0) {  // undecayed, these stay as they are
        p[i] = bits(0x3f808000U + static_cast<uint32_t>(i % 4 << 16));
        m[i] = 0;
        g[i] = 0;
      }
      // First, then second moments that round to the lowest level of all now and then, and zeros for a warp's
      // first thread.
      if (at >= 512) {
        const double size = at < 768 ? 0x1p-133 : 1e-19;
        m[i] = v[i] = 0;
        g[i] = at % 128 < 4 ? 0 : i % 2 == 0 ? -size : size;
      }
      if (i >= 4352 && i < 4608) m[i] = v[i] = 0;  // a block of padding
      if (at == 17) p[i] = std::numeric_limits<float>::infinity();
      if (at == 18) p[i] = std::numeric_limits<float>::lowest();
      if (at == 21) p[i] = bits(0x7fff8000U);  // NaN
      if (at == 301) v[i] = std::numeric_limits<float>::max();
    }
  }
  static float bits(uint32_t word) { return __uint_as_float(word); }

  std::vector<float> p, m, v;
  std::vector<double> g;
};

/// State before and after updates. `shifts`: of gradient, master, its weights and moments.
template <typename G, typename W>
class Share {
 public:
  Share(const Forms& forms, size_t n, size_t shifts)
      : content_(n),
        forms_(forms),
        gradient_(content_.g, shift_of(shifts, 0)),
        master_(forms.master, n, shift_of(shifts, 1), shift_of(shifts, 2)),
        exp_avg_(forms.exp_avg, n, shift_of(shifts, 3), 0),
        exp_avg_sq_(forms.exp_avg_sq, n, shift_of(shifts, 4), 0) {
    master_.fill(content_.p);
    exp_avg_.fill(content_.m);
    exp_avg_sq_.fill(content_.v);
  }

  void update_on_card(const Pieces& pieces, const StateUpdate& update) {
    cuda::AdamWState state{master_.memory(), exp_avg_.memory(), exp_avg_sq_.memory(),
                           gradient_.data(), kElement<G>,       kElement<W>};
    if (rounds_weights()) state.master.weights = master_.weights().template as<void>();
    cuda::adamw_update_state(state, static_cast<int64_t>(content_.p.size()), pieces.data(),
                             static_cast<int64_t>(pieces.size()), update, nullptr);
  }

  void update_on_cpu(const Pieces& pieces, const StateUpdate& update) {
    std::vector<float> wide;
    for (const double value : gradient_.values()) wide.push_back(static_cast<float>(value));
    Numbers* arrays[] = {&master_, &exp_avg_, &exp_avg_sq_};
    for (int64_t at = 0; at < static_cast<int64_t>(wide.size()); at += kStateTile) {
      const int64_t end = at + master_.size(at);
      std::vector<cuda::AdamWPiece> touched;
      for (cuda::AdamWPiece piece : pieces) {
        if (piece.end <= at || piece.begin >= end) continue;
        piece.first += std::max(at, piece.begin) - piece.begin;
        piece.begin = std::max(at, piece.begin);
        piece.end = std::min(end, piece.end);
        touched.push_back(piece);
      }
      if (touched.empty()) continue;
      float values[3][kStateTile];
      for (int i = 0; i < 3; ++i) arrays[i]->decode(at, values[i]);
      for (const auto& piece : touched) {
        const int64_t from = piece.begin - at;
        adamw_update_f32(values[0] + from, values[1] + from, values[2] + from, wide.data() + piece.begin,
                         piece.end - piece.begin, piece.decay ? update.decayed : update.undecayed);
      }
      for (uint32_t i = 0; i < 3; ++i) {
        uint32_t noise[kStateTile] = {};
        for (const auto& piece : touched) {
          rounding_noise({update.seed, static_cast<uint32_t>(update.update), piece.tensor, i}, piece.first,
                         piece.end - piece.begin, noise + piece.begin - at);
        }
        arrays[i]->encode(at, values[i], noise);
      }
      if (rounds_weights()) round(values[0], at);
    }
  }

  std::vector<double> bytes() const {
    std::vector<double> all;
    for (const Numbers* numbers : {&master_, &exp_avg_, &exp_avg_sq_}) numbers->append_to(all);
    return all;
  }

 private:
  bool rounds_weights() const { return forms_.master == StateForm::kFp32 && sizeof(W) < sizeof(float); }
  void round(const float* values, int64_t at) {
    if constexpr (std::is_same_v<W, __half>) {
      for (int64_t i = 0; i < master_.size(at); ++i)
        master_.weights().template as<__half>()[at + i] = narrowed<__half>(static_cast<double>(values[i]));
    } else {
      round_to_bf16(values, master_.weights().template as<uint16_t>() + at, master_.size(at));
    }
  }

  Content content_;
  Forms forms_;
  Array<G> gradient_;
  Numbers master_, exp_avg_, exp_avg_sq_;
};

/// Pieces that begin and end anywhere, with padding between some of them and at the end. `whole`: four
/// neighbours in the share are those of a tensor that begin on a multiple of four.
Pieces pieces_of(int64_t n, bool whole) {
  const Pieces all = {
      {0, 3, 12, 7, true},
      {3, 300, 0, 8, false},
      {300, 301, 5, 9, true},
      {309, 1500, (int64_t{1} << 33) + 2, 10, true},
      {1500, 2097, 7, 11, false},
      {2097, 2560, 1, 12, true},
      // A tile of padding, and one of which a block is.
      {4096, 4352, 1024, 0, true},
      {4700, 5000, 3, 13, false},
  };
  Pieces pieces;
  for (cuda::AdamWPiece piece : all) {
    piece.end = std::min(piece.end, n);
    if (whole) piece.first += (piece.begin - piece.first) & 3;
    if (piece.begin < piece.end) pieces.push_back(piece);
  }
  return pieces;
}

constexpr Forms kForms[] = {
    {StateForm::kFp32, StateForm::kBf16, StateForm::kBf16},
    {StateForm::kFp32, StateForm::kFirst8Bit, StateForm::kSecond8Bit},
    {StateForm::kSplit, StateForm::kFp32, StateForm::kFp32},
    {StateForm::kSplit, StateForm::kBf16, StateForm::kBf16},
    {StateForm::kSplit, StateForm::kFirst8Bit, StateForm::kSecond8Bit},
    {StateForm::kBf16, StateForm::kFp32, StateForm::kFp32},
    {StateForm::kBf16, StateForm::kBf16, StateForm::kBf16},
    {StateForm::kBf16, StateForm::kFirst8Bit, StateForm::kSecond8Bit},
};

template <typename G, typename W>
void expect_the_cpus_state(const Forms& forms, size_t n, const Pieces& pieces) {
  Share<G, W> expected(forms, n, 0);
  expected.update_on_cpu(pieces, update_number(1));
  expected.update_on_cpu(pieces, update_number(2));
  const auto found = in_any_order(5, [&](size_t shifts) {
    Share<G, W> share(forms, n, shifts);
    share.update_on_card(pieces, update_number(1));
    share.update_on_card(pieces, update_number(2));
    return share.bytes();
  });
  EXPECT_TRUE(same_bits(found, expected.bytes()))
      << n << " elements, master in form " << static_cast<int>(forms.master) << ", moments in "
      << static_cast<int>(forms.exp_avg);
}

template <typename G, typename W>
void expect_the_cpus_state() {
  for (const Forms& forms : kForms) {
    if (!std::is_same_v<W, __nv_bfloat16> && forms.master != StateForm::kFp32) continue;
    for (const size_t n : {1, 259, 1024, 5013, 5128}) {
      if (forms.master == StateForm::kSplit && n % 8 != 0) continue;
      for (const bool whole : {false, true})
        expect_the_cpus_state<G, W>(forms, n, pieces_of(static_cast<int64_t>(n), whole));
    }
  }
}

TEST(AdamWStateKernel, GivesTheBitsOfTheCpu) {
  for_gradients_and_weights([]<typename G, typename W>() { expect_the_cpus_state<G, W>(); });
}

TEST(AdamWStateKernel, TakesManyPiecesInSeveralLaunches) {
  const auto launches = [](const Pieces& pieces) {
    using T = __nv_bfloat16;
    constexpr size_t kElements = 6144;
    expect_the_cpus_state<T, T>(kForms[7], kElements, pieces);
    Share<T, T> share(kForms[7], kElements, 0);
    const int64_t before = emulation::traffic().launches;
    share.update_on_card(pieces, update_number(1));
    return emulation::traffic().launches - before;
  };
  Pieces many;
  for (uint32_t i = 0; i < 32; ++i) many.push_back({61 * i, 61 * i + 61, i % 3, i, i % 2 == 0});
  EXPECT_EQ(launches(many), 1);
  many.push_back({1952, 6001, 0, 32, true});  // whose tile others have too
  EXPECT_EQ(launches(many), 2);
  many.pop_back();
  for (uint32_t i = 32; i < 100; ++i) many.push_back({61 * i, 61 * i + 61, i % 3, i, i % 2 == 0});
  EXPECT_GE(launches(many), 4);
  EXPECT_EQ(launches({}), 0);
}

template <typename G, typename W>
std::string refusal(const Forms& forms, size_t n, const Pieces& pieces) {
  Share<G, W> share(forms, n, 0);
  try {
    share.update_on_card(pieces, update_number(1));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(AdamWStateKernel, RefusesWhatItWasNotBuiltFor) {
  using B = __nv_bfloat16;
  constexpr StateForm kFp32 = StateForm::kFp32, kBf16 = StateForm::kBf16, kFirst = StateForm::kFirst8Bit;
  const Pieces pieces = pieces_of(64, true);
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(refusal<__half, B>(kForms[7], 64, pieces), "gradient"));
  EXPECT_TRUE(has(refusal<B, float>(kForms[0], 64, pieces), "gradient"));
  EXPECT_TRUE(has(refusal<float, B>({kFp32, kFp32, kFp32}, 64, pieces), "moments"));
  EXPECT_TRUE(has(refusal<float, B>({kBf16, kBf16, kFp32}, 64, pieces), "moments"));
  EXPECT_TRUE(has(refusal<float, B>({kFirst, kBf16, kBf16}, 64, pieces), "master"));
  cuda::AdamWState split{};
  split.master.form = StateForm::kSplit;
  EXPECT_THROW(cuda::adamw_update_state(split, 60, nullptr, 0, update_number(1), nullptr),
               std::runtime_error);
  Pieces crowd;
  for (uint32_t i = 0; i < 40; ++i) crowd.push_back({8 * i, 8 * i + 8, 0, i, true});
  EXPECT_TRUE(has(refusal<float, B>(kForms[7], 1024, crowd), "tensors in a tile"));
}

}  // namespace
}  // namespace satune
