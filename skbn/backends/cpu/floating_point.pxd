# SPDX-License-Identifier: BSD-3-Clause
"""Flush denormal numbers to zero for the length of a call.

Denormals in a vanishing gradient make arithmetic a hundred times slower and carry no information. The mode belongs to
the thread: whoever sets it restores it before returning.
"""

cdef extern from *:
    """
    #if defined(__SSE2__) || defined(_M_X64)
    #include <xmmintrin.h>
    static inline unsigned long long skbn_flush_denormals(void) {
        unsigned int mode = _mm_getcsr();
        _mm_setcsr(mode | 0x8040u);     /* flush-to-zero, denormals-are-zero */
        return mode;
    }
    static inline void skbn_restore_mode(unsigned long long mode) { _mm_setcsr((unsigned int) mode); }
    #elif defined(__aarch64__) && defined(__GNUC__)
    static inline unsigned long long skbn_flush_denormals(void) {
        unsigned long long mode;
        __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
        __asm__ __volatile__("msr fpcr, %0" : : "r"(mode | (1ull << 24)));
        return mode;
    }
    static inline void skbn_restore_mode(unsigned long long mode) {
        __asm__ __volatile__("msr fpcr, %0" : : "r"(mode));
    }
    #else
    static inline unsigned long long skbn_flush_denormals(void) { return 0; }
    static inline void skbn_restore_mode(unsigned long long mode) { (void) mode; }
    #endif
    """
    unsigned long long flush_denormals "skbn_flush_denormals"() noexcept nogil
    void restore_mode "skbn_restore_mode"(unsigned long long mode) noexcept nogil
