"""The simulated card finds what would be wrong on a card: each mistake is made once, on purpose.

Kernels are strings here; what the package's own kernels compute is judged elsewhere.
"""
# SPDX-License-Identifier: BSD-3-Clause

import ctypes
import gc
import inspect
import operator
import pickle
import re

import numpy as np
import pytest
from shim import Kernel
from simulated_card import SimulatedArray, SimulatedCard, check, compiler

from skbn.backends.cuda import card as cards
from skbn.backends.cuda import sources

if not compiler()[0]:
    pytest.skip(compiler()[1], allow_module_level=True)

ORDERS = range(20)  # enough seeds to see an order that hides nothing


def header(name):
    """Return the text of a header without those that it includes."""
    path = next(folder / name for folder in sources.HEADERS if (folder / name).exists())
    return re.sub(r'#include ".*\n', "", path.read_text(encoding="utf-8"))


def kernel(declaration, body, dtype="float64", bounds=1024, before=""):
    """Compile a kernel given as a string."""
    head = f'{before}\nextern "C" __global__ void __launch_bounds__({bounds})'
    text = f"{header('records.h')}{header('real.cuh')}{head} test({declaration})\n{{\n{body}\n}}\n"
    return Kernel(text, ("test",), "test", dtype)


@pytest.fixture
def card():
    made = SimulatedCard()
    yield made
    check(made)


def run(declaration, body, out, *arguments, grid=(1,), block=(64,), shared=0, seed=0, **options):
    """Run a kernel over a vector that begins as zeros, and return the vector."""
    card = SimulatedCard(seed)
    x = card.upload(np.zeros(out, options.pop("out_dtype", np.float64)))
    given = [card.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
    made = kernel(declaration, body, **options)
    card.launch(made, grid, block, (x, *given), shared)
    check(card)
    return card.read(x)


def outcomes(*args, **kwargs):
    """Return what a kernel computes in many orders, as a set of bytes."""
    return {run(*args, seed=seed, **kwargs).tobytes() for seed in ORDERS}


# Where a thread is.


def test_every_thread_runs_once_and_knows_where_it_is():
    grid, block = (2, 3, 4), (4, 2, 3)
    body = """
        int64_t b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int64_t t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        x[b * blockDim.x * blockDim.y * blockDim.z + t] += 1;
    """
    assert (run("double *x", body, 24 * 24, grid=grid, block=block) == 1).all()


def test_blocks_and_threads_run_in_an_order_that_the_seed_draws():
    body = "x[thread_of_grid()] = atomicAdd(count, 1);"
    count = np.zeros(1, np.int32)
    declaration = "double *x, int *count"
    seen = outcomes(declaration, body, 12, count, grid=(3,), block=(4,))
    assert len(seen) == len(ORDERS)
    for order in map(np.frombuffer, seen):
        assert sorted(order) == list(range(12))
        assert all(np.ptp(block) == 3 for block in order.reshape(3, 4))  # one block after the other


# Barriers.

REVERSE = """
    __shared__ double of_thread[64];
    of_thread[threadIdx.x] = threadIdx.x;
    {barrier}
    x[threadIdx.x] = of_thread[63 - threadIdx.x];
"""


def test_a_barrier():
    out = run("double *x", REVERSE.format(barrier="__syncthreads();"), 64)
    assert out.tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_shows():
    seen = outcomes("double *x", REVERSE.format(barrier=""), 64)
    assert len(seen) > 1
    assert all(np.isnan(np.frombuffer(out)).any() for out in seen)


def two_sums(sums):
    """Two sums over a block, one behind the other."""
    body = "double a = sum_over_block(x[threadIdx.x]); x[threadIdx.x] = sum_over_block(a + 1);"
    return outcomes("double *x", body, 128, block=(128,), before=sums)


def test_a_missing_barrier_before_shared_memory_is_used_again_shows():
    sums = header("sums.cuh")
    barrier = "__syncthreads(); /* somebody may still read the last sum */"
    assert sums.count(barrier) == 1
    assert len(two_sums(sums)) == 1
    assert len(two_sums(sums.replace(barrier, ""))) > 1


def test_a_missing_barrier_within_a_warp_shows():
    body = """
        __shared__ int of_lane[32];
        of_lane[threadIdx.x] = threadIdx.x;
        {}
        x[threadIdx.x] = of_lane[threadIdx.x ^ 1];
    """
    assert len(outcomes("double *x", body.format("__syncwarp();"), 32, block=(32,))) == 1
    assert len(outcomes("double *x", body.format(""), 32, block=(32,))) > 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 40) __syncthreads();", "only 40 threads come to __syncthreads"),
        (
            "if (threadIdx.x == 3) return;\n__syncthreads();",
            "only 63 threads come to __syncthreads",
        ),
        (
            "if (threadIdx.x < 32) __syncthreads();\nelse __syncthreads();",
            "only 32 threads come to __syncthreads; block .*: (if|else)",
        ),
        ("if (threadIdx.x % 32 == 0) __syncwarp();", "only 2 threads come to __syncwarp"),
        (
            "if (threadIdx.x % 32 != 5) x[0] = __shfl_sync(0xffffffffu, 1, 0);",
            "only 62 threads come to __shfl_sync",
        ),
        (
            "if (threadIdx.x == 5) __syncthreads();\n__syncwarp();",
            "only 31 threads come to __syncwarp",
        ),
        (
            "if (threadIdx.x % 2) __any_sync(0xffffffffu, 1);\nelse __ballot_sync(0xffffffffu, 1);",
            "different functions, lines or masks",
        ),
        ("__syncwarp(1);", "a lane that is not in the mask"),
        (
            "if (threadIdx.x % 2) x[0] = __shfl_xor_sync(0xaaaaaaaau, 1, 1);",
            "wants the value of one that is not in the mask",
        ),
    ],
)
def test_a_meeting_that_somebody_misses_is_an_error(body, message):
    for order in ORDERS:
        with pytest.raises(RuntimeError, match=rf"test \(float64\), grid .*{message}"):
            run("double *x", body, 64, seed=order)


