/* SPDX-License-Identifier: BSD-3-Clause
 *
 * CUDA on a processor: behind this header kernels compile as C++17, and their logic is tested without a card.
 *
 * A thread is a fiber. It runs until it meets others, at a barrier or in a shuffle; who is next is drawn from a seed,
 * as is the order of the blocks: what depends on an order that CUDA does not promise changes with the seed. Shared
 * memory is NaN when a block begins. What would be undefined on a card is an error that names the line: meetings that
 * not everybody comes to and, by the compiler's sanitizer, wrong indices, overflows and misaligned addresses. Blocks
 * run one after the other, so they cannot wait for each other; atomics are for integers, as in our kernels.
 */
#ifndef SKBN_SHIM_H
#define SKBN_SHIM_H

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

/* The language. */

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((section("skbn_shared")))
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

struct dim3 { unsigned x, y, z; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

/* Threads. */

namespace shim {

constexpr unsigned MOST_THREADS = 1024, MOST_SHARED = 1 << 18, WALL = 512;
constexpr size_t STACK = (1 << 16) + 576; /* not a power of two: all would use the same lines of the cache */

/* Signalling NaN: arithmetic changes its bits, so a wall that was read, computed with and written shows it. */
constexpr unsigned WALL_BYTES = sizeof(real) == 4 ? 0xffb5 : 0xfff5;

enum State { READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber {
    jmp_buf context;
    dim3 thread;
    State state;
    const char *meeting; /* what it waits for, and where */
    int line;
    unsigned mask;
    uint64_t given, got;
    int source; /* whose value it wants; -1 for a ballot */
};

inline Fiber fibers[MOST_THREADS], *current, *ready[MOST_THREADS];
inline unsigned n_fibers, n_threads, n_ready, n_done; /* n_fibers: how many have a stack and wait for a kernel */
inline unsigned waiting_lanes[MOST_THREADS / 32];
inline bool far_apart;
inline jmp_buf scheduler;
inline ucontext_t creator;
inline unsigned char *stacks;
inline void (*body)(void **);
inline void **arguments;
inline char failure[256];
inline uint64_t random_state;
inline size_t shared_bytes;
alignas(128) inline unsigned char shared_memory[WALL + MOST_SHARED + WALL];
__shared__ __attribute__((used)) unsigned char some_shared[16]; /* so that the linker says where all of it lies: */
extern "C" unsigned char __start_skbn_shared[], __stop_skbn_shared[];

inline unsigned char *dynamic_shared() { return shared_memory + WALL; }

inline unsigned drawn(unsigned n) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (unsigned)(((z ^ (z >> 31)) >> 32) * n >> 32);
}

template <class T> void shuffle(T *items, unsigned n)
{
    for (unsigned i = n; i > 1; i--)
        std::swap(items[i - 1], items[drawn(i)]);
}

/* Jumps from stack to stack; what lies behind a jump needs a frame of its own. */
__noinline__ inline void suspend()
{
    if (!_setjmp(current->context))
        _longjmp(scheduler, 1);
    asm volatile("" ::: "memory"); /* others ran: what the compiler has in registers is old */
}

__noinline__ inline void resume(Fiber *fiber)
{
    current = fiber;
    threadIdx = fiber->thread;
    if (!_setjmp(scheduler))
        _longjmp(fiber->context, 1);
}

/* Say what went wrong, where, in which block, and in which thread if one is to blame. */
inline bool fail(int line, const char *what, const Fiber *fiber = nullptr)
{
    char *end = failure;
    if (line)
        end += sprintf(end, "line %d: ", line);
    end += sprintf(end, "%s; ", what);
    if (fiber)
        end += sprintf(end, "thread (%u, %u, %u) of ", fiber->thread.x, fiber->thread.y, fiber->thread.z);
    sprintf(end, "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
    return false;
}

[[noreturn]] inline void give_up(int line, const char *what)
{
    fail(line, what, current);
    _longjmp(scheduler, 1);
}

inline void no_such_memory(int) { give_up(0, "no such memory"); }

inline void fiber_main()
{
    ucontext_t unused;
    if (!_setjmp(current->context))
        swapcontext(&unused, &creator);
    for (;;) {
        body(arguments);
        current->state = DONE;
        n_done++;
        suspend();
    }
}

inline void create_fibers(unsigned n)
{
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (!stacks)
        stacks = static_cast<unsigned char *>(mmap(nullptr, MOST_THREADS * STACK, protection, flags, -1, 0));
    for (; n_fibers < n; n_fibers++) {
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks + n_fibers * STACK;
        context.uc_stack.ss_size = STACK;
        makecontext(&context, fiber_main, 0);
        current = &fibers[n_fibers];
        swapcontext(&creator, &context);
    }
}

inline void make_ready(Fiber *fiber)
{
    fiber->state = READY;
    ready[n_ready++] = fiber;
}

/* At the beginning and behind a barrier: a new order, and a new habit. */
inline bool make_all_ready()
{
    const unsigned n_warps = (n_threads + 31) / 32;
    unsigned warps[MOST_THREADS / 32];
    for (unsigned k = 0; k < n_warps; k++)
        warps[k] = k;
    shuffle(warps, n_warps);
    n_ready = 0;
    for (unsigned k = 0; k < n_warps; k++) {
        const unsigned begin = n_ready;
        for (unsigned rank = 32 * warps[k]; rank < n_threads && rank < 32 * warps[k] + 32; rank++)
            make_ready(&fibers[rank]);
        shuffle(ready + begin, n_ready - begin);
    }
    far_apart = drawn(2); /* the last that became ready is next: a warp runs as far ahead of the others as it can */
    return true;
}

/* The last lane of a mask has come: values change hands. */
inline void exchange(Fiber *warp, const Fiber &last)
{
    unsigned ballot = 0, begin = n_ready;
    for (unsigned k = 0; k < 32; k++)
        if (last.mask >> k & 1) {
            if (warp[k].line != last.line || warp[k].mask != last.mask || strcmp(warp[k].meeting, last.meeting))
                give_up(last.line, "the lanes of a warp meet in different functions, lines or masks");
            if (warp[k].source >= 0 && !(last.mask >> warp[k].source & 1))
                give_up(last.line, "a lane wants the value of one that is not in the mask");
            ballot |= (unsigned)(warp[k].given != 0) << k;
            make_ready(&warp[k]);
        }
    for (unsigned k = begin; k < n_ready; k++)
        ready[k]->got = ready[k]->source < 0 ? ballot : warp[ready[k]->source].given;
    shuffle(ready + begin, n_ready - begin);
}

/* Wait for the whole block, or for the lanes of a mask. */
__noinline__ inline uint64_t meet(State state, const char *meeting, int line, unsigned mask, uint64_t given, int source)
{
    Fiber *self = current;
    const unsigned rank = (unsigned)(self - fibers);
    self->state = state, self->meeting = meeting, self->line = line;
    self->mask = mask, self->given = given, self->source = source;
    if (state == IN_WARP) {
        unsigned &waiting = waiting_lanes[rank / 32];
        waiting |= 1u << rank % 32;
        if (!(mask >> rank % 32 & 1))
            give_up(line, "a lane that is not in the mask");
        if ((waiting & mask) == mask) {
            exchange(self - rank % 32, *self);
            waiting &= ~mask;
        }
    }
    suspend();
    return self->got;
}

/* Everybody waits for somebody: all at one barrier, or it is a mistake. */
inline bool release_barrier()
{
    const Fiber *stuck = nullptr;
    unsigned n = 0;
    for (unsigned k = 0; k < n_threads; k++)
        if (fibers[k].state == IN_WARP || (fibers[k].state == AT_BARRIER && !stuck))
            stuck = &fibers[k];
    for (unsigned k = 0; k < n_threads; k++)
        n += fibers[k].state == stuck->state && fibers[k].line == stuck->line;
    if (stuck->state == AT_BARRIER && n == n_threads)
        return make_all_ready();
    char what[80];
    snprintf(what, sizeof what, "only %u threads come to %s", n, stuck->meeting);
    return fail(stuck->line, what);
}

inline bool run_block()
{
    unsigned char *walls[] = {shared_memory, dynamic_shared() + shared_bytes};
    memset(dynamic_shared(), 0xff, shared_bytes);
    memset(__start_skbn_shared, 0xff, __stop_skbn_shared - __start_skbn_shared);
    memset(waiting_lanes, 0, sizeof waiting_lanes);
    for (unsigned k = 0; k < WALL; k++)
        walls[0][k] = walls[1][k] = (unsigned char)(WALL_BYTES >> 8 * (k % 2));
    n_done = 0;
    make_all_ready();
    while (n_done < n_threads) {
        if (n_ready == 0 && !release_barrier())
            return false;
        if (!far_apart)
            std::swap(ready[drawn(n_ready)], ready[n_ready - 1]);
        resume(ready[--n_ready]);
        if (failure[0])
            return false;
    }
    for (unsigned k = 0; k < 2 * WALL; k++)
        if (walls[k / WALL][k % WALL] != (unsigned char)(WALL_BYTES >> 8 * (k % 2)))
            return fail(0, "a thread writes outside of its block's shared memory");
    return true;
}

/* Run a grid, whose dimensions and the block's are given. Returns what went wrong, or NULL. */
inline const char *launch(void (*kernel)(void **), const unsigned *g, size_t shared, void **values, uint64_t seed)
{
    gridDim = {g[0], g[1], g[2]}, blockDim = {g[3], g[4], g[5]};
    body = kernel, arguments = values, shared_bytes = shared, random_state = seed, failure[0] = 0;
    const unsigned n_blocks = g[0] * g[1] * g[2];
    n_threads = g[3] * g[4] * g[5];
    create_fibers(n_threads);
    for (unsigned k = 0; k < n_threads; k++)
        fibers[k].thread = {k % g[3], k / g[3] % g[4], k / g[3] / g[4]};
    unsigned *order = new unsigned[n_blocks];
    for (unsigned k = 0; k < n_blocks; k++)
        order[k] = k;
    shuffle(order, n_blocks);
    struct sigaction ours = {}, theirs;
    ours.sa_handler = no_such_memory;
    ours.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &ours, &theirs);
    bool good = true;
    for (unsigned k = 0; k < n_blocks && good; k++) {
        blockIdx = {order[k] % g[0], order[k] / g[0] % g[1], order[k] / g[0] / g[1]};
        good = run_block();
    }
    sigaction(SIGSEGV, &theirs, nullptr);
    delete[] order;
    if (!good)
        n_fibers = 0; /* some are in the middle of a kernel */
    return good ? nullptr : failure;
}

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
    (describe<typename std::remove_cv<A>::type>(end), ...);
    return text;
}

template <class... A, size_t... I> void call(void (*kernel)(A...), void **values, std::index_sequence<I...>)
{
    kernel(*static_cast<typename std::remove_cv<A>::type *>(values[I])...);
}

template <class... A> void call(void (*kernel)(A...), void **values)
{
    call(kernel, values, std::index_sequence_for<A...>());
}

} // namespace shim

