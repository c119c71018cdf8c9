/* SPDX-License-Identifier: BSD-3-Clause
 *
 * CUDA for one processor: kernels compile as C++17 behind this header, and their logic can be tested without a card.
 *
 * A thread of a block is a fiber. It runs until it meets others (a barrier, a shuffle), and which one is next is drawn
 * from a seed, as is the order of the blocks: what depends on an order that CUDA does not promise changes with the
 * seed. Shared memory is full of 0xFF, NaN for floats, when a block begins. What would be undefined on a card is an
 * error that names the line: meetings that not everybody reaches, shuffles with the absent, and, by the compiler's
 * sanitizer, indices, overflows and misaligned addresses.
 *
 * Atomics are for integers only, like in our kernels. Blocks run one after the other, so they cannot wait for each other.
 */
#ifndef SKBN_SHIM_H
#define SKBN_SHIM_H

#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <math.h>
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

#define VECTORS(type, name, alignment) \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; }; \
    struct name##3 { type x, y, z; }; \
    struct alignas(alignment) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float, 16)
VECTORS(double, double, 16)
VECTORS(int, int, 16)
VECTORS(unsigned, uint, 16)
VECTORS(long long, longlong, 16)
VECTORS(unsigned char, uchar, 4)
#undef VECTORS

struct dim3 { unsigned x, y, z; };
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/* Fibers. */

namespace shim {

constexpr unsigned MOST_THREADS = 1024, WALL = 512, MOST_SHARED = 1 << 18;
constexpr size_t STACK = 1 << 16;

/* Signalling NaN: arithmetic changes its bits, so a wall that was read, computed with and written shows it. */
constexpr unsigned WALL_BYTES = sizeof(real) == 4 ? 0xffb5 : 0xfff5;

enum State { READY, AT_BARRIER, IN_WARP, DONE };

struct Fiber {
    jmp_buf context;
    uint3 thread;
    State state;
    const char *meeting; /* what it waits for, and where */
    int line, source;
    unsigned mask;
    uint64_t given, got;
};

inline Fiber fibers[MOST_THREADS], *current, *ready[MOST_THREADS];
inline unsigned present[MOST_THREADS / 32]; /* the lanes of each warp that wait for other lanes */
inline unsigned n_fibers, n_threads, n_ready, n_done; /* n_fibers: how many have a stack and are ready to begin */
inline bool far_apart;
inline jmp_buf scheduler;
inline ucontext_t creator;
inline unsigned char *stacks;
inline void (*body)(void **);
inline void **arguments;
inline char failure[512];
inline uint64_t random_state;
inline size_t shared_bytes;
alignas(128) inline unsigned char shared_memory[WALL + MOST_SHARED + WALL];

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

/* Until somebody resumes the fiber. noinline: what runs behind a jump must have its own frame. */
__noinline__ inline void suspend()
{
    if (!_setjmp(current->context))
        _longjmp(scheduler, 1);
    asm volatile("" ::: "memory"); /* others ran: nothing that the compiler has in registers still holds */
}

__noinline__ inline void resume(Fiber *fiber)
{
    current = fiber;
    threadIdx = fiber->thread;
    if (!_setjmp(scheduler))
        _longjmp(fiber->context, 1);
}

__attribute__((format(printf, 1, 2))) inline void note_failure(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (!failure[0])
        vsnprintf(failure, sizeof failure, format, list);
    va_end(list);
}

/* End the launch from inside a thread. */
[[noreturn]] inline void fail(const char *what, int line)
{
    const uint3 t = current->thread, b = blockIdx;
    note_failure("line %d: %s; thread (%u, %u, %u) of block (%u, %u, %u)", line, what, t.x, t.y, t.z, b.x, b.y, b.z);
    _longjmp(scheduler, 1);
}

inline void fiber_main()
{
    Fiber *self = current;
    ucontext_t unused;
    if (!_setjmp(self->context))
        swapcontext(&unused, &creator);
    for (;;) {
        body(arguments);
        self->state = DONE;
        n_done++;
        suspend();
    }
}

inline bool create_fibers(unsigned n)
{
    if (!stacks) {
        void *memory = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return false;
        stacks = static_cast<unsigned char *>(memory);
    }
    for (; n_fibers < n; n_fibers++) {
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks + n_fibers * STACK;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, fiber_main, 0);
        current = &fibers[n_fibers];
        swapcontext(&creator, &context);
    }
    return true;
}