def test_half_a_warp_is_not_enough():
    with pytest.raises(RuntimeError, match=r"only 16 threads come to __shfl_xor_sync"):
        run("double *x", "x[0] = __shfl_xor_sync(0xffffffffu, 1, 1);", 48, block=(48,))


def test_after_an_error_the_next_launch_is_as_good_as_ever():
    body = "if (threadIdx.x != where) __syncthreads();\nx[threadIdx.x] = threadIdx.x;"
    for where in (5, 64, 7, 64):
        if where < 64:
            with pytest.raises(RuntimeError, match="only 63 threads"):
                run("double *x, int64_t where", body, 64, where)
        else:
            out = run("double *x, int64_t where", body, 64, where)
            assert out.tolist() == list(range(64))


# Warps.


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize(
    ("call", "source"),
    [
        ("__shfl_sync(0xffffffffu, v, 5, {})", lambda lane, width: np.full_like(lane, 5)),
        ("__shfl_xor_sync(0xffffffffu, v, 3, {})", lambda lane, width: lane ^ 3),
        (
            "__shfl_down_sync(0xffffffffu, v, 3, {})",
            lambda lane, width: np.where(lane + 3 < width, lane + 3, lane),
        ),
        (
            "__shfl_up_sync(0xffffffffu, v, 3, {})",
            lambda lane, width: np.where(lane - 3 >= 0, lane - 3, lane),
        ),
    ],
)
@pytest.mark.parametrize("number", ["double", "float", "int64_t", "unsigned"])
def test_shuffles(call, source, width, number):
    body = f"{number} v = 1000 + threadIdx.x;\nx[threadIdx.x] = {call.format(width)};"
    thread = np.arange(96)
    lane = thread % width
    expected = 1000 + thread - lane + source(lane, width)
    np.testing.assert_array_equal(run("double *x", body, 96, block=(96,)), expected)


def test_votes():
    body = """
        x[threadIdx.x] = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
        x[32 + threadIdx.x] = __any_sync(0xffffffffu, threadIdx.x == 7);
        x[64 + threadIdx.x] = __any_sync(0xffffffffu, threadIdx.x == 77);
        x[96 + threadIdx.x] = __all_sync(0xffffffffu, threadIdx.x < 32);
        x[128 + threadIdx.x] = __all_sync(0xffffffffu, threadIdx.x < 31);
        unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
        x[160 + threadIdx.x] = __ballot_sync(half, 1);
    """
    out = run("double *x", body, 192, block=(32,)).reshape(6, 32)
    third = sum(1 << k for k in range(0, 32, 3))
    halves = [[0x0000FFFF] * 16 + [0xFFFF0000] * 16]
    np.testing.assert_array_equal(
        out, np.concatenate([np.outer([third, 1, 0, 1, 0], np.ones(32)), halves])
    )


