// AdamW over state in any form, in one pass: what trainer/adamw_tiles.cpp does by the tile. Compiled with
// --fmad=false, as adamw.cu is and for its reason.
#include <type_traits>

#include "trainer/cuda_kernels.h"
#include "trainer/state_forms.cuh"

namespace satune::cuda {
namespace {

constexpr int kBlockThreads = 128;
constexpr int kWarps = kBlockThreads / kWarp;
constexpr int kMostPieces = 32;  // of one launch: 1 KiB of the 4 that a kernel's arguments may take

struct Piece {
  int64_t begin, end, first;  // as AdamWPiece
  uint32_t tensor;
  float decay;
};
struct Pieces {
  Piece at[kMostPieces];
  int count;
};

/// The first piece that ends behind element `begin`.
__device__ inline int first_piece(const Pieces& pieces, int64_t begin) {
  int from = 0, to = pieces.count;
  while (from < to) {
    const int middle = (from + to) / 2;
    if (pieces.at[middle].end <= begin) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return from;
}

/// Which elements of a block belong to a piece: [from, to) from the block's beginning.
struct Overlap {
  int from, to;

  __device__ Overlap(const Piece& piece, int64_t block_begin)
      : from(within(piece.begin - block_begin)), to(within(piece.end - block_begin)) {}
  __device__ bool has(int element) const { return element >= from && element < to; }

 private:
  __device__ static int within(int64_t element) {
    return static_cast<int>(element < 0 ? 0 : element > kStateBlock ? kStateBlock : element);
  }
};

/// A word for each element of a thread; 0 where no piece is. `first`: a piece at or before the block's first.
template <bool kWhole>
__device__ inline void noise_of_block(const Pieces& pieces, int first, const NoiseSource& source,
                                      uint32_t array, const Place& place, Words& noise) {
#pragma unroll
  for (int i = 0; i < kOwned; ++i) noise[i] = 0;
  const int64_t begin = place.begin();
#pragma unroll 1
  for (int p = first; p < pieces.count && pieces.at[p].begin < begin + kStateBlock; ++p) {
    const Piece& piece = pieces.at[p];
    const Overlap overlap(piece, begin);
    if (overlap.from >= overlap.to) continue;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      uint32_t words[kQuad];
      noise_of_quad<kWhole>(source, piece.tensor, array, piece.first + begin + place.quad(q) - piece.begin,
                            words);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        if (overlap.has(place.quad(q) + i)) noise[q * kQuad + i] = words[i];
      }
    }
  }
}

template <bool kWhole, typename Form>
__device__ inline void write_state(const Form& form, const Values& values, const Pieces& pieces, int first,
                                   const NoiseSource& source, uint32_t array, const Place& place) {
  Words noise;
  if constexpr (Form::kNoisy) noise_of_block<kWhole>(pieces, first, source, array, place, noise);
  form.template write_from<kWhole>(values, noise, place);
}

template <typename Master, typename First, typename Second>
struct Arrays {
  using Weight = typename Master::Weight;
  Master master;
  First exp_avg;
  Second exp_avg_sq;
};

/// The gradient of a share in fp32 or the type of its weights: told at run time, since each type that the
/// kernel is compiled for takes a second.
struct Gradient {
  const void* values;
  bool wide;  ///< fp32
};

/// kWhole: quads are moved at once and have all of their noise from one counter, as where every tensor's size
/// is a multiple of four.
template <bool kWhole, typename A>
__global__ void __launch_bounds__(kBlockThreads, kWhole ? 5 : 4)
    update_kernel(A arrays, Gradient gradient, int64_t n, Pieces pieces, AdamWCoefficients c,
                  NoiseSource source) {
  const uint32_t block = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const int64_t begin = int64_t{block} * kStateBlock, tile = begin / kStateTile * kStateTile;
  const float scale = c.decided_scale == nullptr ? c.gradient_scale : *c.decided_scale;
  if (begin >= n || scale != scale) return;
  // Padding is left alone by the tile; inside of a tile it is decoded and encoded.
  const int first = first_piece(pieces, tile);
  if (first == pieces.count || pieces.at[first].begin >= tile + kStateTile) return;
  const Place place{block, static_cast<int>(threadIdx.x % kWarp),
                    static_cast<int>(n - begin < kStateBlock ? n - begin : kStateBlock)};
  Values g, p, m, v;
  arrays.master.template read_into<kWhole>(p, place);
  arrays.exp_avg.template read_into<kWhole>(m, place);
  arrays.exp_avg_sq.template read_into<kWhole>(v, place);
  const auto widen = [](auto number) { return load(number); };
  if (gradient.wide) {
    read_values<kWhole>(static_cast<const float*>(gradient.values), g, place, widen);
  } else {
    read_values<kWhole>(static_cast<const typename A::Weight*>(gradient.values), g, place, widen);
  }

#pragma unroll 1
  for (int k = first; k < pieces.count && pieces.at[k].begin < begin + kStateBlock; ++k) {
    const Overlap overlap(pieces.at[k], begin);
    const float decay = pieces.at[k].decay;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      // Worked out for all, so that the divisions of neighbours go side by side.
      const float scaled = g[i] * scale;
      const float first_moment = m[i] + c.one_minus_beta1 * (scaled - m[i]);
      const float second_moment = v[i] * c.beta2 + c.one_minus_beta2 * scaled * scaled;
      const float denominator = square_root(second_moment) / c.bias_correction2_sqrt + c.epsilon;
      const float master = p[i] * decay - c.step_size * (first_moment / denominator);
      const bool owned = overlap.has(place.quad(i / kQuad) + i % kQuad);
      p[i] = owned ? master : p[i];
      m[i] = owned ? first_moment : m[i];
      v[i] = owned ? second_moment : v[i];
    }
  }

