/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Batch normalization (Ioffe & Szegedy, 2015), number by number; formulas:
 * docs/user_guide/batch_normalization.md.
 *
 *     xhat = (x - mean) / sqrt(var + epsilon),    y = activation(gamma xhat + beta),    var biased
 *     dgamma = sum(dz xhat),  dbeta = sum(dz),    dx = gamma / std (dz - w / W (dbeta + xhat dgamma))
 *
 * with a row's weight w and the sum W of all weights (ones and the number of rows). As on the CPU the mean is kept in
 * two parts, high + low, so that x - mean keeps its digits at any offset.
 */
#ifndef SKBN_BATCH_NORM_CUH
#define SKBN_BATCH_NORM_CUH

#include "activations.cuh"

/* 1 / sqrt(var + epsilon); 0 where both are 0, so that a constant column gives beta; NaN where var overflowed. */
DEVICE double inverse_std(double var, double epsilon)
{
    const double total = var + epsilon;
    if (total > 1.7976931348623157e308)
        return total - total;
    return total <= 0 ? 0.0 : 1 / sqrt(total);
}

struct Normalization {
    real high, low, scale, shift;

    /* mean = origin + distance */
    DEVICE_MEMBER void set(double origin, double distance, double inv_std, const real *gamma, const real *beta,
                           int64_t j)
    {
        high = (real)(origin + distance);
        low = (real)((origin - (double)high) + distance);
        scale = (real)(gamma ? inv_std * gamma[j] : inv_std);
        shift = beta ? beta[j] : (real)0;
    }
    DEVICE_MEMBER real centred(real x) const { return (x - high) - low; }
    DEVICE_MEMBER real forward(real x, int64_t activation) const
    {
        return activation_forward(activation, centred(x) * scale + shift);
    }
};

struct Gradient {
    real scale, total, slope;
    double all; /* weight of all rows */
    bool is_weighted;

    /* Given the sums over the rows of dz and of dz xhat, and the weight of all rows. */
    DEVICE_MEMBER void set(
        double sum, double sum_xhat, double weight, bool is_weighted_, double inv_std, const real *gamma, int64_t j)
    {
        const double share = weight > 0 ? 1 / weight : 0;
        is_weighted = is_weighted_;
        all = weight;
        scale = (real)(gamma ? inv_std * gamma[j] : inv_std);
        total = (real)(is_weighted ? sum : sum * share);
        slope = (real)((is_weighted ? sum_xhat : sum_xhat * share) * inv_std);
    }
    /* A row that has all the weight gets exactly 0. */
    DEVICE_MEMBER real dx(real dz, real centred, double weight) const
    {
        const real rest = total + centred * slope;
        return scale * (dz - (!is_weighted ? rest : weight > 0 ? (real)(weight / all) * rest : 0));
    }
};

/* End of the virtual batch that begins at `start`; a rest of one row joins it. size 0: all rows. */
DEVICE int64_t virtual_stop(int64_t start, int64_t n_rows, int64_t size)
{
    return size == 0 || n_rows - start - 2 < size ? n_rows : start + size;
}

/* Share of batch number t (from 1) in the bias-corrected moving average, given momentum to the power t; momentum NaN:
 * of equal weights. */
DEVICE double share_of_batch(double momentum, double t, double decay)
{
    return momentum != momentum ? 1 / t : (1 - momentum) / (1 - decay);
}

#endif