def test_loops_of_warps_that_are_not_equally_long():
    body = """
        int n = 0;
        for (int k = 0; k <= (int)threadIdx.x / 32; k++)
            n += __popc(__ballot_sync(0xffffffffu, 1));
        __syncthreads();
        x[threadIdx.x] = n;
    """
    out = run("double *x", body, 128, block=(128,))
    np.testing.assert_array_equal(out, np.repeat([32, 64, 96, 128], 32))


# Shared memory.


def test_shared_memory_is_nan_when_a_block_begins():
    body = """
        SHARED_MEMORY(double, dynamic);
        __shared__ double fixed[64];
        x[thread_of_grid()] = isnan(dynamic[threadIdx.x]) && isnan(fixed[threadIdx.x]);
        dynamic[threadIdx.x] = fixed[threadIdx.x] = 1;
    """
    assert run("double *x", body, 192, grid=(3,), shared=512).all()


@pytest.mark.parametrize("place", [-1, 64])
@pytest.mark.parametrize("value", ["1", "s[{0}] + 1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_walls_of_shared_memory(place, value, dtype):
    body = f"SHARED_MEMORY(real, s);\nif (threadIdx.x == 0) s[{place}] = {value.format(place)};"
    shared = 64 * np.dtype(dtype).itemsize
    with pytest.raises(
        RuntimeError, match="a thread writes outside of its block's shared memory; block"
    ):
        run("double *x", body, 64, dtype=dtype, shared=shared)


def test_no_more_shared_memory_than_the_card_has():
    body = "__shared__ double fixed[64];\nfixed[threadIdx.x] = 1;\nx[0] = fixed[63 - threadIdx.x];"
    most = SimulatedCard().shared_memory
    run("double *x", body, 64, shared=most - 512)
    with pytest.raises(RuntimeError, match=r"INVALID_VALUE.*of static are more than"):
        run("double *x", body, 64, shared=most - 511)


# What is undefined.


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("__shared__ double s[64];\ns[threadIdx.x + n] = 1;", "out_of_bounds"),
        ("int k = 2147483647;\nx[0] = k + (int)n;", "add_overflow"),
        ("x[0] = 1 << (31 + n);", "shift_out_of_bounds"),
        ("x[0] = 1 / (int)(n - 1);", "divrem_overflow"),
        ("x[0] = (int)(1e10 * n);", "float_cast_overflow"),
        ("x[0] = reinterpret_cast<double2 *>(x + 1)->x;", "type_mismatch_v1"),
    ],
)
def test_undefined_behaviour_is_an_error_that_names_the_line(body, what):
    line = body.splitlines()[-1]
    with pytest.raises(RuntimeError) as caught:
        run("double *x, int64_t n", body, 64, 1)
    assert f"undefined behaviour: {what}" in str(caught.value)
    assert str(caught.value).endswith(line)


def test_addresses_that_nobody_has_are_errors():
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"no such memory; thread \(5, 0, 0\) of block"):
            run("double *x", "if (threadIdx.x == 5) x[1ll << 44] = 1;", 64)


