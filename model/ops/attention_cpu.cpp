#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "model/ops/attention_kernels.h"

namespace satune::kernels {
namespace {

constexpr int64_t kBlock = kAttentionBlock;  // queries, or keys, of a block of scores
constexpr int64_t kKeysAtOnce = 4 * kBlock;  // of a forward, between two corrections of what it has summed

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;  // kTileRows times as many sums stay in registers

using Floats = float __attribute__((vector_size(kVectorBytes)));
using Doubles = double __attribute__((vector_size(kVectorBytes)));
using Ints = int32_t __attribute__((vector_size(kVectorBytes)));
using Longs = int64_t __attribute__((vector_size(kVectorBytes)));
using Words = uint32_t __attribute__((vector_size(kVectorBytes)));
using HalfWords = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

template <typename A>
struct LanesOf {
  using type = Floats;
  using Index = Ints;
};
template <>
struct LanesOf<double> {
  using type = Doubles;
  using Index = Longs;
};
template <typename A>
using Lanes = typename LanesOf<A>::type;
template <typename A>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(A));

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

template <typename A>
inline Lanes<A> load_lanes(const A* x) {
  Lanes<A> lanes;
  __builtin_memcpy(&lanes, x, sizeof(lanes));
  return lanes;
}

template <typename A>
inline void store_lanes(A* x, Lanes<A> lanes) {
  __builtin_memcpy(x, &lanes, sizeof(lanes));
}

template <typename A>
inline Lanes<A> all_lanes(A value) {
  return Lanes<A>{} + value;
}

/// Said so, because what the compiler fuses by itself may differ between the tiles of a matrix.
inline Floats fused(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#else
  return a * b + sum;
#endif
}
inline Doubles fused(Doubles a, Doubles b, Doubles sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, sum);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_pd(a, b, sum);
#else
  return a * b + sum;
#endif
}

/// fast_exp() of arguments that are not far above 0.
inline Floats exp_lanes(Floats x) {
  constexpr float kLowest = -87.3f, kHighest = 88.0f,
                  kRound = 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Floats clamped = x < kLowest ? all_lanes(kLowest) : (x > kHighest ? all_lanes(kHighest) : x);
  const Floats n = fused(clamped, all_lanes(1.44269504088896341f), all_lanes(kRound)) - kRound;
  const Floats r = fused(n, all_lanes(2.12194440e-4f), fused(n, all_lanes(-0.693359375f), clamped));
  Floats p = all_lanes(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fused(p, r, all_lanes(coefficient));
  p = fused(p, r * r, r + 1.0f);
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return x < kLowest ? Floats{} : p * (Floats)exponent;
}
inline Doubles exp_lanes(Doubles x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

/// Lane i is true where first + i < end.
template <typename A>
inline auto below(int64_t first, int64_t end) {
  typename LanesOf<A>::Index index;
  for (int i = 0; i < kLanes<A>; ++i) index[i] = i;
  return index < static_cast<decltype(index[0] + 0)>(end - first);
}

template <typename A>
inline A sum_of(Lanes<A> x) {
  A sum = 0;
  for (int i = 0; i < kLanes<A>; ++i) sum += x[i];
  return sum;
}

// Operands of products. A product sums over groups of kDepth elements, which stand together in memory:
// `left` is [rows, groups], from which one group at a time is given to all lanes; `right` is [groups,
// columns].

template <typename A>
struct Wide {
  using Sum = A;
  using Element = A;
  using Group = A;
  static constexpr int64_t kDepth = 1;

  template <typename T>
  static Element element(T value) {
    return load(value);
  }
  static Lanes<A> multiply(Group left, const Group* right, Lanes<A> sum) {
    return fused(all_lanes(left), load_lanes(right), sum);
  }
};

#ifdef __AVX512BF16__
struct Pairs {
  using Sum = float;
  using Element = uint16_t;
  using Group = uint32_t;
  static constexpr int64_t kDepth = 2;

  static Element element(c10::BFloat16 value) { return value.x; }
  static Floats multiply(Group left, const Group* right, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(left)),
                            (__m512bh)_mm512_loadu_si512(right));
  }
};
template <typename T>
using OperandOf = std::conditional_t<std::is_same_v<T, c10::BFloat16>, Pairs, Wide<accumulate_t<T>>>;
#else
template <typename T>
using OperandOf = Wide<accumulate_t<T>>;
#endif

