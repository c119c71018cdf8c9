"""The cases of tests/test_numerics_arrays.py once more, on a simulated card.

What fails here is the kernels' logic or their order of sums; how a card itself rounds, and flushes
denormals of float32, is not seen.
"""
# SPDX-License-Identifier: BSD-3-Clause

import dataclasses
from functools import partial

import numpy as np
import pytest
import test_numerics_arrays as cases
from simulated_array import Memory, SimulatedArray
from test_numerics_arrays import (  # noqa: F401
    test_n01_n02_offsets_in_the_transformer,
    test_n01_offsets_float32,
    test_n02_offsets_float64,
    test_n04_small_spreads,
    test_n07_beyond_float32_on_the_way,
    test_n07_huge_values,
    test_n09_two_rows,
    test_n10_beside_columns_beyond_float32,
    test_n12_orders_and_tails,
    test_n13_moving_average_by_its_definition,
    test_n14_shards,
    test_n14_shards_of_partial_fit,
    test_n15_backward_is_the_derivative,
    test_n16_epsilon_and_gamma,
    test_n16_no_variance_and_no_epsilon,
    test_n17_n18_runs_in_scratch,
    test_n18_in_a_sample_without_weight,
    test_n18_in_the_gradient,
    test_n19_training_and_inference_agree,
    test_weights_of_any_magnitude,
    test_weights_that_do_not_fit_are_refused_before_memory_is_read,
)

from skbn import BatchNormTransformer, functional

F32, F64 = np.float32, np.float64


def on_card(card, x):
    """NumPy's memory as if it were the card's."""
    return SimulatedArray(x, Memory(card, x.nbytes, x.dtype, x))


def on_host(result, originals):
    """Results as NumPy's; what a result of ``batch_norm`` was on the card is kept."""
    if isinstance(result, SimulatedArray):
        return result.get()
    if isinstance(result, tuple):
        return tuple(on_host(part, originals) for part in result)
    fields = [getattr(result, field.name) for field in dataclasses.fields(result)]
    read = [part.get() if isinstance(part, SimulatedArray) else part for part in fields]
    saved = functional.BatchNormSaved(*read)
    originals[id(saved)] = saved, result
    return saved


@pytest.fixture(autouse=True)
def _functions_on_a_card(simulated_card, monkeypatch):
    originals = {}

    def called(function, x, *args, out=None, **options):
        if out is not None:
            options["out"] = on_card(simulated_card, out)
        if function is functional.batch_norm_backward:
            saved, original = originals[id(args[0])]
            original.sample_weight = saved.sample_weight
            args = (original,)
        result = on_host(function(on_card(simulated_card, x), *args, **options), originals)
        if out is None:
            return result
        return (out, *result[1:]) if isinstance(result, tuple) else out

    for name in ("batch_norm", "batch_norm_backward", "batch_norm_inference", "moments"):
        monkeypatch.setattr(cases, name, partial(called, getattr(functional, name)))
    monkeypatch.setattr(cases, "BatchNormTransformer", partial(BatchNormTransformer, device="cuda"))


@pytest.mark.parametrize("n_rows", [2, 3, 16, 256, 100_000])
def test_n03_rows(n_rows):
    cases.test_n03_rows(n_rows)


@cases.each_dtype
@pytest.mark.parametrize("epsilon", [0.0, 1e-12])
@pytest.mark.parametrize("n_rows", [2, 33, 10_000])
def test_n05_constant_columns(n_rows, epsilon, dtype):
    cases.test_n05_constant_columns("C", n_rows, epsilon, dtype)


@pytest.mark.parametrize("base", [0.0, 1e6])
@pytest.mark.parametrize("n_rows", [257, 100_000])
@pytest.mark.parametrize("place", [0, 0.3, 1])
def test_n06_one_row_differs(place, n_rows, base):
    cases.test_n06_one_row_differs(place, n_rows, base)


@cases.each_dtype
@pytest.mark.parametrize("magnitude", [1e-30, 1e-38, 1e-44, 1e-150, 1e-300, 5e-324])
def test_n08_tiny_values(magnitude, dtype):
    cases.test_n08_tiny_values(magnitude, dtype, False)


@cases.each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "strided", "channels first"])
@pytest.mark.parametrize(("n_rows", "n_columns"), [(20, 1000), (3000, 33), (20_000, 1)])
def test_n10_columns_are_independent(n_rows, n_columns, layout, dtype):
    cases.test_n10_columns_are_independent("tanh", n_rows, n_columns, layout, dtype)


@cases.each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "channels first"])
def test_n11_scales_side_by_side(layout, dtype):
    cases.test_n11_scales_side_by_side(3000, layout, dtype)


@cases.each_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("n_rows", [16, 4096])
@pytest.mark.parametrize("ratio", [0.0, 1e4])
def test_n15_column_sums_vanish(ratio, n_rows, weighted, dtype):
    cases.test_n15_column_sums_vanish(ratio, n_rows, weighted, dtype)


NATIVE = [name for name in cases.LAYOUTS if "endian" not in name and "spelled" not in name]


@cases.each_dtype
@pytest.mark.parametrize("layout", [name for name in NATIVE if name not in ("memmap", "unaligned")])
def test_n17_layouts(layout, dtype):
    cases.test_n17_layouts("silu", 600, 12, layout, dtype)


@cases.each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "channels last", "channels first", "two axes, apart"])
def test_n17_layouts_with_weights(layout, dtype):
    cases.test_n17_layouts_with_weights(600, 12, layout, dtype)


@cases.each_dtype
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_n17_layout_of_the_output(layout, dtype):
    cases.test_n17_layout_of_the_output(layout, dtype)


@cases.each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 9999])
@pytest.mark.parametrize("layout", ["C", "channels first", "columns first"])
def test_n18_stays_within_its_column(layout, row, bad, dtype):
    cases.test_n18_stays_within_its_column("relu", layout, row, bad, dtype)


@pytest.mark.parametrize("row", [0, 1234, 9999])
def test_n18_in_the_transformer(row, unchanged):
    """Float64 has another kernel where NaN is ignored: its means differ in their last digit."""
    cases.test_n18_in_the_transformer(row, F32, unchanged)


@pytest.mark.parametrize("n_rows", [3, 600])
def test_halves_of_one_array(n_rows):
    cases.test_halves_of_one_array(n_rows)