@pytest.mark.parametrize("place", [-1, 64])
@pytest.mark.parametrize("value", ["1", "x[{0}] + 1"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_walls_of_arrays(place, value, dtype):
    body = f"if (threadIdx.x == 0) x[{place}] = {value.format(place)};"
    side = "before" if place < 0 else "behind"
    with pytest.raises(RuntimeError, match=f"argument 1 .* wrote {side} an array of"):
        run("real *x", body, 64, out_dtype=dtype, dtype=np.dtype(dtype).name)


def test_walls_are_looked_at_when_memory_is_read_or_gone(card):
    for end in ("read", "gone"):
        x = card.zeros(8, np.float64)
        address = x._values.ctypes.data
        ctypes.memset(address + 64, 1, 1)
        if end == "read":
            with pytest.raises(RuntimeError, match="wrote behind an array of 64 bytes"):
                card.read(x)
    del x
    gc.collect()
    with pytest.raises(RuntimeError, match="wrote behind an array of 64 bytes"):
        check(card)
    card._damage.clear()


def test_what_lies_outside_reads_as_nan():
    body = "x[threadIdx.x] = isnan(y[-1]) && isnan(y[64]) && isnan(float(y[0]));"
    for dtype in (np.float32, np.float64):
        card = SimulatedCard()
        out, y = card.zeros(1, np.float64), card.empty(64, dtype)
        read = kernel("double *x, const real *y", body, np.dtype(dtype).name)
        card.launch(read, (1,), (1,), (out, y))
        assert card.read(out) == 1


# Arguments.


@pytest.mark.parametrize(
    ("declaration", "arguments", "message"),
    [
        ("double *x, int64_t n", (), "takes 2 arguments, got 1"),
        ("double *x", (1,), "takes 1 arguments, got 2"),
        ("double *x, int64_t n", (1.0,), "Argument 2 .* is i8, got 1.0"),
        ("double *x, double f", (1,), "Argument 2 .* is f8, got 1"),
        ("double *x, double f", (np.float32(1),), "is f8, got an array of float32"),
        ("double *x, int64_t n", (True,), "is i8, got True"),
        ("double *x, int64_t n", (np.int32(1),), "is i8, got an array of int32"),
        ("double *x, double f", (None,), "is f8, got None"),
        ("double *x, const float *y", (np.zeros(4),), "is pf4, got an array of float64"),
        ("double *x, const int *y", (np.zeros(4, int),), "is pi4, got an array of int64"),
        ("double *x, const int *y", (np.zeros(4, "f4"),), "is pi4, got an array of float32"),
        ("double *x, const double *y", (7,), "is pf8, got 7"),
    ],
)
def test_wrong_arguments_are_errors(declaration, arguments, message):
    with pytest.raises(TypeError, match=message):
        run(declaration, "", 64, *arguments)


def test_host_arrays_are_no_arguments(card):
    with pytest.raises(TypeError, match="is pf8, got an array of float64"):
        card.launch(kernel("const double *y", ""), (1,), (1,), (np.zeros(4),))


def test_arguments_arrive():
    body = "x[0] = (double)y[0] + n + f + (none == nullptr) + records[1].n_in;"
    record = np.zeros(2, [("n_in", "i8")])
    record["n_in"] = 5000
    out = run(
        "double *x, const float *y, int64_t n, double f, const int *none, const Record *records",
        body,
        *(1, np.full(1, 0.5, np.float32), 2**40, 0.25, None, record),
        before="struct Record { int64_t n_in; };",
        block=(1,),
    )
    assert out == 0.5 + 2**40 + 0.25 + 1 + 5000


@pytest.mark.parametrize(
    "declaration", ["double *x, float f", "double *x, int n", "double *x, bool b"]
)
def test_other_kinds_of_arguments_do_not_compile(declaration):
    with pytest.raises(RuntimeError, match="arguments are pointers, int64_t and double"):
        kernel(declaration, "")


def test_no_atomics_on_floats():
    with pytest.raises(RuntimeError, match="atomicAdd"):
        kernel("double *x", "atomicAdd(x, 1.0);")


def test_launch_bounds_hold():
    run("double *x", "", 64, block=(8, 8), bounds="2 * 32, 4")
    with pytest.raises(RuntimeError, match=r"is for 64 threads, got a block of \(65, 1, 1\)"):
        run("double *x", "", 64, block=(65,), bounds="2 * 32, 4")


@pytest.mark.parametrize(("grid", "block"), [((1, 65536), (1,)), ((1,), (1, 1, 65))])
def test_dimensions_have_limits(grid, block):
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        run("double *x", "", 64, grid=grid, block=block)


def test_a_grid_of_no_blocks_is_one_of_one_as_in_cupy():
    assert run("double *x", "x[0] += 1;", 1, grid=(0,), block=(1,)) == 1


# Atomics and blocks.

LAST_BLOCK_MERGES = """
    __shared__ bool last;
    double sum = sum_over_block(y[thread_of_grid()]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last)
        return;
    sum = 0;
    for (int k = 0; k < (int)gridDim.x; k++)
        sum += __ldcg(partial + k);
    if (threadIdx.x == 0)
        x[0] = sum, *count = 0;
"""


def test_the_last_block_merges_with_the_same_bits_in_any_order(seed):
    y = np.random.RandomState(seed).normal(size=512)
    arguments = y, np.full(8, np.nan), np.zeros(1, np.uint32)
    declaration = "double *x, const double *y, double *partial, unsigned *count"
    sums = header("sums.cuh")
    seen = outcomes(declaration, LAST_BLOCK_MERGES, 1, *arguments, grid=(8,), before=sums)
    (result,) = seen
    np.testing.assert_allclose(np.frombuffer(result), y.sum(), rtol=1e-13)


def test_atomics():
    body = """
        atomicAdd(n + 0, 2);
        atomicMax(n + 1, (int)threadIdx.x);
        atomicCAS(n + 2, 0, (int)threadIdx.x + 1);
        atomicExch(n + 3, 9);
        atomicAdd(large, 1ull << 40);
    """
    card = SimulatedCard()
    n, large = card.zeros(4, np.int32), card.zeros(1, np.uint64)
    made = kernel("int *n, unsigned long long *large", body)
    card.launch(made, (1,), (64,), (n, large))
    got = card.read(n).tolist()
    assert (got[0], got[1], got[3]) == (128, 63, 9)
    assert 1 <= got[2] <= 64
    assert card.read(large) == 64 * 2**40


def test_numbers_are_as_on_a_card():
    body = """
        x[0] = min(1.0, nan), x[1] = max(nan, 1.0), x[2] = rsqrt(4.0), x[3] = fma(2.0, 3.0, 4.0);
        x[4] = __umulhi(0x80000000u, 6u), x[5] = __float_as_uint(1.0f), x[6] = copysign(1.0, -0.0);
        x[7] = __uint_as_float(0x40000000u), x[8] = sizeof(exp(1.0f));
        x[9] = make_float4(1, 2, 3, 4).w + make_double2(1, 2).y;
    """
    out = run("double *x, double nan", body, 10, np.nan, block=(1,))
    assert out.tolist() == [1, 1, 0.5, 10, 3, 0x3F800000, -1, 2, 4, 6]


# Device arrays: what CuPy's refuse, these refuse.


def test_they_have_nothing_that_cupys_have_not():
    cupy = pytest.importorskip("cupy")
    ours = {name for name in vars(SimulatedArray) if not re.match(r"_[^_]|__(weak|dict)", name)}
    assert ours <= set(dir(cupy.ndarray))


@pytest.mark.parametrize(
    "convert",
    [np.asarray, np.array, np.ascontiguousarray, lambda x: np.empty(4)[:].__iadd__(x), memoryview],
)
def test_nothing_becomes_numpys_by_itself(card, convert):
    with pytest.raises(TypeError):
        convert(card.zeros(4, np.float64))


@pytest.mark.parametrize("operation", [operator.add, operator.mul, operator.lt, np.maximum, np.dot])
def test_arrays_of_both_worlds_do_not_mix(card, operation):
    ours, theirs = card.upload(np.arange(4.0)), np.arange(4.0)
    for pair in ((ours, theirs), (theirs, ours)):
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>"):
            operation(*pair)
    result = operation(ours, ours)
    assert isinstance(result, SimulatedArray)
    np.testing.assert_array_equal(result.get(), operation(theirs, theirs))


def test_assignment_takes_no_host_arrays(card):
    x = card.zeros(4, np.float64)
    with pytest.raises(TypeError, match="Unsupported type"):
        x[1:3] = np.ones(2)
    x[1:3] = card.upload(np.ones(2))
    x[0] = 5
    assert x.get().tolist() == [5, 1, 1, 0]


def test_results_stay_on_the_card(card):
    values = np.arange(12.0).reshape(3, 4)
    x = card.upload(values)
    for ours, theirs in [
        (x.T, values.T),
        (x[1:, ::2], values[1:, ::2]),
        (x[1, 2], values[1, 2]),
        (x[card.upload(np.array([2, 0]))], values[[2, 0]]),
        (x.sum(axis=0), values.sum(axis=0)),
        (x.max(), values.max()),
        (x.reshape(2, -1), values.reshape(2, -1)),
        (x.transpose(1, 0).ravel(), values.T.ravel()),
        (x.astype(np.float32), values.astype(np.float32)),
        (-x + 1 > 2 * x, -values + 1 > 2 * values),
        (np.isnan(x).any(), np.False_),
        (np.sqrt(x), np.sqrt(values)),
        (np.concatenate([x, x]), np.concatenate([values, values])),
        (np.where(x > 3, x, 0.0), np.where(values > 3, values, 0.0)),
    ]:
        assert isinstance(ours, SimulatedArray)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours.get(), theirs)
    assert (x.sum().item(), float(x[0, 1]), bool(x.any()), int(x[2, 3])) == (66, 1, True, 11)
    assert (x.nbytes, x.ndim, x.size, len(x), x.T.flags.f_contiguous) == (96, 2, 12, 3, True)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x > 3)


