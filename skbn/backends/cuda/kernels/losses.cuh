/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Losses of one row of raw outputs; the reductions are decided in skbn/_losses.py, formulas: cpu/losses.pxd.
 *
 * A row returns its loss and writes, if asked, its gradient times `factor`, its weight in the mean over the batch. Its
 * numbers are `pitch` apart.
 */
#ifndef SKBN_LOSSES_CUH
#define SKBN_LOSSES_CUH

#include "real.cuh"

/* What a loss adds to the scores of a row: whether it is decided right, or a squared error an output. */
DEVICE bool is_log_loss(int64_t kind) { return kind == SKBN_BINARY_LOG_LOSS || kind == SKBN_CATEGORICAL_LOG_LOSS; }

/* At most -log(machine epsilon); NaN passes. */
DEVICE double bounded(double loss)
{
    const double bound = (sizeof(real) == sizeof(float) ? 23 : 52) * 0.6931471805599453;
    return loss > bound ? bound : loss;
}

/* Sum over the labels of max(z, 0) - z y + log(1 + exp(-|z|)). */
DEVICE double binary_log_loss(
    real *draw, bool &is_right, const real *raw, const real *targets, int64_t n_out, int64_t pitch, double factor,
    int64_t targets_pitch)
{
    double loss = 0;
    is_right = true;
    for (int64_t j = 0; j < n_out; j++) {
        const real z = raw[j * pitch], y = targets[j * targets_pitch], e = exp(-fabs(z));
        loss += bounded((z > 0 ? z : (real)0) - z * y) + log1p((double)e);
        is_right = is_right && (z > 0) == (y > 0);
        if (draw)
            draw[j * pitch] = ((z < 0 ? e : (real)1) / (1 + e) - y) * (real)factor;
    }
    return loss;
}

/* log(sum(exp(z - max z))) - (z_y - max z). */
DEVICE double categorical_log_loss(
    real *draw, bool &is_right, const real *raw, const real *targets, int64_t n_out, int64_t pitch, double factor)
{
    const int64_t code = (int64_t)targets[0];
    real largest = raw[0];
    int64_t best = 0;
    double exponentials = 0;
    for (int64_t j = 1; j < n_out; j++)
        if (raw[j * pitch] > largest) {
            largest = raw[j * pitch];
            best = j;
        }
    is_right = best == code;
    for (int64_t j = 0; j < n_out; j++) {
        const real e = exp(raw[j * pitch] - largest);
        exponentials += e;
        if (draw)
            draw[j * pitch] = e;
    }
    if (draw) {
        const real inverse = (real)(factor / exponentials);
        for (int64_t j = 0; j < n_out; j++)
            draw[j * pitch] = draw[j * pitch] * inverse;
        draw[code * pitch] -= (real)factor;
    }
    return bounded(log(exponentials) + (double)(largest - raw[code * pitch]));
}

/* One output's loss; its error and the slope of the loss at it. */
DEVICE double error_loss(int64_t kind, double z, double y, double &error, double &slope)
{
    if (kind == SKBN_POISSON) {
        slope = error = exp(z) - y;
        return error - y * z + (y > 0 ? y * log(y) : 0);
    }
    slope = error = z - y;
    if (kind == SKBN_ABSOLUTE_ERROR) {
        slope = error > 0 ? 1 : error < 0 ? -1 : error; /* NaN passes */
        return fabs(error);
    }
    if (kind == SKBN_HUBER && fabs(error) > 1) {
        slope = error > 0 ? 1 : -1;
        return fabs(error) - 0.5;
    }
    return 0.5 * error * error;
}

/* Losses of errors are averaged over the outputs, Poisson's are summed. */
DEVICE double share_of_output(int64_t kind, int64_t n_out) { return kind == SKBN_POISSON ? 1.0 : 1.0 / n_out; }

#endif
