"""Gradients are the derivatives of the losses that are reported.

The pair that an optimizer gets from ``loss_and_gradient`` is judged by central differences over
the whole flat vector but its pads; batch norm's backward also by complex steps, which know no
cancellation, at offsets where a difference of losses would see nothing.
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import (
    FUSED,
    PLACEMENTS,
    assert_close,
    each_compiled,
    each_dtype,
    each_elementwise_placed,
    each_executor,
    each_judged,
    is_frozen,
    network_case,
    run_layer,
    tensors,
)

from skbn._layers import BatchNorm
from skbn._losses import REGRESSION_LOSSES
from skbn.backends import reference
from skbn.backends.records import Activation

STEP = 3e-6

OPTIONS = {
    "plain": {},
    "virtual batches": {"bn": {"virtual_batch_size": 4}, "n_rows": 13},
    "everything": {
        "alpha": 0.1,
        "dropout": 0.2,
        "bn": {"virtual_batch_size": 6, "epsilon": 0.1},
    },
    "weighted": {"weighted": True, "bn": {"virtual_batch_size": 6}, "alpha": 0.1},
}


def check_gradient(executor, case):
    """Compare the gradient with central differences; return it."""
    network = case.network()
    data = case.data()
    grads, ignored = network.new_vector(), network.new_vector()
    with case.executor(executor, network) as it:

        def loss():
            return it.loss_and_gradient(*data, ignored, step=3)

        it.loss_and_gradient(*data, grads, step=3)
        numeric = network.new_vector()
        for tensor in network.tensors:
            view, slope = tensor.view(network.params), tensor.view(numeric)
            for index in np.ndindex(view.shape):
                middle = view[index]
                view[index] = middle + STEP
                above = loss()
                view[index] = middle - STEP
                slope[index] = (above - loss()) / (2 * STEP)
                view[index] = middle
    # Losses of order 1 have 1e-16 / STEP of noise in their slopes; the third derivative, large
    # where few rows of a small virtual batch are not 0, adds a multiple of STEP squared.
    assert_close(tensors(network, grads), tensors(network, numeric), 2e-8, floor=1e-2)
    return network, grads


@each_judged
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("placements", PLACEMENTS, ids=lambda p: "+".join(p) or "none")
@pytest.mark.parametrize("options", OPTIONS)
def test_finite_differences(options, placements, activation, n_classes, executor):
    options = {"n_rows": 12} | OPTIONS[options]
    check_gradient(executor, network_case(placements, activation, (4, 3), 3, n_classes, **options))


@each_judged
@each_elementwise_placed
def test_finite_differences_of_elementwise_layers(placements, activation, executor):
    options = {"n_rows": 12} | OPTIONS["everything"]
    check_gradient(executor, network_case(placements, activation, (4, 3), 3, 3, **options))


@each_judged
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("target", ["labels", *REGRESSION_LOSSES])
def test_finite_differences_by_loss(target, n_outputs, weighted, executor):
    """Several outputs too: the gradient is that of the loss that is reported."""
    options = {"target": target, "weighted": weighted, "alpha": 0.1, "n_rows": 12}
    check_gradient(executor, network_case(("before",), "tanh", (4,), 3, n_outputs, **options))


@each_executor
def test_finite_differences_of_compressed_rows(executor):
    for placements in [(), ("input",), ("after",)]:
        case = network_case(placements, "tanh", (4,), 9, 3, n_rows=12, sparse=True, weighted=True)
        check_gradient(executor, case)


@each_compiled
@pytest.mark.parametrize("hidden", [(1,), (9,), (17, 8)], ids=str)
def test_finite_differences_by_width(hidden, executor):
    """Every way a product of matrices is computed: few inputs, one output, BLAS."""
    for n_features, n_classes in [(1, 2), (8, 8), (9, 9)]:
        check_gradient(
            executor, network_case(("after",), "tanh", hidden, n_features, n_classes, n_rows=9)
        )


@each_executor
@each_dtype
def test_bias_that_batch_norm_cancels(dtype, executor):
    """Its derivative is rounding noise, so its slot stays zero; without batch norm it does not."""
    for placements, expected in [(("before",), True), ((), False)]:
        case = network_case(placements, "tanh", (9, 5), 3, n_rows=16)
        network = case.network(dtype)
        grads = network.new_vector()
        with case.executor(executor, network) as it:
            it.loss_and_gradient(*case.data(dtype), grads)
        hidden_biases = [
            t.view(grads) for t in network.tensors if t.role == "bias" and is_frozen(network, t)
        ] or [t.view(grads) for t in network.tensors if t.role == "bias"]
        assert all((bias == 0).all() == expected for bias in hidden_biases)
        assert len(hidden_biases) == (2 if expected else 3)


# Batch norm alone, by complex steps.


def dx_by_complex_steps(x, dy, gamma, epsilon):
    """Derivative of sum(dy * y) with respect to x, in long double where there is one."""
    x, dy = x.astype(np.clongdouble), dy.astype(np.longdouble)

    def objective(x):
        centred = x - x.mean(axis=0)
        var = (centred**2).mean(axis=0)
        return (dy * (centred / np.sqrt(var + np.longdouble(epsilon)) * gamma)).sum()

    dx = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.copy()
        moved[index] += 1e-30j
        dx[index] = (objective(moved).imag / np.longdouble(1e-30)).astype(float)
    return dx


@each_executor
@each_dtype
@pytest.mark.parametrize("ratio", [0, 1e2, 1e4])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1e-3])
def test_batch_norm_backward(epsilon, ratio, dtype, executor, seed):
    """dx at a mean of ``ratio`` standard deviations; its columns sum to nothing."""
    rng = np.random.RandomState(seed)
    x = (ratio + rng.normal(size=(16, 3))).astype(dtype)
    dy, gamma = rng.normal(size=(16, 3)).astype(dtype), rng.uniform(0.5, 2, 3).astype(dtype)
    found = run_layer(
        executor, BatchNorm(3, "before", 0, epsilon=epsilon), x, dy, {"weight": gamma}
    )
    tolerance = 1e-9 if dtype is np.float64 else 1e-5
    expected = dx_by_complex_steps(x, dy, gamma, epsilon)
    assert_close({"dx": found["dx"]}, {"dx": expected}, tolerance, floor=1.0)
    # A kernel keeps the mean in two parts; the reference in one float64, rounded at the offset.
    noise = np.finfo(dtype).eps * (1 + ratio if executor == "reference" else 1)
    assert np.abs(found["sum of dx"]).max() < 16 * noise * np.abs(expected).sum()


@pytest.mark.parametrize("activation", FUSED)
def test_batch_norm_backward_of_the_reference(activation, seed):
    """The function that judges the kernels, by central differences of what goes forward."""
    rng = np.random.RandomState(seed)
    x, dy = 3 + rng.normal(size=(2, 7, 2))
    gamma, beta, kind = np.array([0.7, -1.3]), np.array([0.2, 0.9]), Activation[activation.upper()]

    def objective(x, gamma, beta):
        return (dy * reference.batch_norm_forward(x, gamma, beta, 1e-3, kind)[0]).sum()

    y, saved = reference.batch_norm_forward(x, gamma, beta, 1e-3, kind)
    found = reference.batch_norm_backward(dy, y, x, gamma, saved, kind)
    for position, (name, gradient) in enumerate(zip(("dx", "dgamma", "dbeta"), found, strict=True)):
        given = [x, gamma, beta]
        slope = np.empty_like(given[position])
        for index in np.ndindex(slope.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = [value.copy() for value in given]
                moved[position][index] += step
                ends.append(objective(*moved))
            slope[index] = (ends[0] - ends[1]) / (2 * STEP)
        assert_close({name: gradient}, {name: slope}, 1e-7, floor=1.0)