/* What Python calls: for every kernel, and once. */
#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))
#define SHIM_KERNEL(name, bounds) \
    SHIM_EXPORT const char *launch_##name(const unsigned *g, size_t shared, void **values, uint64_t seed) \
    { \
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
    SHIM_ATOMIC(atomicMin, type, v < old ? v : old) \
    SHIM_ATOMIC(atomicOr, type, old | v) \
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
inline int __float_as_int(float x) { return shim_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
inline float __int_as_float(int x) { return shim_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
inline long long __double_as_longlong(double x) { return shim_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return shim_bits<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

/* The sanitizer's reports, which begin with a place in the source, are errors of the launch. */
namespace shim {
struct Place {
    const char *file;
    unsigned line, column;
};
} // namespace shim
#define SHIM_REPORT(name) \
    extern "C" void __ubsan_handle_##name(const shim::Place *place, ...) \
    { \
        shim::give_up((int)place->line, "undefined behaviour: " #name); \
    }
SHIM_REPORT(add_overflow) SHIM_REPORT(sub_overflow) SHIM_REPORT(mul_overflow) SHIM_REPORT(negate_overflow)
SHIM_REPORT(divrem_overflow) SHIM_REPORT(shift_out_of_bounds) SHIM_REPORT(out_of_bounds) SHIM_REPORT(type_mismatch_v1)
SHIM_REPORT(float_cast_overflow) SHIM_REPORT(builtin_unreachable) SHIM_REPORT(missing_return)

#endif