def test_views_share_memory(card):
    x = card.zeros((3, 4), np.float64)
    x[1:].reshape(-1)[:4] = 7
    assert x.get().sum() == 28
    x += 1
    assert x.get().sum() == 40
    with pytest.raises(TypeError, match="Unsupported type"):
        x += np.ones((3, 4))


def test_other_libraries_can_see_where_an_array_is(card):
    x = card.upload(np.arange(6.0).reshape(2, 3))
    interface = x.T.__cuda_array_interface__
    assert (interface["shape"], interface["strides"], interface["version"]) == ((3, 2), (8, 24), 3)
    assert x.__cuda_array_interface__["strides"] is None
    assert x.__dlpack_device__() == (2, 0)
    with pytest.raises((RuntimeError, BufferError, TypeError)):
        np.from_dlpack(x)


def test_arrays_of_other_libraries(card):
    class Theirs:
        """A tensor that says it is on a card."""

        def __init__(self, values, kind):
            self.values, self.kind = values, kind

        def __dlpack_device__(self):
            return (self.kind, 0)

        def __dlpack__(self, *, stream=None, max_version=None, copy=None):
            return self.values.__dlpack__()

    values = np.arange(6.0)
    shared = card.from_dlpack(Theirs(values, 2))
    shared[2:] = 9
    assert values.tolist() == [0, 1, 9, 9, 9, 9]
    assert card.is_array(shared)
    card.launch(kernel("double *x", "x[threadIdx.x] = 3;"), (1,), (4,), (shared,))
    assert values.tolist() == [3, 3, 3, 3, 9, 9]
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported to CuPy"):
        card.from_dlpack(Theirs(values, 1))
    x = card.zeros(3, np.float64)
    card.from_dlpack(x)[0] = 1
    assert x.get().tolist() == [1, 0, 0]


