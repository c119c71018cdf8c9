/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Optimizers on one number of the flat vectors, and the learning rate of a step; papers and forms: cpu/optimizers.pxd.
 */
#ifndef SKBN_OPTIMIZERS_CUH
#define SKBN_OPTIMIZERS_CUH

#include "real.cuh"

DEVICE double between(double start, double end, double share)
{
    return end + (start - end) * 0.5 * (1 + cospi(share < 1 ? share : 1));
}

/* Learning rate of the update that comes after t others. */
DEVICE double scheduled_rate(const OptimizerRecord *optimizer, double t)
{
    const double rate = optimizer->learning_rate, last = (double)optimizer->n_steps - 1;
    const double peak = SKBN_WARM_UP * (double)optimizer->n_steps - 1;
    if (optimizer->schedule == SKBN_COSINE)
        return rate * between(1, 0, t / (double)optimizer->n_steps);
    if (optimizer->schedule == SKBN_ONECYCLE)
        return t < peak ? rate * between(SKBN_START_RATE, 1, t / peak)
                        : rate * between(1, SKBN_FINAL_RATE, (t - peak) / (last - peak));
    return rate;
}

/* What the update that comes after t others multiplies with, given beta_1 and beta_2 to the power t + 1. Adam's bias
 * corrections are in it; epsilon stays outside of them (end of section 2 of the paper). */
DEVICE double rate_of_update(const OptimizerRecord *optimizer, int64_t t, double decay_1, double decay_2)
{
    const double rate = scheduled_rate(optimizer, (double)t);
    return optimizer->kind == SKBN_ADAM ? rate * sqrt(1 - decay_2) / (1 - decay_1) : rate;
}

/* All that an update needs, in the type of the network. */
struct Update {
    int64_t kind, nesterov;
    real rate, momentum, keep_1, rest_1, keep_2, rest_2, epsilon;

    DEVICE_MEMBER void set(const OptimizerRecord *optimizer, double rate_)
    {
        kind = optimizer->kind;
        nesterov = optimizer->nesterov;
        rate = (real)rate_;
        momentum = (real)optimizer->momentum;
        keep_1 = (real)optimizer->beta_1;
        rest_1 = (real)(1 - optimizer->beta_1); /* 1 - 0.999 in float would be 5e-5 off */
        keep_2 = (real)optimizer->beta_2;
        rest_2 = (real)(1 - optimizer->beta_2);
        /* Nothing that underflows: pads and dead units must not divide 0 by 0. */
        epsilon = (real)optimizer->epsilon > Limits<real>::tiny ? (real)optimizer->epsilon : Limits<real>::tiny;
    }

    /* first and second belong to the same parameter; SGD and RMSprop have only `first`. */
    DEVICE_MEMBER void apply(real &param, real &first, real &second, real gradient) const
    {
        if (kind == SKBN_ADAM) {
            first = keep_1 * first + rest_1 * gradient;
            second = keep_2 * second + rest_2 * (gradient * gradient);
            param -= rate * first / (sqrt(second) + epsilon);
        } else if (kind == SKBN_RMSPROP) {
            first = keep_2 * first + rest_2 * (gradient * gradient);
            param -= rate * gradient / (sqrt(first) + epsilon);
        } else {
            first = momentum * first - rate * gradient;
            param += nesterov ? momentum * first - rate * gradient : first;
        }
    }
};

/* Whether alpha penalizes number k of the flat vector: whether it is a weight of a dense layer. */
DEVICE bool is_penalized(const LayerRecord *layers, int64_t n_layers, int64_t k)
{
    for (int64_t index = 0; index < n_layers; index++) {
        const LayerRecord *layer = layers + index;
        if (layer->kind == SKBN_DENSE && k >= layer->weight)
            if (k < layer->weight + layer->n_in * layer->out_stride)
                return true;
    }
    return false;
}

#endif