template <typename O>
constexpr int64_t groups_of(int64_t elements) {
  return (elements + O::kDepth - 1) / O::kDepth;
}

template <typename O>
inline void store_elements(typename O::Element* to, Lanes<typename O::Sum> values) {
  if constexpr (O::kDepth == 1) {
    store_lanes(to, values);
  } else {
#ifdef __AVX512BF16__
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(values);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
#endif
  }
}

#ifdef __AVX512BF16__
/// Groups of an element of each, as bf16.
inline void store_pairs(uint32_t* to, Floats first, Floats second) {
  const auto bits = [](Floats x) { return __builtin_convertvector((HalfWords)_mm512_cvtneps_pbh(x), Words); };
  const Words pairs = bits(first) | bits(second) << 16;
  __builtin_memcpy(to, &pairs, sizeof(pairs));
}
#endif

/// Where group (row, group) of a left operand is.
struct Steps {
  int64_t row, group;
};

template <typename O, int M, int V>
inline __attribute__((always_inline)) void product_tile(const typename O::Group* left, Steps steps,
                                                        const typename O::Group* right, int64_t right_row,
                                                        int64_t groups, typename O::Sum* to, int64_t to_row,
                                                        bool add) {
  using A = typename O::Sum;
  Lanes<A> sums[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[m][v] = add ? load_lanes(to + m * to_row + v * kLanes<A>) : Lanes<A>{};
  }
  for (int64_t group = 0; group < groups; ++group) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        sums[m][v] = O::multiply(left[m * steps.row], right + v * kLanes<A>, sums[m][v]);
    }
    left += steps.group;
    right += right_row;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_lanes(to + m * to_row + v * kLanes<A>, sums[m][v]);
  }
}

template <typename O, int M, int V, typename... Arguments>
inline void product_rows(int64_t rows, Arguments... arguments) {
  if constexpr (M > 1) {
    if (rows < M) return product_rows<O, M - 1, V>(rows, arguments...);
  }
  product_tile<O, M, V>(arguments...);
}

/// to [rows, columns] = left right, or has that added. Columns are whole vectors.
template <typename O>
void product(const typename O::Group* left, Steps steps, const typename O::Group* right, int64_t right_row,
             int64_t groups, int64_t rows, int64_t columns, typename O::Sum* to, int64_t to_row, bool add) {
  constexpr int64_t kWide = kTileVectors * kLanes<typename O::Sum>;
  for (int64_t column = 0; column < columns; column += kWide) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const auto* a = left + row * steps.row;
      auto* c = to + row * to_row + column;
      if (columns - column >= kWide) {
        product_rows<O, kTileRows, kTileVectors>(rows - row, a, steps, right + column, right_row, groups, c,
                                                 to_row, add);
      } else {
        product_rows<O, kTileRows, 1>(rows - row, a, steps, right + column, right_row, groups, c, to_row,
                                      add);
      }
    }
  }
}

/// Rows as a left operand, [rows, groups of a row].
template <typename O, typename T>
void pack_left(const RowsOf<const T>& x, int64_t rows, int64_t width, typename O::Group* to) {
  const int64_t row_elements = groups_of<O>(width) * O::kDepth;
  auto* element = reinterpret_cast<typename O::Element*>(to);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) element[i] = O::element(x.data[row * x.stride + i]);
    for (int64_t i = width; i < row_elements; ++i) element[i] = 0;
    element += row_elements;
  }
}

/// Rows as a right operand that is summed over them, [groups of rows, columns]; columns beyond the width are
/// 0.
template <typename O, typename T>
void pack_right(const RowsOf<const T>& x, int64_t rows, int64_t width, int64_t columns,
                typename O::Group* to) {
  for (int64_t row = 0; row < rows; row += O::kDepth) {
    const T* first = x.data + row * x.stride;
    if constexpr (O::kDepth == 1) {
      SATUNE_INDEPENDENT
      for (int64_t i = 0; i < width; ++i) to[i] = O::element(first[i]);
    } else {
      const bool both = row + 1 < rows;
      const T* second = both ? first + x.stride : first;
      const uint32_t there = both ? 0xffffu : 0u;
      SATUNE_INDEPENDENT
      for (int64_t i = 0; i < width; ++i)
        to[i] = O::element(first[i]) | (O::element(second[i]) & there) << 16;
    }
    std::fill(to + width, to + columns, typename O::Group(0));
    to += columns;
  }
}