inline void make_ready(Fiber *fiber)
{
    fiber->state = READY;
    ready[n_ready++] = fiber;
}

/* At the beginning and behind a barrier: a new order, and a new habit. */
inline void make_all_ready()
{
    const unsigned n_warps = (n_threads + 31) / 32;
    unsigned warps[MOST_THREADS / 32];
    for (unsigned k = 0; k < n_warps; k++)
        warps[k] = k;
    shuffle(warps, n_warps);
    n_ready = 0;
    for (unsigned k = 0; k < n_warps; k++) {
        const unsigned begin = n_ready;
        for (unsigned lane = 32 * warps[k]; lane < n_threads && lane < 32 * warps[k] + 32; lane++)
            make_ready(&fibers[lane]);
        shuffle(ready + begin, n_ready - begin);
    }
    far_apart = drawn(2); /* the last that became ready is next: a warp runs as far ahead of the others as it can */
}

/* Wait for the whole block, or for the lanes of a mask; a lane brings a value and names the lane whose value it wants,
 * -1 for a ballot. */
__noinline__ inline uint64_t meet(State state, const char *meeting, int line, unsigned mask, uint64_t given, int source)
{
    Fiber *self = current;
    const unsigned rank = self - fibers, lane = rank % 32;
    Fiber *warp = self - lane;
    self->state = state, self->meeting = meeting, self->line = line, self->mask = mask;
    self->given = given, self->source = source;
    if (state == IN_WARP) {
        unsigned &here = present[rank / 32], ballot = 0, n_lanes = 0;
        here |= 1u << lane;
        if (!(mask >> lane & 1))
            fail("a lane that is not in the mask", line);
        if ((here & mask) == mask) {
            for (unsigned k = 0; k < 32; k++)
                if (mask >> k & 1) {
                    if (warp[k].line != line || warp[k].mask != mask || strcmp(warp[k].meeting, meeting))
                        fail("the lanes of a warp meet in different functions, lines or masks", line);
                    if (warp[k].source >= 0 && !(mask >> warp[k].source & 1))
                        fail("a lane wants the value of one that is not in the mask", line);
                    ballot |= (unsigned)(warp[k].given != 0) << k;
                    make_ready(warp + k);
                    n_lanes++;
                }
            for (unsigned k = n_ready - n_lanes; k < n_ready; k++)
                ready[k]->got = ready[k]->source < 0 ? ballot : warp[ready[k]->source].given;
            here &= ~mask;
            shuffle(ready + n_ready - n_lanes, n_lanes);
        }
    }
    suspend();
    return self->got;
}

/* Everybody waits for somebody else: a barrier that all have reached, or a mistake. */
inline bool release_barrier()
{
    Fiber *waiting = nullptr;
    unsigned n_at_barrier = 0;
    for (unsigned k = 0; k < n_threads; k++)
        if (fibers[k].state == IN_WARP || (fibers[k].state == AT_BARRIER && !waiting))
            waiting = &fibers[k];
    for (unsigned k = 0; k < n_threads; k++)
        n_at_barrier += fibers[k].state == waiting->state && fibers[k].line == waiting->line;
    if (waiting->state == IN_WARP || n_at_barrier != n_threads) {
        note_failure("line %d: only %u threads of block (%u, %u, %u) come to %s", waiting->line, n_at_barrier,
                     blockIdx.x, blockIdx.y, blockIdx.z, waiting->meeting);
        return false;
    }
    make_all_ready();
    return true;
}

