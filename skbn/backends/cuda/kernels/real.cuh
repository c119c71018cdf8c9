/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The numbers that kernels compute with: `real`, float or double by -Dreal=, and what both need.
 *
 * Every .cu file compiles alone, once for each type; kernels are extern "C". A kernel's arguments are pointers,
 * int64_t and double, nothing else. Sums over more than a few numbers are taken in double.
 */
#ifndef SKBN_REAL_CUH
#define SKBN_REAL_CUH

#include "records.h"

#ifndef real
#error "compile with -Dreal=float or -Dreal=double"
#endif

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

/* Dynamic shared memory by name; a processor that stands in for a card has its own way (see the tests). */
#ifndef SHARED_MEMORY
#define SHARED_MEMORY(type, name) \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type *name = reinterpret_cast<type *>(name##_bytes)
#endif

/* Machine epsilon of `real`, and its smallest normal number. */
template <class T> struct Limits;
template <> struct Limits<float> {
    static constexpr float epsilon = 1.1920928955078125e-07f, tiny = 1.17549435082228750797e-38f;
};
template <> struct Limits<double> {
    static constexpr double epsilon = 2.220446049250313e-16, tiny = 2.2250738585072013831e-308;
};

DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where this thread stands in a grid of one dimension, and how many there are. */
DEVICE int64_t thread_of_grid() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int64_t threads_of_grid() { return (int64_t)gridDim.x * blockDim.x; }

/* The same for warps, which take a row each: numbers in rows are found without a division. */
DEVICE int64_t lane() { return threadIdx.x % 32; }
DEVICE int64_t warp_of_grid() { return thread_of_grid() / 32; }
DEVICE int64_t warps_of_grid() { return threads_of_grid() / 32; }

/* Warps side by side may share a row, in the grid's second dimension: its numbers come one after the other, since the
 * compiler does not know that what is written is not what is read next. */
DEVICE int64_t lane_of_row() { return (int64_t)blockIdx.y * 32 + lane(); }
DEVICE int64_t lanes_of_row() { return (int64_t)gridDim.y * 32; }

#endif
