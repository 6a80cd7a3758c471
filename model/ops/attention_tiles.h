// Vectors of this build's instruction set, and products of matrices that fit into the caches: what the CPU's
// attention is made of. For attention_cpu.cpp alone, which may be compiled for several instruction sets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "model/ops/attention_kernels.h"

namespace satune::kernels {
namespace {

constexpr int64_t kBlock = kAttentionBlock;  // queries, or keys, of a block of scores

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
// `left` is [rows, groups], from which one group at a time is given to all lanes; `right` is
// [groups, columns].

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

/// Elements of the first or second halves of two vectors of N by turns.
template <int N, bool kHigh, size_t... I, typename V>
inline V interleaved(V a, V b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (static_cast<int>(I / 2 + I % 2 * N) + (kHigh ? N / 2 : 0))...);
#else
  using Index = std::conditional_t<N == kLanes<double>, Longs, Ints>;
  return __builtin_shuffle(a, b, Index{(static_cast<int>(I / 2 + I % 2 * N) + (kHigh ? N / 2 : 0))...});
#endif
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

/// A left operand of up to kBlock rows as a right one, [groups, kBlock]; columns from `rows` to `columns` are
/// 0.
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

}  // namespace
}  // namespace satune::kernels