template <int N, bool kHigh, size_t... I>
constexpr auto interleaved(auto a, auto b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (static_cast<int>(I / 2 + I % 2 * N) + (kHigh ? N / 2 : 0))...);
}

/// N vectors of N elements, by log2 N rounds of riffling the first half with the second.
template <typename V, int N>
inline __attribute__((always_inline)) void transpose(V (&rows)[N]) {
#pragma GCC unroll 4
  for (int round = 1; round < N; round *= 2) {
    V riffled[N];
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      constexpr auto kAll = std::make_index_sequence<N>();
      riffled[2 * i] = interleaved<N, false>(rows[i], rows[i + N / 2], kAll);
      riffled[2 * i + 1] = interleaved<N, true>(rows[i], rows[i + N / 2], kAll);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = riffled[i];
  }
}

/// A left operand of up to kBlock rows as a right one, [groups, kBlock]; columns from `rows` on are 0.
template <typename O>
void transpose_left(const typename O::Group* left, int64_t rows, int64_t groups, int64_t columns,
                    typename O::Group* to) {
  using Group = typename O::Group;
  using V = std::conditional_t<std::is_same_v<Group, uint32_t>, Words, Lanes<typename O::Sum>>;
  constexpr int kSide = static_cast<int>(kLanes<Group>);
  const int64_t whole_rows = rows / kSide * kSide, whole_groups = groups / kSide * kSide;
  for (int64_t group = 0; group < whole_groups; group += kSide) {
    for (int64_t row = 0; row < whole_rows; row += kSide) {
      V square[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i)
        __builtin_memcpy(&square[i], left + (row + i) * groups + group, sizeof(V));
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i)
        __builtin_memcpy(to + (group + i) * kBlock + row, &square[i], sizeof(V));
    }
  }
  for (int64_t group = 0; group < groups; ++group) {
    Group* column = to + group * kBlock;
    for (int64_t row = group < whole_groups ? whole_rows : 0; row < rows; ++row)
      column[row] = left[row * groups + group];
    std::fill(column + rows, column + columns, Group(0));
  }
}

/// Deals out a workspace; one without memory counts what is asked of it.
class Arena {
 public:
  explicit Arena(std::byte* memory) : memory_(memory) {}

  template <typename E>
  E* take(int64_t count) {
    const int64_t offset = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(E)), 64);
    return reinterpret_cast<E*>(memory_ + offset);
  }
  int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  int64_t used_ = 0;
};

template <typename T>
struct Sizes {
  using O = OperandOf<T>;
  using A = typename O::Sum;

  explicit Sizes(int64_t head_dim)
      : groups(groups_of<O>(head_dim)),
        columns(round_up(head_dim, kLanes<A>)),
        scale(A(1) / std::sqrt(static_cast<A>(head_dim))) {}

  int64_t groups;   ///< of a row of q, k or v
  int64_t columns;  ///< of a sum of such rows
  A scale;
};

template <typename T>
RowsOf<const T> from(const RowsOf<const T>& x, int64_t row, int64_t column = 0) {
  return {x.data + row * x.stride + column, x.stride};
}

template <typename T>
struct ForwardBuffers {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  using Group = typename O::Group;

  ForwardBuffers(Arena arena, int64_t end, const Sizes<T>& sizes)
      : keys(arena.take<Group>(round_up(end, kBlock) * sizes.groups)),
        values(arena.take<Group>(groups_of<O>(end) * sizes.columns)),
        rows(arena.take<Group>(kBlock * sizes.groups)),
        scores(arena.take<A>(kBlock * kKeysAtOnce)),
        weights(O::kDepth == 1 ? reinterpret_cast<Group*>(scores)
                               : arena.take<Group>(kBlock * kKeysAtOnce / O::kDepth)),
        sums(arena.take<A>(kBlock * sizes.columns)),
        bytes(arena.used()) {}

  Group* keys;     ///< blocks, each right and transposed
  Group* values;   ///< right
  Group* rows;     ///< left: of q, and before that of k
  A* scores;       ///< [kBlock, kKeysAtOnce]
  Group* weights;  ///< left: exp(scores - the largest)
  A* sums;         ///< [kBlock, columns]: weights times values
  int64_t bytes;
};