def test_arrays_are_not_for_files(card):
    with pytest.raises(NotImplementedError):
        pickle.dumps(card.zeros(3, np.float64))


# The card.


def test_it_has_what_the_card_has():
    def public(cls):
        return {name: value for name, value in vars(cls).items() if name[0] != "_"} | {
            name: vars(cls)[name] for name in ("__enter__", "__exit__")
        }

    ours, theirs = public(SimulatedCard), public(cards.Card)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, property):
            assert isinstance(ours[name], property)
        else:
            assert inspect.signature(ours[name]) == inspect.signature(value), name
    attributes = set(re.findall(r"self\.([a-z]\w*)\b(?: =|,.* =)", inspect.getsource(cards.Card)))
    assert {name for name in vars(SimulatedCard()) if name[0] != "_"} == attributes


def test_new_memory_is_nan(card):
    assert np.isnan(card.read(card.empty((3, 4), np.float32))).all()
    assert (card.read(card.empty(3, np.int64)) == -1).all()
    assert (card.read(card.zeros((), np.float64)) == 0).all()
    assert np.isnan(card.pinned(3, np.float64)).all()


def test_memory_is_limited():
    card = SimulatedCard(memory=1000)
    x = card.empty(100, np.float64)
    assert card.free_memory == 200
    with pytest.raises(MemoryError):
        card.empty(26, np.float64)
    del x
    assert card.free_memory == 1000


