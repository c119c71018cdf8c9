# SPDX-License-Identifier: BSD-3-Clause
"""What the processor and the build can do: instruction level and OpenMP. The only file that asks OpenMP anything."""

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int skbn_openmp(void) { return 1; }
    static int skbn_max_threads(void) { return omp_get_max_threads(); }
    static size_t skbn_openmp_address(void) { return (size_t) omp_get_max_threads; }
    #else
    static int skbn_openmp(void) { return 0; }
    static int skbn_max_threads(void) { return 1; }
    static size_t skbn_openmp_address(void) { return 0; }
    #endif
    #if defined(__x86_64__) && defined(__GNUC__)
    static int skbn_x86_64_v3(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
            && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    }
    static int skbn_x86_64_v4(void) {
        return skbn_x86_64_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int skbn_x86_64_v3(void) { return 0; }
    static int skbn_x86_64_v4(void) { return 0; }
    #endif
    """
    int skbn_openmp()
    int skbn_max_threads()
    size_t skbn_openmp_address()
    int skbn_x86_64_v3()
    int skbn_x86_64_v4()


def has_openmp():
    """Whether the package was built with OpenMP."""
    return bool(skbn_openmp())


def openmp_max_threads():
    """Threads that OpenMP would use now: OMP_NUM_THREADS and limits set at run time count."""
    return skbn_max_threads()


def openmp_address():
    """Where ``omp_get_max_threads`` lies, which tells OpenMP libraries in one process apart; 0 without OpenMP."""
    return skbn_openmp_address()


def instruction_levels():
    """Levels that the executor is compiled for and this processor runs, the best last."""
    levels = ["baseline"]
    if skbn_x86_64_v3():
        levels.append("x86_64_v3")
    if skbn_x86_64_v4():
        levels.append("x86_64_v4")
    return levels
