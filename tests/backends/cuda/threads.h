/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A grid of CUDA's threads on one processor; shim.h says what for.
 *
 * A thread is a fiber. It runs until it meets others, at a barrier or in a shuffle; who is next is drawn from a seed,
 * as is the order of the blocks, which run one after the other. A meeting that not everybody comes to ends the launch
 * with an error.
 */
#ifndef SKBN_THREADS_H
#define SKBN_THREADS_H

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

struct dim3 { unsigned x, y, z; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

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

/* Static shared memory has a section of its own, and the linker says where that lies once there is something in it. */
#define SHIM_STATIC_SHARED static __attribute__((section("skbn_shared")))
SHIM_STATIC_SHARED __attribute__((used)) unsigned char some_shared[16];
extern "C" unsigned char __start_skbn_shared[], __stop_skbn_shared[];

inline unsigned char *dynamic_shared() { return shared_memory + WALL; }

inline unsigned drawn(unsigned n) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (unsigned)(((z ^ (z >> 31)) >> 32) * n >> 32);
}

template <class T> void swap(T &a, T &b)
{
    const T old = a;
    a = b;
    b = old;
}

template <class T> void shuffle(T *items, unsigned n)
{
    for (unsigned i = n; i > 1; i--)
        swap(items[i - 1], items[drawn(i)]);
}

/* Jumps from stack to stack; what lies behind a jump needs a frame of its own. */
__attribute__((noinline)) inline void suspend()
{
    if (!_setjmp(current->context))
        _longjmp(scheduler, 1);
    asm volatile("" ::: "memory"); /* others ran: what the compiler has in registers is old */
}

__attribute__((noinline)) inline void resume(Fiber *fiber)
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
__attribute__((noinline)) inline uint64_t meet(
    State state, const char *meeting, int line, unsigned mask, uint64_t given, int source)
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
            swap(ready[drawn(n_ready)], ready[n_ready - 1]);
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

struct Place { /* what the sanitizer's reports begin with */
    const char *file;
    unsigned line, column;
};

} // namespace shim

#endif
