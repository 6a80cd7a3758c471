// First include of a file of CPU loops: one clone per instruction set, chosen when the program starts.
// Memory-bound loops must vectorise, in a program that may be built on another machine. Without contraction
// all clones give the same bits. The options hold to the end of the file that includes this.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3", "fp-contract=off", "no-math-errno", "no-trapping-math")
#define SATUNE_CLONES __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#pragma STDC FP_CONTRACT OFF
#define SATUNE_CLONES
#endif
#define SATUNE_INLINE inline __attribute__((always_inline))