/* The linker knows where static shared memory begins and ends, once there is any. */
__shared__ __attribute__((used)) unsigned char some_shared[16];
extern "C" unsigned char __start_skbn_shared[], __stop_skbn_shared[];

inline bool run_block()
{
    unsigned char *behind = dynamic_shared() + shared_bytes;
    memset(dynamic_shared(), 0xff, shared_bytes);
    for (unsigned k = 0; k < WALL; k++)
        shared_memory[k] = behind[k] = WALL_BYTES >> 8 * (k % 2);
    memset(__start_skbn_shared, 0xff, __stop_skbn_shared - __start_skbn_shared);
    memset(present, 0, sizeof present);
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
    for (unsigned k = 0; k < WALL; k++)
        if ((shared_memory[k] ^ WALL_BYTES >> 8 * (k % 2)) & 0xff || behind[k] != shared_memory[k]) {
            note_failure("block (%u, %u, %u) writes outside its shared memory", blockIdx.x, blockIdx.y, blockIdx.z);
            return false;
        }
    return true;
}

/* Run a grid; the dimensions are the grid's and the block's. Returns what went wrong, or NULL. */
inline const char *launch(void (*kernel)(void **), const unsigned *dimensions, size_t shared, void **values, uint64_t seed)
{
    const unsigned *g = dimensions, *b = dimensions + 3, n_blocks = g[0] * g[1] * g[2];
    gridDim = {g[0], g[1], g[2]}, blockDim = {b[0], b[1], b[2]};
    body = kernel, arguments = values, shared_bytes = shared, random_state = seed, failure[0] = 0;
    n_threads = b[0] * b[1] * b[2];
    if (!create_fibers(n_threads))
        return "no memory for the fibers' stacks";
    for (unsigned k = 0; k < n_threads; k++)
        fibers[k].thread = {k % b[0], k / b[0] % b[1], k / b[0] / b[1]};
    unsigned *order = new unsigned[n_blocks];
    for (unsigned k = 0; k < n_blocks; k++)
        order[k] = k;
    shuffle(order, n_blocks);
    bool good = true;
    for (unsigned k = 0; k < n_blocks && good; k++) {
        blockIdx = {order[k] % g[0], order[k] / g[0] % g[1], order[k] / g[0] / g[1]};
        good = run_block();
    }
    delete[] order;
    if (!good)
        n_fibers = 0; /* some are in the middle of a kernel */
    return good ? nullptr : failure;
}

/* What a kernel's arguments are: p and the pointee's kind and size for pointers, i8 and f8. */

template <class T> void describe(char *&text)
{
    if (std::is_pointer<T>::value) {
        using P = typename std::remove_cv<typename std::remove_pointer<T>::type>::type;
        using Sized = typename std::conditional<std::is_void<P>::value, char, P>::type;
        const char kind = std::is_floating_point<P>::value ? 'f' : std::is_integral<P>::value ? 'i' : 'V';
        text += sprintf(text, "p%c%d ", kind, (int)sizeof(Sized));
    } else {
        constexpr bool integer = std::is_integral<T>::value && std::is_signed<T>::value && sizeof(T) == 8;
        static_assert(std::is_pointer<T>::value || integer || std::is_same<T, double>::value,
                      "a kernel's arguments are pointers, int64_t and double");
        text += sprintf(text, "%c8 ", integer ? 'i' : 'f');
    }
}

template <class... A> const char *described(void (*)(A...))
{
    static char text[8 * sizeof...(A) + 8];
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

struct SourceLocation { /* what the sanitizer's reports begin with */
    const char *file;
    unsigned line, column;
};

} // namespace shim

/* What Python calls, for a kernel and for a file. */
#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))
#define SHIM_KERNEL(name, bounds) \
    SHIM_EXPORT const char *launch_##name(const unsigned *dimensions, size_t shared, void **values, uint64_t seed) \
    { \
        return shim::launch([](void **v) { shim::call(name, v); }, dimensions, shared, values, seed); \
    } \
    SHIM_EXPORT const char *arguments_##name() { return shim::described(name); } \
    SHIM_EXPORT int bounds_##name() { return bounds; }