/// exp(scale * (score - largest)) of the first `valid` scores, 0 up to `padded`; returns their sum.
template <typename O>
typename O::Sum exp_row(const typename O::Sum* scores, int64_t valid, int64_t padded, typename O::Sum largest,
                        typename O::Sum scale, typename O::Element* to) {
  using A = typename O::Sum;
  Lanes<A> sum{};
  for (int64_t i = 0; i < padded; i += kLanes<A>) {
    Lanes<A> weight = exp_lanes((load_lanes(scores + i) - largest) * scale);
    if (i + kLanes < A >> valid) weight = below<A>(i, valid) ? weight : Lanes<A>{};
    sum += weight;
    store_elements<O>(to + i, weight);
  }
  return sum_of<A>(sum);
}

template <typename A>
A largest_of(const A* scores, int64_t valid, A largest) {
  Lanes<A> most = all_lanes(largest);
  for (int64_t i = 0; i < valid; i += kLanes<A>) {
    Lanes<A> score = load_lanes(scores + i);
    if (i + kLanes < A >> valid) score = below<A>(i, valid) ? score : all_lanes(largest);
    most = score > most ? score : most;
  }
  for (int i = 0; i < kLanes<A>; ++i) largest = std::max(largest, most[i]);
  return largest;
}

/// Queries [begin, begin + rows) of one head against all keys up to their own.
template <typename T>
void forward_block(const RowsOf<const T>& q, int64_t begin, int64_t rows, int64_t head_dim,
                   const Sizes<T>& sizes, const ForwardBuffers<T>& buffers, const RowsOf<T>& out,
                   accumulate_t<T>* log_sum) {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  A largest[kBlock], sum[kBlock];
  std::fill_n(largest, rows, -std::numeric_limits<A>::infinity());
  std::fill_n(sum, rows, A(0));
  pack_left<O>(q, rows, head_dim, buffers.rows);
  for (int64_t first = 0; first < begin + rows; first += kKeysAtOnce) {
    const int64_t keys = std::min(kKeysAtOnce, begin + rows - first);
    for (int64_t key = 0; key < keys; key += kBlock) {
      product<O>(buffers.rows, {sizes.groups, 1}, buffers.keys + (first + key) * sizes.groups, kBlock,
                 sizes.groups, rows, round_up(std::min(kBlock, keys - key), kLanes<A>), buffers.scores + key,
                 kKeysAtOnce, /*add=*/false);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const A* scores = buffers.scores + row * kKeysAtOnce;
      const int64_t valid = std::min(keys, begin + row + 1 - first);
      const A before = largest[row];
      largest[row] = largest_of(scores, valid, before);
      if (first > 0 && largest[row] != before) {
        const A correction = std::exp((before - largest[row]) * sizes.scale);
        A* sums = buffers.sums + row * sizes.columns;
        for (int64_t i = 0; i < sizes.columns; ++i) sums[i] *= correction;
        sum[row] *= correction;
      }
      auto* weights = reinterpret_cast<typename O::Element*>(buffers.weights + row * kKeysAtOnce / O::kDepth);
      sum[row] += exp_row<O>(scores, valid, round_up(keys, kLanes<A>), largest[row], sizes.scale, weights);
    }
    product<O>(buffers.weights, {kKeysAtOnce / O::kDepth, 1},
               buffers.values + first / O::kDepth * sizes.columns, sizes.columns, groups_of<O>(keys), rows,
               sizes.columns, buffers.sums, sizes.columns, /*add=*/first > 0);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const A* sums = buffers.sums + row * sizes.columns;
    T* to = out.data + row * out.stride;
    for (int64_t i = 0; i < head_dim; ++i) to[i] = store<T>(sums[i] / sum[row]);
    log_sum[row] = largest[row] * sizes.scale + std::log(sum[row]);
  }
}

template <typename T>
struct BackwardBuffers {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  using Element = typename O::Element;
  using Group = typename O::Group;

