/* SPDX-License-Identifier: BSD-3-Clause
 *
 * CUDA on a processor: behind this header kernels compile as C++17, and their logic is tested without a card.
 *
 * Threads and blocks run in an order drawn from a seed: what depends on an order that CUDA does not promise changes
 * with the seed. Shared memory is NaN when a block begins, and has walls. What would be undefined on a card is an error
 * that names the line: meetings that somebody misses and, by the compiler's sanitizer, wrong indices, overflows and
 * misaligned addresses. Atomics are for integers, as in our kernels.
 */
#ifndef SKBN_SHIM_H
#define SKBN_SHIM_H

#ifdef __SSE2__
#include <xmmintrin.h>
#endif
#include "threads.h"

#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ SHIM_STATIC_SHARED
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define SHARED_MEMORY(type, name) type *name = reinterpret_cast<type *>(shim::dynamic_shared())

#define VECTORS(type, name) \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; }; \
    struct alignas(16) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(double, double)
VECTORS(int, int)
VECTORS(unsigned, uint)

/* What Python calls. */

namespace shim {

/* A kernel's arguments: i8, f8, or p with the kind and size of what is pointed to. */
template <class T> void describe(char *&text)
{
    constexpr bool integer = std::is_integral<T>::value && std::is_signed<T>::value && sizeof(T) == 8;
    static_assert(std::is_pointer<T>::value || integer || std::is_same<T, double>::value,
                  "a kernel's arguments are pointers, int64_t and double");
    using Bare = typename std::remove_cv<typename std::remove_pointer<T>::type>::type;
    using Sized = typename std::conditional<std::is_void<Bare>::value, char, Bare>::type;
    const char kind = std::is_floating_point<Bare>::value ? 'f' : std::is_integral<Bare>::value ? 'i' : 'V';
    text += sprintf(text, "%s%c%d ", std::is_pointer<T>::value ? "p" : "", kind, (int)sizeof(Sized));
}

template <class... A> const char *described(void (*)(A...))
{
    static char text[8 * sizeof...(A) + 1];
    char *end = text;
    (describe<A>(end), ...);
    return text;
}

/* A call with arguments from an array: between braces they are taken from left to right. */
struct Call {
    template <class... A> Call(void (*kernel)(A...), A... values) { kernel(values...); }
};

template <class... A> void call(void (*kernel)(A...), void **values) { Call{kernel, *static_cast<A *>(*values++)...}; }

/* CuPy compiles with -ftz=true: float's denormals are zeros on the way in and out. Here double's are too, meanwhile. */
class FlushedDenormals {
#ifdef __SSE2__
    const unsigned before = _mm_getcsr();

public:
    explicit FlushedDenormals(bool wanted) { _mm_setcsr(before | (wanted ? 0x8040u : 0u)); }
    ~FlushedDenormals() { _mm_setcsr(before); }
#else
public:
    explicit FlushedDenormals(bool) {}
#endif
};

} // namespace shim

/* For every kernel, and for the file. */
#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))
#define SHIM_KERNEL(name, bounds) \
    SHIM_EXPORT const char *launch_##name(const unsigned *g, size_t shared, void **values, uint64_t seed) \
    { \
        const shim::FlushedDenormals flushed(sizeof(real) == sizeof(float)); \
        return shim::launch([](void **v) { shim::call(name, v); }, g, shared, values, seed); \
    } \
    SHIM_EXPORT const char *arguments_##name() { return shim::described(name); } \
    SHIM_EXPORT int bounds_##name() { return bounds; }
SHIM_EXPORT size_t static_shared() { return shim::__stop_skbn_shared - shim::__start_skbn_shared - 16; }

/* Meetings. The last argument is the line of the call. */

#define SHIM_LINE int line = __builtin_LINE()
#define SHIM_WARP(name, mask, given, source) shim::meet(shim::IN_WARP, name, line, mask, given, source)

inline void __syncthreads(SHIM_LINE) { shim::meet(shim::AT_BARRIER, "__syncthreads", line, 0, 0, 0); }
inline void __syncwarp(unsigned mask = ~0u, SHIM_LINE) { SHIM_WARP("__syncwarp", mask, 0, -1); }
inline unsigned __ballot_sync(unsigned mask, int yes, SHIM_LINE)
{
    return (unsigned)SHIM_WARP("__ballot_sync", mask, yes != 0, -1);
}
inline int __any_sync(unsigned mask, int yes, SHIM_LINE) { return SHIM_WARP("__any_sync", mask, yes != 0, -1) != 0; }
inline int __all_sync(unsigned mask, int yes, SHIM_LINE) { return SHIM_WARP("__all_sync", mask, yes != 0, -1) == mask; }

/* `from` is a lane of the caller's segment of `width` lanes; one that would be outside is the caller's own. */
#define SHIM_SHUFFLE(name, parameter, from) \
    template <class T> T name(unsigned mask, T value, parameter, int width = 32, SHIM_LINE) \
    { \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name " moves 4 or 8 bytes"); \
        const int rank = (int)(shim::current - shim::fibers) % 32, lane = rank % width, other = from; \
        uint64_t bits = 0; \
        memcpy(&bits, &value, sizeof value); \
        bits = SHIM_WARP(#name, mask, bits, rank - lane + (other < 0 || other >= width ? lane : other)); \
        memcpy(&value, &bits, sizeof value); \
        return value; \
    }
