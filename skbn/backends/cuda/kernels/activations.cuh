/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Activations of one number. The fused four go back from their output y; elementwise layers have x (see
 * skbn/backends/cpu/elementwise.pxd for the reasons and the papers).
 */
#ifndef SKBN_ACTIVATIONS_CUH
#define SKBN_ACTIVATIONS_CUH

#include "real.cuh"

DEVICE real logistic(real z)
{
    const real e = exp(-fabs(z));
    return (z < 0 ? e : (real)1) / (1 + e);
}

/* NaN passes: `z > 0 ? z : 0` would turn it into 0 and hide a network that has diverged. */
DEVICE real relu(real z) { return z < 0 ? (real)0 : z; }

DEVICE real activation_forward(int64_t kind, real z)
{
    if (kind == SKBN_RELU)
        return relu(z);
    if (kind == SKBN_TANH)
        return tanh(z);
    if (kind == SKBN_LOGISTIC)
        return logistic(z);
    return z;
}

/* dz, given the output y. */
DEVICE real activation_backward(int64_t kind, real dy, real y)
{
    if (kind == SKBN_RELU)
        return y > 0 ? dy : (real)0;
    if (kind == SKBN_TANH)
        return dy * (1 - y * y);
    if (kind == SKBN_LOGISTIC)
        return dy * y * (1 - y);
    return dy;
}

/* Beyond it exp(-x) is 0 and slopes are constant; infinity times 0 would be NaN. NaN passes. */
DEVICE real in_range(real x) { return x > 1000 ? (real)1000 : x < -1000 ? (real)-1000 : x; }
DEVICE real not_below_range(real x) { return x < -1000 ? (real)-1000 : x; }

/* Phi, the distribution function of the standard normal distribution. */
DEVICE float normal_distribution(float x) { return normcdff(x); }
DEVICE double normal_distribution(double x) { return normcdf(x); }

/* exp(-x**2 / 2): the square of what is near x is exact, or the tail would lose the digits that x**2 rounds off; the
 * rest is a small number, whose exponential is five terms of its series. */
DEVICE real gaussian(real x)
{
    const real scale = sizeof(real) == sizeof(float) ? (real)256 : (real)1048576;
    const real near = rint(x * scale) / scale, t = (real)-0.5 * (x - near) * (x + near);
    const real series = 1 + t * (1 + t * ((real)0.5 + t * ((real)(1.0 / 6) + t * (real)(1.0 / 24))));
    return exp((real)-0.5 * near * near) * series;
}

DEVICE real elementwise_forward(int64_t kind, real x)
{
    switch (kind) {
    case SKBN_LEAKY_RELU:
        return x > 0 ? x : x * (real)SKBN_LEAKY_SLOPE;
    case SKBN_ELU:
        return x > 0 ? x : expm1(x);
    case SKBN_SELU:
        return x > 0 ? x * (real)SKBN_SELU_SCALE : expm1(x) * (real)SKBN_SELU_SCALE_ALPHA;
    case SKBN_GELU:
        return not_below_range(x) * normal_distribution(x);
    case SKBN_SILU:
        return not_below_range(x) * logistic(x);
    default: /* SKBN_SOFTPLUS */
        return relu(x) + log1p(exp(-fabs(x)));
    }
}

DEVICE real elementwise_slope(int64_t kind, real x)
{
    x = in_range(x);
    switch (kind) {
    case SKBN_LEAKY_RELU:
        return x > 0 ? (real)1 : (real)SKBN_LEAKY_SLOPE;
    case SKBN_ELU:
        return x > 0 ? (real)1 : exp(x);
    case SKBN_SELU:
        return x > 0 ? (real)SKBN_SELU_SCALE : exp(x) * (real)SKBN_SELU_SCALE_ALPHA;
    case SKBN_GELU:
        return normal_distribution(x) + x * gaussian(x) * (real)0.39894228040143267794;
    case SKBN_SILU:
        return logistic(x) * (1 + x * logistic(-x));
    default: /* SKBN_SOFTPLUS */
        return logistic(x);
    }
}

DEVICE real elementwise_backward(int64_t kind, real dy, real x) { return dy * elementwise_slope(kind, x); }

#endif