  BackwardBuffers(Arena arena, int64_t length, const Sizes<T>& sizes)
      : keys(arena.take<Group>(length * sizes.groups)),
        values(arena.take<Group>(length * sizes.groups)),
        keys_right(O::kDepth == 1 && sizes.groups == sizes.columns
                       ? keys
                       : arena.take<Group>(groups_of<O>(length) * sizes.columns)),
        rows(arena.take<Group>(kBlock * sizes.groups)),
        queries(arena.take<Group>(kBlock * sizes.groups)),
        d_out(arena.take<Group>(kBlock * sizes.groups)),
        queries_right(arena.take<Group>(groups_of<O>(kBlock) * sizes.columns)),
        d_out_right(arena.take<Group>(groups_of<O>(kBlock) * sizes.columns)),
        weights(arena.take<A>(kBlock * kBlock)),
        d_scores(arena.take<A>(kBlock * kBlock)),
        weights_left(O::kDepth == 1 ? reinterpret_cast<Group*>(weights)
                                    : arena.take<Group>(kBlock * kBlock / O::kDepth)),
        d_scores_left(O::kDepth == 1 ? reinterpret_cast<Group*>(d_scores)
                                     : arena.take<Group>(kBlock * kBlock / O::kDepth)),
        d_scores_by_key(O::kDepth == 1 ? reinterpret_cast<Group*>(d_scores)
                                       : arena.take<Group>(kBlock * kBlock / O::kDepth)),
        d_q(arena.take<A>(kBlock * sizes.columns)),
        d_k(arena.take<A>(length * sizes.columns)),
        d_v(arena.take<A>(length * sizes.columns)),
        bytes(arena.used()) {}

  Group *keys, *values;                 // left
  Group* keys_right;                    // summed over keys
  Group* rows;                          // left, on the way to the next two
  Group *queries, *d_out;               // of a block, right and transposed
  Group *queries_right, *d_out_right;   // of a block, summed over queries
  A *weights, *d_scores;                // [keys of a block, queries of a block]: products, then P and dS
  Group *weights_left, *d_scores_left;  // the same, summed over queries
  Group* d_scores_by_key;               // [groups of keys, kBlock], summed over keys
  A *d_q, *d_k, *d_v;                   // sums of one head
  int64_t bytes;
};

/// Of the queries of a block.
template <typename A>
struct RowStatistics {
  alignas(64) A log_sum[kBlock];
  alignas(64) A delta[kBlock];  ///< sum of d_out * out, which is the sum of P * dP
};

template <typename A, typename T>
A dot(const T* x, const T* y, int64_t count) {
  constexpr int64_t kSums = 16;
  A sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += load(x[i + lane]) * load(y[i + lane]);
  }
  A sum = 0;
  for (; i < count; ++i) sum += load(x[i]) * load(y[i]);
  for (const A part : sums) sum += part;
  return sum;
}

/// What is made of a block of scores.
template <typename A>
struct Weighing {
  int64_t keys, columns;  ///< rows and columns of the block
  int64_t keys_before;    ///< query `column` of the block sees its keys up to column + keys_before
  A scale;
};

/// P = exp(scale * score - log_sum), dS = scale * P * (dP - delta), as operands.
template <typename T, bool kMasked, bool kScores>
void weigh(const BackwardBuffers<T>& buffers, const RowStatistics<typename OperandOf<T>::Sum>& statistics,
           const Weighing<typename OperandOf<T>::Sum>& block) {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  using Element = typename O::Element;
  const Lanes<A> scale = all_lanes(block.scale);
  for (int64_t row = 0; row < block.keys; row += O::kDepth) {
    const int64_t there = std::min(O::kDepth, block.keys - row);
    for (int64_t column = 0; column < block.columns; column += kLanes<A>) {
      const Lanes<A> log_sum = load_lanes(statistics.log_sum + column);
      const Lanes<A> delta = load_lanes(statistics.delta + column);
      Lanes<A> d_scores[O::kDepth] = {};
#pragma GCC unroll 2
      for (int64_t half = 0; half < O::kDepth; ++half) {
        if (half == there) break;
        const int64_t at = (row + half) * kBlock + column;
        Lanes<A> weight = exp_lanes(fused(load_lanes(buffers.weights + at), scale, -log_sum));
        if constexpr (kMasked) {
          const int64_t hidden = row + half - block.keys_before - column;
          weight = below<A>(0, hidden) ? Lanes<A>{} : weight;
        }
        store_elements<O>(reinterpret_cast<Element*>(buffers.weights_left) + at, weight);
        if constexpr (kScores) {
          d_scores[half] = weight * (load_lanes(buffers.d_scores + at) - delta) * scale;
          store_elements<O>(reinterpret_cast<Element*>(buffers.d_scores_left) + at, d_scores[half]);
        }
      }
      if constexpr (kScores && O::kDepth == 2)
        store_pairs(buffers.d_scores_by_key + row / 2 * kBlock + column, d_scores[0], d_scores[1]);
    }
  }
}

