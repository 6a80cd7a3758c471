#include <cuda_fp8.h>

#include "model/ops/cuda_reduce.cuh"
#include "model/ops/fp8_format.h"

namespace satune::cuda {
namespace {

// A tile of bytes on its way from rows to columns. A warp writes rows of it in packs, and reads eight rows of
// each of four columns at a time; with this pitch the eight lie in different banks.
constexpr int kTile = 64;
constexpr int kPitch = kTile + 2;
constexpr int kBytes = 8;                             // of a pack
constexpr int kTileRows = kThreads * kBytes / kTile;  // that the threads move at once

constexpr int kLargestBlocks = 512;

/// Rows blockIdx.x, blockIdx.x + gridDim.x, ...
template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    largest_kernel(const T* x, int64_t rows, int width, int64_t row_stride, unsigned* parts) {
  constexpr int N = kPack<T>;
  unsigned largest = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + row * row_stride;
#pragma unroll 4
    for (int column = static_cast<int>(threadIdx.x) * N; column < width; column += kThreads * N) {
      largest = Max()(largest, largest_magnitude(read<kVector, N>(from + column, width - column)));
    }
  }
  write_largest(largest, parts, blockIdx.x);
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(const unsigned* parts, int count, float largest_of_format, float* scale) {
  __shared__ ReduceSpace<unsigned> space;
  unsigned largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) largest = Max()(largest, parts[i]);
  largest = reduce_block<Max>(largest, space);
  if (threadIdx.x == 0) {
    const float wanted = __uint_as_float(largest) / largest_of_format;
    *scale = wanted < fp8::kSmallestScale ? fp8::kSmallestScale : wanted;  // NaN stays
  }
}

/// Column tiles by blockIdx.x, row tiles by blockIdx.y.
template <typename T, bool kE5M2, bool kVector>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* x, int64_t rows, int width, int64_t row_stride, const float* scale,
                    uint8_t* by_rows, uint8_t* by_columns, int64_t padded_rows) {
  __shared__ uint8_t tile[kTile * kPitch];
  constexpr int kPacks = kTile / kBytes;
  const float inverse = 1.0F / *scale;
  const int major = static_cast<int>(threadIdx.x) / kPacks, minor = static_cast<int>(threadIdx.x) % kPacks;
  const int first_column = static_cast<int>(blockIdx.x) * kTile;
  const int column = first_column + minor * kBytes, left = width - column;
  const int64_t end = by_columns != nullptr ? padded_rows : rows;
  for (int64_t first_row = int64_t{blockIdx.y} * kTile; first_row < end;
       first_row += int64_t{gridDim.y} * kTile) {
#pragma unroll
    for (int in_tile = major; in_tile < kTile; in_tile += kTileRows) {
      const int64_t row = first_row + in_tile;
      Pack<uint8_t, kBytes> bytes{};
      if (row < rows && left > 0) {
        const auto pack = read<kVector, kBytes>(x + row * row_stride + column, left);
#pragma unroll
        for (int i = 0; i < kBytes; i += 2) {
          const float2 two = make_float2(static_cast<float>(load(pack.values[i])) * inverse,
                                         static_cast<float>(load(pack.values[i + 1])) * inverse);
          const auto both = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, kE5M2 ? __NV_E5M2 : __NV_E4M3);
          bytes.values[i] = static_cast<uint8_t>(both & 0xffU);
          bytes.values[i + 1] = static_cast<uint8_t>(both >> 8);
        }
        if (by_rows != nullptr) write<kVector, kBytes>(by_rows + row * width + column, bytes, left);
      }
#pragma unroll
      for (int i = 0; i < kBytes; ++i) tile[in_tile * kPitch + minor * kBytes + i] = bytes.values[i];
    }
    if (by_columns == nullptr) continue;
    __syncthreads();
    const int64_t row = first_row + minor * kBytes;
#pragma unroll
    for (int in_tile = major; in_tile < kTile; in_tile += kTileRows) {
      if (first_column + in_tile >= width || row >= padded_rows) continue;
      Pack<uint8_t, kBytes> bytes;
#pragma unroll
      for (int i = 0; i < kBytes; ++i) bytes.values[i] = tile[(minor * kBytes + i) * kPitch + in_tile];
      write<true, kBytes>(by_columns + (first_column + in_tile) * padded_rows + row, bytes, kBytes);
    }
    __syncthreads();
  }
}

}  // namespace

int64_t fp8_largest_parts(int64_t rows) {
  return std::min<int64_t>(rows, kLargestBlocks);
}

void fp8_largest(Element element, const void* x, int64_t rows, int64_t width, int64_t row_stride,
                 uint32_t* parts, Stream stream) {
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto* typed = static_cast<const T*>(x);
    const bool vector = fits_packs<kPack<T>>(typed, width) && row_stride % kPack<T> == 0;
    launch("fp8_largest", vector ? largest_kernel<T, true> : largest_kernel<T, false>,
           dim3(static_cast<unsigned>(fp8_largest_parts(rows))), kThreads, stream, typed, rows,
           static_cast<int>(width), row_stride, parts);
  });
}

void fp8_scale(const uint32_t* parts, int64_t count, Fp8 format, float* scale, Stream stream) {
  launch("fp8_scale", scale_kernel, dim3(1), kThreads, stream, parts, static_cast<int>(count),
         fp8::largest_of(format == Fp8::kE5M2), scale);
}

void fp8_quantize(Element element, const void* x, int64_t rows, int64_t width, int64_t row_stride, Fp8 format,
                  const float* scale, uint8_t* by_rows, uint8_t* by_columns, int64_t padded_rows,
                  Stream stream) {
  const int64_t end = by_columns != nullptr ? padded_rows : rows;
  const dim3 grid(static_cast<unsigned>(divide_up(width, kTile)),
                  static_cast<unsigned>(std::min<int64_t>(divide_up(end, kTile), 65535)));
  dispatch(element, [&](auto zero) {
    using T = decltype(zero);
    const auto* typed = static_cast<const T*>(x);
    const bool vector =
        fits_packs<kBytes>(typed, width) && row_stride % kBytes == 0 && fits_packs<kBytes>(by_rows, width);
    const bool wide = format == Fp8::kE5M2;
    const auto kernel = vector ? (wide ? quantize_kernel<T, true, true> : quantize_kernel<T, false, true>)
                               : (wide ? quantize_kernel<T, true, false> : quantize_kernel<T, false, false>);
    launch("fp8_quantize", kernel, grid, kThreads, stream, typed, rows, static_cast<int>(width), row_stride,
           scale, by_rows, by_columns, padded_rows);
  });
}

}  // namespace satune::cuda
