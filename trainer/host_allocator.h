// Where LibTorch gets the memory of CPU tensors.
#pragma once

#include <cstdint>

namespace satune {

/// Freed buffers below this size stay with the process, for the next of their size; larger ones have a
/// mapping of their own. The largest threshold that glibc takes, in bytes.
inline constexpr int64_t kHeapLimit = int64_t{32} << 20;

/// Compiled 16-bit products that oneDNN keeps, one for each shape of operands, and what one takes in bytes
/// (measured: 60 MB of 75 of them). A pass has 15 shapes for each number of tokens. Its own limit is 1024.
/// Measured with unpacked rows of up to 512 tokens through 8 layers of 192: a peak of 1,562 MiB with 64,
/// 1,640 with 256, 2,028 to 2,077 with 1024; the median step of two runs each 0.43, 0.41 and 0.44 s.
inline constexpr int64_t kKeptProducts = 64, kProductBytes = 800 << 10;

/// From now on, by malloc with the header of an alignment in front, and glibc keeps what is freed. Once,
/// before there is any tensor.
///
/// LibTorch itself asks posix_memalign, which looks for a hole of the size plus the alignment: a buffer freed
/// between two others is too small for its own successor, and each further one of that size takes new memory
/// (glibc's bug 14581; measured: up to 10 % of a small run's peak, more or less of it in each run). And glibc
/// would hand each buffer of a layer's activations back to the kernel and fault it in again (measured: 20 %
/// of a step). oneDNN keeps kKeptProducts, unless ONEDNN_PRIMITIVE_CACHE_CAPACITY says otherwise.
void set_up_host_memory();

}  // namespace satune