/// d_q of queries [begin, begin + rows) of a head, and what they give to d_k and d_v.
template <typename T>
void backward_block(const HeadGroup<T>& group, const HeadGroupGradient<T>& gradient, int64_t head,
                    int64_t begin, int64_t rows, const Sizes<T>& sizes, const BackwardBuffers<T>& buffers) {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  const int64_t D = group.head_dim, left_column = head * D;
  const RowsOf<const T> q = from(group.q, begin, left_column),
                        d_out = from(gradient.d_out, begin, left_column),
                        out = from(gradient.out, begin, left_column);
  const bool need_scores = gradient.d_q.data != nullptr;
  const int64_t columns = round_up(rows, kLanes<A>), row_groups = groups_of<O>(rows);
  pack_left<O>(q, rows, D, buffers.rows);
  transpose_left<O>(buffers.rows, rows, sizes.groups, columns, buffers.queries);
  pack_right<O>(d_out, rows, D, sizes.columns, buffers.d_out_right);
  RowStatistics<A> statistics;
  // Columns beyond the rows: weights of exp(-infinity).
  std::fill_n(statistics.log_sum, kBlock, std::numeric_limits<A>::infinity());
  std::fill_n(statistics.delta, kBlock, A(0));
  std::copy_n(gradient.log_sum + head * gradient.log_sum_stride + begin, rows, statistics.log_sum);
  if (need_scores) {
    pack_left<O>(d_out, rows, D, buffers.rows);
    transpose_left<O>(buffers.rows, rows, sizes.groups, columns, buffers.d_out);
    pack_right<O>(q, rows, D, sizes.columns, buffers.queries_right);
    for (int64_t row = 0; row < rows; ++row)
      statistics.delta[row] = dot<A>(from(d_out, row).data, from(out, row).data, D);
  }
  for (int64_t first = 0; first < begin + rows; first += kBlock) {
    const int64_t keys = std::min(kBlock, begin + rows - first);
    product<O>(buffers.keys + first * sizes.groups, {sizes.groups, 1}, buffers.queries, kBlock, sizes.groups,
               keys, columns, buffers.weights, kBlock, /*add=*/false);
    if (need_scores) {
      product<O>(buffers.values + first * sizes.groups, {sizes.groups, 1}, buffers.d_out, kBlock,
                 sizes.groups, keys, columns, buffers.d_scores, kBlock, /*add=*/false);
    }
    const Weighing<A> block{keys, columns, begin - first, sizes.scale};
    if (need_scores) {
      first == begin ? weigh<T, true, true>(buffers, statistics, block)
                     : weigh<T, false, true>(buffers, statistics, block);
    } else {
      weigh<T, true, false>(buffers, statistics, block);
    }
    constexpr Steps kByQuery{kBlock / O::kDepth, 1};
    product<O>(buffers.weights_left, kByQuery, buffers.d_out_right, sizes.columns, row_groups, keys,
               sizes.columns, buffers.d_v + first * sizes.columns, sizes.columns, /*add=*/true);
    if (!need_scores) continue;
    product<O>(buffers.d_scores_left, kByQuery, buffers.queries_right, sizes.columns, row_groups, keys,
               sizes.columns, buffers.d_k + first * sizes.columns, sizes.columns, /*add=*/true);
    product<O>(buffers.d_scores_by_key, {1, kBlock}, buffers.keys_right + first / O::kDepth * sizes.columns,
               sizes.columns, groups_of<O>(keys), rows, sizes.columns, buffers.d_q, sizes.columns,
               /*add=*/first > 0);
  }
  if (need_scores) {
    const RowsOf<T>& d_q = gradient.d_q;
    attention_store<T>(buffers.d_q, sizes.columns, rows, D,
                       {d_q.data + begin * d_q.stride + left_column, d_q.stride});
  }
}

template <typename A>
void copy_or_add(const A* from, int64_t count, bool add, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = add ? to[i] + from[i] : from[i];
}

}  // namespace

