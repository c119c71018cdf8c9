# SPDX-License-Identifier: BSD-3-Clause
"""Threads that walk the layer table together (team.h)."""

cdef extern from "cpu/team.h" nogil:
    enum:
        SKBN_HAS_TEAMS
    ctypedef struct Team "skbn_team":
        bint wants_to_stop
        bint is_stopped
        long long worked
    ctypedef struct Worker "skbn_worker":
        Team* team
        int number
        int size
        void* room
    long long clock "skbn_clock"() noexcept
    void report "skbn_report"(Team* team, long long nanoseconds) noexcept
    int workers_here "skbn_workers_here"() noexcept
    Py_ssize_t first_tile "skbn_first_tile"(const Worker* me) noexcept
    Py_ssize_t next_tile "skbn_next_tile"(const Worker* me, Py_ssize_t tile) noexcept
    void meet "skbn_meet"(const Worker* me) noexcept


cdef inline Py_ssize_t count_tiles(Py_ssize_t size, Py_ssize_t tile) noexcept nogil:
    """Tiles of so much, the last of which may be smaller."""
    return (size + tile - 1) // tile


cdef inline Py_ssize_t rows_of_tile(Py_ssize_t stride) noexcept nogil:
    """Rows that elementwise work takes at a time: enough to be worth taking, few enough to go round."""
    return max(<Py_ssize_t> 1, 16384 // stride)


cdef inline Py_ssize_t fair_share(
    const Worker* me, Py_ssize_t size, Py_ssize_t step, Py_ssize_t least, Py_ssize_t most,
) noexcept nogil:
    """How much of something a tile takes where bits do not depend on it: in a team a quarter of a worker's part."""
    if me.size == 1:
        return most
    return max(least, min(most, (size // (4 * me.size) + step - 1) // step * step))