#define SHIM_FILE \
    SHIM_EXPORT size_t static_shared() \
    { \
        return shim::__stop_skbn_shared - shim::__start_skbn_shared - sizeof shim::some_shared; \
    }

/* Meetings. */

constexpr unsigned SHIM_ALL = 0xffffffffu;

inline void __syncthreads(int line = __builtin_LINE())
{
    shim::meet(shim::AT_BARRIER, "__syncthreads", line, 0, 0, 0);
}
inline void __syncwarp(unsigned mask = SHIM_ALL, int line = __builtin_LINE())
{
    shim::meet(shim::IN_WARP, "__syncwarp", line, mask, 0, -1);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
    return (unsigned)shim::meet(shim::IN_WARP, "__ballot_sync", line, mask, predicate != 0, -1);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
    return shim::meet(shim::IN_WARP, "__any_sync", line, mask, predicate != 0, -1) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE())
{
    return shim::meet(shim::IN_WARP, "__all_sync", line, mask, predicate != 0, -1) == mask;
}

/* `source` is the lane within a segment of `width` lanes; a lane that asks for one outside gets its own value. */
#define SHIM_SHUFFLE(name, parameter, source) \
    template <class T> T name(unsigned mask, T value, parameter, int width = 32, int line = __builtin_LINE()) \
    { \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name " moves 4 or 8 bytes"); \
        const int own = (int)(shim::current - shim::fibers) % 32, lane = own % width, from = source; \
        uint64_t bits = 0; \
        memcpy(&bits, &value, sizeof value); \
        bits = shim::meet(shim::IN_WARP, #name, line, mask, bits, from < 0 || from >= width ? own : own - lane + from); \
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

#define SHIM_ATOMICS(type) \
    inline type atomicAdd(type *p, type v) { type old = *p; return *p = (type)((unsigned long long)old + v), old; } \
    inline type atomicMax(type *p, type v) { type old = *p; return *p = old < v ? v : old, old; } \
    inline type atomicMin(type *p, type v) { type old = *p; return *p = v < old ? v : old, old; } \
    inline type atomicOr(type *p, type v) { type old = *p; return *p = old | v, old; } \
    inline type atomicExch(type *p, type v) { type old = *p; return *p = v, old; } \
    inline type atomicCAS(type *p, type same, type v) { type old = *p; return *p = old == same ? v : old, old; }
SHIM_ATOMICS(int)
SHIM_ATOMICS(unsigned)
SHIM_ATOMICS(unsigned long long)

/* Numbers; the rest is <math.h>, whose names C++ overloads for float as CUDA does. */

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }
template <> inline float min(float a, float b) { return fminf(a, b); }
template <> inline float max(float a, float b) { return fmaxf(a, b); }
template <> inline double min(double a, double b) { return fmin(a, b); }
template <> inline double max(double a, double b) { return fmax(a, b); }

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

/* The sanitizer's reports, in place of its library: they are errors of the launch. */
#define REPORT(name) \
    extern "C" void __ubsan_handle_##name(const shim::SourceLocation *where, ...) \
    { \
        shim::fail("undefined behaviour: " #name, (int)where->line); \
    }
REPORT(add_overflow) REPORT(sub_overflow) REPORT(mul_overflow) REPORT(negate_overflow) REPORT(divrem_overflow)
REPORT(shift_out_of_bounds) REPORT(out_of_bounds) REPORT(type_mismatch_v1) REPORT(pointer_overflow)
REPORT(float_cast_overflow) REPORT(load_invalid_value) REPORT(builtin_unreachable) REPORT(missing_return)
REPORT(invalid_builtin) REPORT(nonnull_arg) REPORT(vla_bound_not_positive) REPORT(alignment_assumption)
#undef REPORT

#endif