template <typename T>
int64_t attention_columns(int64_t head_dim) {
  return Sizes<T>(head_dim).columns;
}

template <typename T>
int64_t attention_forward_workspace(int64_t end, int64_t head_dim) {
  return ForwardBuffers<T>(Arena(nullptr), end, Sizes<T>(head_dim)).bytes;
}

template <typename T>
int64_t attention_backward_workspace(int64_t length, int64_t head_dim) {
  return BackwardBuffers<T>(Arena(nullptr), length, Sizes<T>(head_dim)).bytes;
}

template <typename T>
void attention_store(const accumulate_t<T>* sums, int64_t columns, int64_t rows, int64_t head_dim,
                     const RowsOf<T>& to) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < head_dim; ++i) to.data[row * to.stride + i] = store<T>(sums[row * columns + i]);
  }
}

template <typename T>
void attention_forward(const HeadGroup<T>& group, int64_t begin, int64_t end, const RowsOf<T>& out,
                       accumulate_t<T>* log_sum, int64_t log_sum_stride, std::byte* workspace) {
  using O = OperandOf<T>;
  const int64_t D = group.head_dim;
  const Sizes<T> sizes(D);
  const ForwardBuffers<T> buffers(Arena(workspace), end, sizes);
  for (int64_t key = 0; key < end; key += kBlock) {
    const int64_t keys = std::min(kBlock, end - key);
    pack_left<O>(from(group.k, key), keys, D, buffers.rows);
    transpose_left<O>(buffers.rows, keys, sizes.groups, round_up(keys, kLanes<typename O::Sum>),
                      buffers.keys + key * sizes.groups);
  }
  pack_right<O>(group.v, end, D, sizes.columns, buffers.values);
  for (int64_t head = 0; head < group.heads; ++head) {
    for (int64_t row = begin; row < end; row += kBlock) {
      forward_block<T>(from(group.q, row, head * D), row, std::min(kBlock, end - row), D, sizes, buffers,
                       {out.data + row * out.stride + head * D, out.stride},
                       log_sum + head * log_sum_stride + row);
    }
  }
}

template <typename T>
void attention_backward(const HeadGroup<T>& group, const HeadGroupGradient<T>& gradient, int64_t first,
                        int64_t last, accumulate_t<T>* d_k_sum, accumulate_t<T>* d_v_sum,
                        std::byte* workspace) {
  using O = OperandOf<T>;
  using A = typename O::Sum;
  const int64_t D = group.head_dim, length = group.length;
  const Sizes<T> sizes(D);
  const BackwardBuffers<T> buffers(Arena(workspace), length, sizes);
  const bool need_scores = gradient.d_q.data != nullptr;
  pack_left<O>(group.k, length, D, buffers.keys);
  if (need_scores) {
    pack_left<O>(group.v, length, D, buffers.values);
    if (buffers.keys_right != buffers.keys)
      pack_right<O>(group.k, length, D, sizes.columns, buffers.keys_right);
  }
  const int64_t count = length * sizes.columns;
  for (int64_t head = first; head < last; ++head) {
    std::fill_n(buffers.d_v, count, A(0));
    if (need_scores) std::fill_n(buffers.d_k, count, A(0));
    for (int64_t row = 0; row < length; row += kBlock)
      backward_block<T>(group, gradient, head, row, std::min(kBlock, length - row), sizes, buffers);
    copy_or_add(buffers.d_v, count, head > first, d_v_sum);
    if (need_scores) copy_or_add(buffers.d_k, count, head > first, d_k_sum);
  }
}

#define SATUNE_INSTANTIATE(T)                                                                             \
  template int64_t attention_columns<T>(int64_t);                                                         \
  template int64_t attention_forward_workspace<T>(int64_t, int64_t);                                      \
  template int64_t attention_backward_workspace<T>(int64_t, int64_t);                                     \
  template void attention_store<T>(const accumulate_t<T>*, int64_t, int64_t, int64_t, const RowsOf<T>&);  \
  template void attention_forward<T>(const HeadGroup<T>&, int64_t, int64_t, const RowsOf<T>&,             \
                                     accumulate_t<T>*, int64_t, std::byte*);                              \
  template void attention_backward<T>(const HeadGroup<T>&, const HeadGroupGradient<T>&, int64_t, int64_t, \
                                      accumulate_t<T>*, accumulate_t<T>*, std::byte*);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