SHIM_SHUFFLE(__shfl_sync, int k, k & (width - 1))
SHIM_SHUFFLE(__shfl_xor_sync, int k, lane ^ k)
SHIM_SHUFFLE(__shfl_down_sync, unsigned k, lane + (int)k)
SHIM_SHUFFLE(__shfl_up_sync, unsigned k, lane - (int)k)

/* Memory. */

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcg(T *p, T value) { *p = value; }
template <class T> void __stcs(T *p, T value) { *p = value; }

#define SHIM_ATOMIC(name, type, result) \
    inline type name(type *p, type v) \
    { \
        const type old = *p; \
        *p = result; \
        return old; \
    }
#define SHIM_ATOMICS(type) \
    SHIM_ATOMIC(atomicAdd, type, (type)((unsigned long long)old + (unsigned long long)v)) \
    SHIM_ATOMIC(atomicMax, type, old < v ? v : old) \
    SHIM_ATOMIC(atomicExch, type, v) \
    inline type atomicCAS(type *p, type same, type v) { return *p == same ? atomicExch(p, v) : *p; }
SHIM_ATOMICS(int)
SHIM_ATOMICS(unsigned)
SHIM_ATOMICS(unsigned long long)

/* Numbers, by one name for both types. <math.h> would take longer to compile than all the rest. */

#define SHIM_MATH(name, parameters, ...) \
    inline double name parameters(double) { return __builtin_##name(__VA_ARGS__); } \
    inline float name parameters(float) { return __builtin_##name##f(__VA_ARGS__); } \
    inline float name##f parameters(float) { return __builtin_##name##f(__VA_ARGS__); }
#define SHIM_1(T) (T x)
#define SHIM_2(T) (T x, T y)
#define SHIM_3(T) (T x, T y, T z)
SHIM_MATH(exp, SHIM_1, x) SHIM_MATH(exp2, SHIM_1, x) SHIM_MATH(expm1, SHIM_1, x) SHIM_MATH(log, SHIM_1, x)
SHIM_MATH(log2, SHIM_1, x) SHIM_MATH(log10, SHIM_1, x) SHIM_MATH(log1p, SHIM_1, x) SHIM_MATH(sqrt, SHIM_1, x)
SHIM_MATH(tanh, SHIM_1, x) SHIM_MATH(sin, SHIM_1, x) SHIM_MATH(cos, SHIM_1, x) SHIM_MATH(erf, SHIM_1, x)
SHIM_MATH(erfc, SHIM_1, x) SHIM_MATH(fabs, SHIM_1, x) SHIM_MATH(floor, SHIM_1, x) SHIM_MATH(ceil, SHIM_1, x)
SHIM_MATH(rint, SHIM_1, x) SHIM_MATH(trunc, SHIM_1, x) SHIM_MATH(pow, SHIM_2, x, y) SHIM_MATH(fmin, SHIM_2, x, y)
SHIM_MATH(fmax, SHIM_2, x, y) SHIM_MATH(copysign, SHIM_2, x, y) SHIM_MATH(fma, SHIM_3, x, y, z)
inline double normcdf(double x) { return (double)(0.5L * __builtin_erfcl(-0.70710678118654752440L * x)); }
inline float normcdff(float x) { return (float)normcdf((double)x); }
template <class T> T rsqrt(T x) { return 1 / sqrt(x); }
template <class T> T cospi(T x) { return cos((T)3.14159265358979323846 * x); }
template <class T> bool isnan(T x) { return __builtin_isnan(x); }
template <class T> bool isinf(T x) { return __builtin_isinf(x); }
template <class T> bool isfinite(T x) { return __builtin_isfinite(x); }
template <class T> T abs(T x) { return x < 0 ? -x : x; }
template <class T> T min(T a, T b) { return b < a || a != a ? b : a; } /* NaN is passed over, as by fmin */
template <class T> T max(T a, T b) { return a < b || a != a ? b : a; }

template <class To, class From> To shim_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

/* The sanitizer's reports are errors of the launch. */
#define SHIM_REPORT(name) \
    extern "C" void __ubsan_handle_##name(const shim::Place *place, ...) \
    { \
        shim::give_up((int)place->line, "undefined behaviour: " #name); \
    }
SHIM_REPORT(add_overflow) SHIM_REPORT(sub_overflow) SHIM_REPORT(mul_overflow) SHIM_REPORT(negate_overflow)
SHIM_REPORT(divrem_overflow) SHIM_REPORT(shift_out_of_bounds) SHIM_REPORT(out_of_bounds) SHIM_REPORT(type_mismatch_v1)
SHIM_REPORT(float_cast_overflow) SHIM_REPORT(builtin_unreachable) SHIM_REPORT(missing_return)

#endif