  write_state<kWhole>(arrays.master, p, pieces, first, source, 0, place);
  write_state<kWhole>(arrays.exp_avg, m, pieces, first, source, 1, place);
  write_state<kWhole>(arrays.exp_avg_sq, v, pieces, first, source, 2, place);
}

// --- on the host ---

[[noreturn]] void refuse(const char* why) {
  throw std::runtime_error(std::string("adamw_update_state: ") + why);
}

Element element_of(float) {
  return Element::kFloat32;
}
Element element_of(__nv_bfloat16) {
  return Element::kBFloat16;
}
Element element_of(__half) {
  return Element::kFloat16;
}

/// Elements of a share that one launch updates, and their pieces.
struct Part {
  int64_t begin, end;  // on borders of kStateTile, but for the share's end
  Pieces pieces;       // their places from `begin` on
};

template <typename Master, typename First, typename Second>
void start(const AdamWState& state, const Part& part, const StateUpdate& update, Stream stream) {
  using A = Arrays<Master, First, Second>;
  using W = typename Master::Weight;
  const A arrays{Master::of(state.master, part.begin), First::of(state.exp_avg, part.begin),
                 Second::of(state.exp_avg_sq, part.begin)};
  const bool wide = state.gradient_element == Element::kFloat32;
  if (!wide && state.gradient_element != element_of(W{}))
    refuse("a gradient neither fp32 nor of the weights' type");
  const auto* bytes = static_cast<const char*>(state.gradient);
  const Gradient gradient{bytes + part.begin * (wide ? sizeof(float) : sizeof(W)), wide};
  const int64_t n = part.end - part.begin;
  bool whole = arrays.master.fits(n) && arrays.exp_avg.fits(n) && arrays.exp_avg_sq.fits(n) &&
               (wide ? fits_packs<kQuad>(static_cast<const float*>(gradient.values), n)
                     : fits_packs<kQuad>(static_cast<const W*>(gradient.values), n));
  for (int i = 0; i < part.pieces.count; ++i) {
    const Piece& piece = part.pieces.at[i];
    whole = whole && (piece.first - piece.begin) % kQuad == 0;
  }
  launch("adamw_update_state", whole ? update_kernel<true, A> : update_kernel<false, A>,
         dim3(static_cast<unsigned>(divide_up(n, int64_t{kWarps} * kStateBlock))), kBlockThreads, stream,
         arrays, gradient, n, part.pieces, update.decayed, NoiseSource(update.seed, update.update));
}

template <typename Master>
void with_moments(const AdamWState& state, const Part& part, const StateUpdate& update, Stream stream) {
  const StateForm first = state.exp_avg.form, second = state.exp_avg_sq.form;
  if (first == StateForm::kBf16 && second == first)
    return start<Master, Bf16State, Bf16State>(state, part, update, stream);
  if (first == StateForm::kFirst8Bit && second == StateForm::kSecond8Bit)
    return start<Master, EightBitState<true>, EightBitState<false>>(state, part, update, stream);
  if constexpr (!std::is_base_of_v<Fp32State, Master>) {  // adamw_update()'s work
    if (first == StateForm::kFp32 && second == first)
      return start<Master, Fp32State, Fp32State>(state, part, update, stream);
  }
  refuse("moments in forms that it was not built for");
}

void run(const AdamWState& state, const Part& part, const StateUpdate& update, Stream stream) {
  switch (state.master.form) {
    case StateForm::kSplit:
      return with_moments<SplitMaster>(state, part, update, stream);
    case StateForm::kBf16:
      return with_moments<Bf16State>(state, part, update, stream);
    case StateForm::kFp32:
      if (state.master.weights == nullptr)
        return with_moments<Fp32Master<float>>(state, part, update, stream);
      if (state.weight_element == Element::kBFloat16)
        return with_moments<Fp32Master<__nv_bfloat16>>(state, part, update, stream);
      if (state.weight_element == Element::kFloat16)
        return with_moments<Fp32Master<__half>>(state, part, update, stream);
      refuse("weights rounded to neither bf16 nor fp16");
    case StateForm::kFirst8Bit:
    case StateForm::kSecond8Bit:
      break;
  }
  refuse("a master in 8 bits");
}

}  // namespace

void adamw_update_state(const AdamWState& state, int64_t n, const AdamWPiece* pieces, int64_t count,
                        const StateUpdate& update, Stream stream) {
  if (state.master.form == StateForm::kSplit && n % kTieBits != 0) refuse("a byte of ties beyond the end");
  const auto tile_of = [](const AdamWPiece& piece) { return piece.begin / kStateTile * kStateTile; };
  Part part{};
  for (int64_t next = 0; next < count;) {
    const int64_t taken = std::min<int64_t>(kMostPieces, count - next), behind = next + taken;
    part.begin = std::max(part.end, tile_of(pieces[next]));
    part.end = behind < count ? tile_of(pieces[behind]) : n;  // every tile with all of its pieces
    if (part.begin >= part.end) refuse("more tensors in a tile than one launch takes");
    part.pieces.count = static_cast<int>(taken);
    for (int i = 0; i < part.pieces.count; ++i) {
      const AdamWPiece& piece = pieces[next + i];
      part.pieces.at[i] = {piece.begin - part.begin, piece.end - part.begin, piece.first, piece.tensor,
                           (piece.decay ? update.decayed : update.undecayed).decay};
    }
    run(state, part, update, stream);
    while (next < count && pieces[next].end <= part.end) ++next;
  }
}

}  // namespace satune::cuda
