/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A team: threads that walk the layer table together and share out the tiles of every stage.
 *
 * Each worker takes the next tile that nobody has; when none is left they meet, and go on when all have come. So a
 * thread whose core another process wants costs its own tile, not half of the work. Who takes which tile is left to
 * chance: a tile's bits are its own. A worker alone counts tiles in a register and meets nobody.
 *
 * OpenMP's own loops and barriers were rejected: where they wait they spin, for milliseconds, and keep the
 * thread that they wait for from the core they spin on.
 */
#ifndef SKBN_TEAM_H
#define SKBN_TEAM_H

#include <stddef.h>

#if defined(_OPENMP) && defined(__GNUC__)
#include <omp.h>
#include <time.h>
#define SKBN_HAS_TEAMS 1
#else
#define SKBN_HAS_TEAMS 0
#endif

/* How often a worker looks whether the others have come before it begins to sleep: some 100 us, more than tiles of equal
 * size differ by. */
enum { SKBN_SPINS = 4000, SKBN_NAP_NANOSECONDS = 20000 };

typedef struct {
    ptrdiff_t next;         /* the tile that nobody has */
    char apart[56];         /* no false sharing */
    int arrived;            /* workers that wait */
    int round;              /* meetings so far */
    int wants_to_stop;      /* set by the leader; all hear of it at the same meeting */
    int is_stopped;
    long long worked;       /* nanoseconds for which workers had a core, spinning included */
} skbn_team;

typedef struct {
    skbn_team *team;        /* NULL: alone */
    int number;             /* 0 is the leader */
    int size;
    void *room;             /* memory of this worker alone */
} skbn_worker;

#if SKBN_HAS_TEAMS
static inline int skbn_workers_here(void) { return omp_get_num_threads(); }
static inline ptrdiff_t skbn_take(skbn_team *team) { return __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED); }

/* Spin for a moment, then sleep until the others have come. */
static void skbn_wait(const skbn_team *team, int round) {
    const struct timespec nap = {0, SKBN_NAP_NANOSECONDS};
    for (int spins = 0; __atomic_load_n(&team->round, __ATOMIC_ACQUIRE) == round; spins++) {
        if (spins >= SKBN_SPINS) nanosleep(&nap, NULL);
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#elif defined(__aarch64__)
        else __asm__ volatile("isb");
#endif
    }
}

static void skbn_gather(skbn_team *team, int size) {
    int round = __atomic_load_n(&team->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) < size) {
        skbn_wait(team, round);
        return;
    }
    team->arrived = 0;
    team->next = 0;
    team->is_stopped = team->wants_to_stop;
    __atomic_store_n(&team->round, round + 1, __ATOMIC_RELEASE);
}

/* The time for which this thread had a core. */
static inline long long skbn_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
static inline void skbn_report(skbn_team *team, long long nanoseconds) {
    __atomic_fetch_add(&team->worked, nanoseconds, __ATOMIC_RELAXED);
}
#else
static inline int skbn_workers_here(void) { return 1; }
static inline long long skbn_clock(void) { return 0; }
static inline void skbn_report(skbn_team *team, long long nanoseconds) { (void) team; (void) nanoseconds; }
static inline ptrdiff_t skbn_take(skbn_team *team) { return team->next++; }
static void skbn_gather(skbn_team *team, int size) { (void) team; (void) size; }
#endif

/* for (tile = first_tile(me); tile < n_tiles; tile = next_tile(me, tile)) ...; meet(me); */
static inline ptrdiff_t skbn_first_tile(const skbn_worker *me) { return me->size == 1 ? 0 : skbn_take(me->team); }
static inline ptrdiff_t skbn_next_tile(const skbn_worker *me, ptrdiff_t tile) {
    return me->size == 1 ? tile + 1 : skbn_take(me->team);
}
static inline void skbn_meet(const skbn_worker *me) {
    if (me->size > 1) skbn_gather(me->team, me->size);
}

#endif