def test_copies_between_host_and_card(card):
    x = card.upload(np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert x.flags.c_contiguous
    out = np.empty((3, 2), np.float32)
    assert card.read(x, out) is out
    assert out.tolist() == [[0, 3], [1, 4], [2, 5]]
    card.write(x[1:], np.ones((2, 2), np.float32))
    assert card.read(x).tolist() == [[0, 3], [1, 1], [1, 1]]
    for wrong, error in [
        (np.ones((3, 2)), TypeError),
        (np.ones(6, np.float32), ValueError),
        (x, TypeError),
    ]:
        with pytest.raises(error):
            card.write(x, wrong)
    with pytest.raises(RuntimeError, match="non-contiguous"):
        card.write(x[:, :1], np.ones((3, 1), np.float32))
    with pytest.raises(TypeError):
        card.upload(x)


def test_pinned_memory_is_the_cards_until_somebody_waits(card):
    x, known = card.zeros(4, np.float64), card.pinned(4, np.float64)
    known[:] = 1
    card.write(x, known)
    card.synchronize()
    known[:] = 2
    card.write(x[:2], known[:2])
    known[2:] = 3  # not in flight
    assert card.read(x).tolist() == [2, 2, 1, 1]
    card.write(x, known)
    known[3] = 4
    with pytest.raises(RuntimeError, match="Pinned memory was written to"):
        card.read(x)
    other = np.ones(4)
    card.write(x, other)
    other[:] = 0  # CUDA copies what is not pinned before it returns
    card.read(x)


@pytest.mark.parametrize("transposed", [(a, b) for a in (False, True) for b in (False, True)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_write_the_result_and_nothing_else(card, seed, dtype, transposed):
    rng = np.random.RandomState(seed)
    m, n, k = 3, 4, 5
    host = []
    for (rows, columns), flip in zip([(m, k), (k, n)], transposed, strict=True):
        shape = (columns, rows) if flip else (rows, columns)
        host.append(rng.normal(size=(shape[0], shape[1] + 2)).astype(dtype))
    out, (a, b) = card.empty((m, n + 2), dtype), map(card.upload, host)
    card.multiply(out, a, b, (m, n, k), (n + 2, *(h.shape[1] for h in host)), transposed)
    got = card.read(out)
    x, y = (h[:, :-2].T if flip else h[:, :-2] for h, flip in zip(host, transposed, strict=True))
    np.testing.assert_allclose(got[:, :n], x @ y, rtol=1e-5)
    assert np.isnan(got[:, n:]).all()


@pytest.mark.parametrize(
    ("dtypes", "strides", "message"),
    [
        ("ddf", (4, 5, 4), "float64, float64 and float32"),
        ("ddd", (3, 5, 4), "status 7"),
        ("ddd", (4, 6, 4), "larger than its memory"),
    ],
)
def test_products_refuse_what_would_read_elsewhere(card, dtypes, strides, message):
    matrices = [card.zeros(n, t) for n, t in zip((12, 15, 20), dtypes, strict=True)]
    with pytest.raises((RuntimeError, TypeError), match=message):
        card.multiply(*matrices, (3, 4, 5), strides)


def test_a_graph_is_done_when_it_is_launched(card):
    x, arrays = card.zeros(4, np.float64), [card.upload(np.ones(4))]
    add = kernel("double *x, const double *y, double f", "x[threadIdx.x] += f * y[threadIdx.x];")

    def launches():
        card.launch(add, (1,), (4,), (x, arrays[0], 2.0))
        card.multiply(*arrays, *arrays, *arrays, (1, 1, 1), (1, 1, 1))
        card.launch(add, (1,), (4,), (x, *arrays, 1.0))

    graph = card.capture(launches)
    assert card.read(x).tolist() == [0, 0, 0, 0]
    graph.launch()
    graph.launch()
    assert card.read(x).tolist() == [6, 6, 6, 6]
    arrays.clear()
    gc.collect()
    with pytest.raises(RuntimeError, match="an array of its was freed"):
        graph.launch()


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda card, x: card.zeros(4, np.float64),
        lambda card, x: card.upload(np.zeros(4)),
        lambda card, x: card.read(x),
        lambda card, x: card.write(x, np.zeros(4)),
        lambda card, x: card.synchronize(),
        lambda card, x: x + 1,
        lambda card, x: x.sum(),
        lambda card, x: card.capture(print),
    ],
)
def test_what_a_graph_cannot_hold_is_an_error(card, forbidden):
    x = card.zeros(4, np.float64)
    with pytest.raises(RuntimeError, match="CaptureUnsupported"):
        card.capture(lambda: forbidden(card, x))
    card.capture(lambda: None)


def test_where_the_package_finds_it(simulated_card):
    assert cards.current() is simulated_card
    for file in sources.files():
        for name in sources.kernel_names(file):
            for dtype in (np.float32, np.float64):
                found = simulated_card.kernel(file, name, dtype)
                assert found is simulated_card.kernel(file, name, dtype)
