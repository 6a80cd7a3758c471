#include <algorithm>
#include <cmath>
#include <limits>

#include "model/ops/attention_kernels.h"
#include "model/ops/attention_tiles.h"

namespace satune::kernels {
namespace {

constexpr int64_t kKeysAtOnce = 4 * kBlock;  // of a forward, between two corrections of what it has summed

/// Deals out a workspace; one without memory counts what is asked of it.
class Arena {
 public:
  explicit Arena(std::byte* memory) : memory_(memory) {}

  template <typename E>
  E* take(int64_t count) {
    const int64_t offset = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(E)), 64);
    return memory_ == nullptr ? nullptr : reinterpret_cast<E*>(memory_ + offset);
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
