"""The NumPy executor: complete, slow, readable. It judges the others.

It walks the layer table exactly as the compiled executors do and has functions of the same names,
written as the formulas stand on paper (batch norm's: docs/user_guide/batch_normalization.md).
Convention: outputs are returned (here only; compiled kernels write into buffers of their callers),
gradients are overwritten, never added to, and batch norm computes in float64 whatever the type of
the network, so that it can judge a float32 kernel that works with split means.
"""
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy.special import expit, ndtr, xlogy

from skbn.backends.records import (
    FINAL_RATE,
    LEAKY_SLOPE,
    SELU_SCALE,
    SELU_SCALE_ALPHA,
    START_RATE,
    WARM_UP,
    Activation,
    LayerKind,
    LossKind,
    OptimizerKind,
    Schedule,
    Statistics,
)


def batch_slices(n_rows, size, min_rows):
    """Cut rows into slices of ``size``; a rest shorter than ``min_rows`` joins the one before."""
    size = size or n_rows
    start = 0
    while start < n_rows:
        stop = min(start + size, n_rows)
        if n_rows - stop < min_rows:
            stop = n_rows
        yield slice(start, stop)
        start = stop


# Activations: forward, and backward from the saved output y.


def activation_forward(kind, z):
    if kind == Activation.LOGISTIC:
        return expit(z)
    if kind == Activation.TANH:
        return np.tanh(z)
    if kind == Activation.RELU:
        return np.where(z < 0, 0, z).astype(z.dtype)  # NaN passes
    return z


def activation_backward(kind, dy, y):
    if kind == Activation.LOGISTIC:
        return dy * y * (1 - y)
    if kind == Activation.TANH:
        return dy * (1 - y * y)
    if kind == Activation.RELU:
        return np.where(y > 0, dy, 0).astype(dy.dtype)
    return dy


# Layers.


def dense_forward(x, weight, bias, activation):
    return activation_forward(activation, x @ weight + bias)


def dense_backward(dy, y, x, weight, activation):
    """Return dx, dweight, dbias of ``y = activation(x @ weight + bias)``."""
    dz = activation_backward(activation, dy, y)
    return dz @ weight.T, x.T @ dz, dz.sum(axis=0)


def inverse_std(var, epsilon):
    """Return 1 / sqrt(var + epsilon).

    Where both are 0 it is 0, so that a constant unit gives beta; where the variance overflowed it
    is NaN, so that training ends with an error instead of zeros.
    """
    total = np.asarray(var + epsilon, dtype=np.float64)
    total = np.where(np.isinf(total), np.nan, total)
    return np.divide(1.0, np.sqrt(total), out=np.zeros_like(total), where=total != 0)


def shares(weights, n_rows):
    """Return each row's share in the total weight, as a column; zeros where there is none."""
    weights = np.ones(n_rows) if weights is None else weights
    return (weights / max(weights.sum(), np.finfo(np.float64).tiny))[:, None]


def batch_norm_forward(x, gamma, beta, epsilon, activation, weights=None):
    """Normalize with the statistics of the rows (Ioffe & Szegedy, 2015, algorithm 1).

    Returns y and the saved (mean, 1 / sqrt(var + epsilon), var); the variance is the biased one. A
    row of weight w counts as w rows; rows without any weight at all give finite numbers.
    """
    share = shares(weights, len(x))
    wide = x.astype(np.float64)
    pivot = wide[np.argmax(share > 0)]  # a constant unit has its value as mean
    mean = pivot + (share * (wide - pivot)).sum(axis=0)
    centred = wide - mean
    correction = (share * centred).sum(axis=0)
    var = np.maximum((share * centred**2).sum(axis=0) - correction**2, 0)
    inv_std = inverse_std(var, epsilon)
    z = (centred - correction) * inv_std * gamma + beta
    return activation_forward(activation, z.astype(x.dtype)), (mean + correction, inv_std, var)


def batch_norm_backward(dy, y, x, gamma, saved, activation, weights=None):
    """Return dx, dgamma, dbeta with the mean and 1/std that forward saved.

    With xhat = (x - mean) / std, dz the gradient before the activation and s the rows' shares in
    the total weight (1 / n without weights):
    dx = gamma / std * (dz - s * (sum(dz) + xhat * sum(dz * xhat))).
    """
    mean, inv_std, _ = saved
    dz = activation_backward(activation, dy, y).astype(np.float64)
    xhat = (x.astype(np.float64) - mean) * inv_std
    dgamma, dbeta = (dz * xhat).sum(axis=0), dz.sum(axis=0)
    dx = gamma * inv_std * (dz - shares(weights, len(x)) * (dbeta + xhat * dgamma))
    return dx.astype(x.dtype), dgamma, dbeta


def batch_norm_forward_eval(x, gamma, beta, mean, var, epsilon, activation):
    """Normalize with given statistics."""
    z = (x.astype(np.float64) - mean) * inverse_std(var, epsilon) * gamma + beta
    return activation_forward(activation, z.astype(x.dtype))


def update_moving_statistics(moving, mean, var, n_batches, momentum):
    """Take one batch into the bias-corrected moving mean and variance, in place.

    An average that starts at zero and is divided by ``1 - momentum**t`` is a weighted mean of the
    batches; batch t enters it with weight (1 - momentum) / (1 - momentum**t). Cumulative mode
    (NaN): with 1 / t.
    """
    if np.isnan(momentum):
        share = 1.0 / n_batches
    else:
        share = (1.0 - momentum) / (1.0 - momentum**n_batches)
    for average, new in zip(moving, (mean, var), strict=True):
        average[...] = (1.0 - share) * average + share * new  # exact where share is 1


def moments(x, weights=None):
    """Return mean and biased variance of the rows, float64."""
    _, (mean, _, var) = batch_norm_forward(x, 1.0, 0.0, 0.0, Activation.IDENTITY, weights)
    return mean, var


# Dropout: a mask that is a pure function of (key, step, layer, row, unit).

PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter, key):
    """Return four 32-bit words per counter (Salmon et al., 2011: Philox4x32-10)."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & 0xFFFFFFFF, (k1 + PHILOX_WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def dropout_mask(shape, rate, key, step, layer, dtype):
    """Return 0 where a unit is dropped, else 1 / (1 - rate)."""
    n_rows, n_units = shape
    unit, row = np.meshgrid(np.arange(-(-n_units // 4)), np.arange(n_rows))
    words = philox4x32((unit, row, np.full_like(row, layer), np.full_like(row, step)), key)
    words = np.stack(words, axis=-1).reshape(n_rows, -1)[:, :n_units]
    scale = dtype.type(1.0 / (1.0 - rate))
    return np.where(words < np.uint64(rate * 2.0**32), dtype.type(0), scale)


def dropout_forward(x, mask):
    return x * mask


def dropout_backward(dy, mask):
    return dy * mask


# Elementwise layers: y = f(x) and dx = dy * f'(x).

FAR = 1e3  # where exp(-x) is 0 and slopes are constant: inf * 0 would be NaN


def elu(x, above=1.0, below=1.0):
    return np.where(x > 0, above * x, below * np.expm1(np.minimum(x, 0)))


def elu_slope(x, above=1.0, below=1.0):
    return np.where(x > 0, above, below * np.exp(np.minimum(x, 0)))


ELEMENTWISE = {
    Activation.LEAKY_RELU: lambda x: np.where(x > 0, x, LEAKY_SLOPE * x),
    Activation.ELU: elu,
    Activation.SELU: lambda x: elu(x, SELU_SCALE, SELU_SCALE_ALPHA),
    Activation.GELU: lambda x: np.maximum(x, -FAR) * ndtr(x),
    Activation.SILU: lambda x: np.maximum(x, -FAR) * expit(x),
    Activation.SOFTPLUS: lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}
SLOPES = {
    Activation.LEAKY_RELU: lambda x: np.where(x > 0, 1, LEAKY_SLOPE),
    Activation.ELU: elu_slope,
    Activation.SELU: lambda x: elu_slope(x, SELU_SCALE, SELU_SCALE_ALPHA),
    Activation.GELU: lambda x: ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
    Activation.SILU: lambda x: expit(x) * (1 + x * expit(-x)),
    Activation.SOFTPLUS: expit,
}


def elementwise_forward(x, activation):
    return ELEMENTWISE[activation](x).astype(x.dtype)


def elementwise_backward(dy, x, activation):
    return (dy * SLOPES[activation](np.clip(x, -FAR, FAR))).astype(x.dtype)


# Losses: what each row costs, the gradient of that with respect to raw, and what scores are made
# of: whether the row is decided right, (n_rows, 1), or squared errors, (n_rows, n_outputs).


def bounded(loss):
    """Return what rows cost: at most -log(machine epsilon); NaN passes."""
    return np.minimum(loss, -np.log(np.finfo(loss.dtype).eps))


def binary_log_loss(raw, targets):
    """One column, or one a label."""
    y = targets.reshape(raw.shape)
    loss = bounded(np.maximum(raw, 0) - raw * y) + np.log1p(np.exp(-np.abs(raw)))
    right = ((raw > 0) == (y > 0)).all(axis=1, keepdims=True)
    return loss.sum(axis=1, dtype=np.float64), expit(raw) - y, right


def categorical_log_loss(raw, targets):
    codes = targets.astype(np.intp)
    rows = np.arange(len(raw))
    shifted = raw - raw.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = bounded(np.log(total[:, 0]) - shifted[rows, codes])
    gradient = exponentials / total
    gradient[rows, codes] -= 1
    return loss.astype(np.float64), gradient, (raw.argmax(axis=1) == codes)[:, None]


def squared_error(raw, targets):
    error = (raw - targets.reshape(raw.shape)).astype(np.float64)
    return (0.5 * error**2).mean(axis=1), error / raw.shape[1], error**2


def absolute_error(raw, targets):
    error = (raw - targets.reshape(raw.shape)).astype(np.float64)
    return np.abs(error).mean(axis=1), np.sign(error) / raw.shape[1], error**2


def huber(raw, targets):
    """Knee at an error of 1 (Huber, 1964)."""
    error = (raw - targets.reshape(raw.shape)).astype(np.float64)
    size = np.abs(error)
    loss = np.where(size > 1, size - 0.5, 0.5 * error**2)
    return loss.mean(axis=1), np.clip(error, -1, 1) / raw.shape[1], error**2


def poisson(raw, targets):
    """Half the deviance; raw is the logarithm of the prediction."""
    z, y = raw.astype(np.float64), targets.reshape(raw.shape).astype(np.float64)
    error = np.exp(z) - y
    return (xlogy(y, y) - y * z + error).sum(axis=1), error, error**2


CLASSIFICATION = (LossKind.BINARY_LOG_LOSS, LossKind.CATEGORICAL_LOG_LOSS)
LOSSES = {
    LossKind.BINARY_LOG_LOSS: binary_log_loss,
    LossKind.CATEGORICAL_LOG_LOSS: categorical_log_loss,
    LossKind.SQUARED_ERROR: squared_error,
    LossKind.ABSOLUTE_ERROR: absolute_error,
    LossKind.HUBER: huber,
    LossKind.POISSON: poisson,
}


def total_loss(kind, raw, targets, weights):
    """Return the weighted sums of losses and scores, and the gradient of the first."""
    if kind is None:
        raise ValueError("This executor was made without a loss.")
    loss, gradient, scores = LOSSES[kind](raw, targets)
    weights = np.ones(len(raw)) if weights is None else weights
    counts = weights > 0  # what has no weight may be anything
    return (
        weights[counts] @ loss[counts],
        np.where(counts[:, None], weights[:, None] * gradient, 0),
        weights[counts] @ scores[counts],
    )


# Optimizers: one update of the whole flat vector, in place.


def scheduled_rate(optimizer):
    """Return the learning rate of the next update.

    "cosine": Loshchilov & Hutter, 2017, without restarts. "onecycle": Smith & Topin, 2017, along
    half cosines up to the largest rate and down again, step by step as in torch: the last update
    has the final rate.
    """
    rate, t, n_steps = optimizer["learning_rate"], optimizer["t"], optimizer["n_steps"]

    def between(start, end, share):
        return end + (start - end) * 0.5 * (1 + np.cos(np.pi * min(1.0, share)))

    if optimizer["schedule"] == Schedule.COSINE:
        return rate * between(1, 0, t / n_steps)
    if optimizer["schedule"] == Schedule.ONECYCLE:
        peak = WARM_UP * n_steps - 1
        if t < peak:
            return rate * between(START_RATE, 1, t / peak)
        return rate * between(1, FINAL_RATE, (t - peak) / (n_steps - 1 - peak))
    return rate


def clip_norm(grads, max_norm):
    """Scale a gradient whose norm is larger than ``max_norm`` down to it, in place."""
    wide = grads.astype(np.float64)
    largest = np.abs(wide).max()
    norm = largest * np.linalg.norm(wide / largest) if largest > 0 else 0.0
    if norm > max_norm:
        grads *= max_norm / norm


def sgd_update(params, grads, memory, rate, optimizer):
    """Momentum as in Sutskever et al., 2013; ``memory`` is the velocity."""
    velocity, momentum = memory, optimizer["momentum"]
    velocity *= momentum
    velocity -= rate * grads
    params += momentum * velocity - rate * grads if optimizer["nesterov"] else velocity


def positive(epsilon, dtype):
    """Return epsilon, but nothing that underflows: pads and dead units must not divide 0 by 0."""
    return max(epsilon, np.finfo(dtype).tiny)


def adam_update(params, grads, memory, rate, optimizer):
    """Kingma & Ba, 2014, with epsilon outside of the bias correction (end of section 2)."""
    m, v = memory[: params.size], memory[params.size :]
    beta_1, beta_2, t = optimizer["beta_1"], optimizer["beta_2"], optimizer["t"]
    m *= beta_1
    m += (1 - beta_1) * grads
    v *= beta_2
    v += (1 - beta_2) * grads**2
    rate = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    params -= rate * m / (np.sqrt(v) + positive(optimizer["epsilon"], params.dtype))


def rmsprop_update(params, grads, memory, rate, optimizer):
    """Hinton's lecture 6e (2012), ``beta_2`` being the decay of the mean square."""
    v, beta_2 = memory, optimizer["beta_2"]
    v *= beta_2
    v += (1 - beta_2) * grads**2
    params -= rate * grads / (np.sqrt(v) + positive(optimizer["epsilon"], params.dtype))


UPDATES = {
    OptimizerKind.SGD: sgd_update,
    OptimizerKind.ADAM: adam_update,
    OptimizerKind.RMSPROP: rmsprop_update,
}


def optimizer_update(params, grads, memory, optimizer):
    """Count one update and do it."""
    rate = scheduled_rate(optimizer)
    if np.isfinite(optimizer["max_grad_norm"]):
        clip_norm(grads, optimizer["max_grad_norm"])
    optimizer["t"] += 1
    UPDATES[int(optimizer["kind"])](params, grads, memory, rate, optimizer)


def weights_of(weights, rows):
    """Return the weights of rows; None are ones."""
    return None if weights is None else weights[rows]


def dense_rows(X, rows, weights):
    """Return rows of X, which may be CSR; what has no weight is read as zeros."""
    x = X[rows].toarray() if hasattr(X, "indptr") else np.ascontiguousarray(X[rows])
    if weights is not None:
        x[weights == 0] = 0
    return x


class ReferenceExecutor:
    """Walk the layer table in NumPy.

    Parameters
    ----------
    network : Network
        Table and vectors; training changes ``params`` and ``state`` in place.
    loss_kind : LossKind or None
        Loss over the raw outputs; None where nothing is trained or evaluated.
    alpha : float
        L2 penalty on dense weights.
    batch_size : int
        Rows in a mini-batch.
    dropout_key : tuple of two int
        Key of the dropout generator.
    """

    def __init__(self, network, *, loss_kind=None, alpha=0.0, batch_size=1, dropout_key=(0, 0)):
        self.network = network
        self.loss_kind = loss_kind
        self.alpha = alpha
        self.batch_size = batch_size
        self.dropout_key = dropout_key
        unknown = set(network.table["kind"]) - set(LayerKind)
        if unknown:
            raise ValueError(f"The reference executor does not know layers of kind {unknown}.")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass  # nothing is held

    def _tensor(self, index, role, vector):
        for tensor in self.network.tensors:
            if (tensor.layer, tensor.role) == (index, role):
                return tensor.view(vector)
        return {"weight": 1.0, "bias": 0.0}[role]  # a batch norm without gamma or beta

    def _statistics(self, record, use_population):
        which = Statistics.POPULATION_MEAN if use_population else Statistics.MOVING_MEAN
        return [self.network.statistics(record, w) for w in (which, which + 1)]

    def _forward(self, x, weights, step):
        """Return the activations of all layers, input first, and what each layer saved."""
        params = self.network.params
        activations, saved = [x], []
        for index, record in enumerate(self.network.table):
            kind, x, kept = record["kind"], activations[-1], None
            weight, bias = (self._tensor(index, role, params) for role in ("weight", "bias"))
            if kind == LayerKind.DENSE:
                y = dense_forward(x, weight, bias, record["activation"])
            elif kind == LayerKind.BATCH_NORM:
                y, kept = np.empty_like(x), []
                for rows in batch_slices(len(x), record["virtual_batch_size"], 2):
                    y[rows], statistics = batch_norm_forward(
                        x[rows],
                        weight,
                        bias,
                        record["epsilon"],
                        record["activation"],
                        weights_of(weights, rows),
                    )
                    kept.append((rows, statistics))
            elif kind == LayerKind.DROPOUT:
                kept = dropout_mask(
                    x.shape, record["rate"], self.dropout_key, step, index, self.network.dtype
                )
                y = dropout_forward(x, kept)
            elif kind == LayerKind.ELEMENTWISE:
                y = elementwise_forward(x, record["activation"])
            activations.append(y)
            saved.append(kept)
        return activations, saved

    def _backward(self, dy, activations, saved, weights, total, grads):
        """Write the gradient of every tensor into ``grads``."""
        for index in reversed(range(len(self.network.table))):
            record = self.network.table[index]
            kind, x, y, kept = (
                record["kind"],
                activations[index],
                activations[index + 1],
                saved[index],
            )
            weight = self._tensor(index, "weight", self.network.params)
            dweight, dbias = (self._tensor(index, role, grads) for role in ("weight", "bias"))
            if kind == LayerKind.DENSE:
                dy, dweight[...], gradient = dense_backward(dy, y, x, weight, record["activation"])
                dweight += self.alpha / total * weight
                if record["train_bias"]:
                    dbias[...] = gradient
            elif kind == LayerKind.BATCH_NORM:
                dx = np.empty_like(x)
                dgamma, dbeta = np.zeros(x.shape[1]), np.zeros(x.shape[1])
                for rows, statistics in kept:
                    dx[rows], dgamma_part, dbeta_part = batch_norm_backward(
                        dy[rows],
                        y[rows],
                        x[rows],
                        weight,
                        statistics,
                        record["activation"],
                        weights_of(weights, rows),
                    )
                    dgamma += dgamma_part
                    dbeta += dbeta_part
                if record["weight"] >= 0:
                    dweight[...] = dgamma
                if record["bias"] >= 0:
                    dbias[...] = dbeta
                dy = dx
            elif kind == LayerKind.DROPOUT:
                dy = dropout_backward(dy, kept)
            elif kind == LayerKind.ELEMENTWISE:
                dy = elementwise_backward(dy, x, record["activation"])

    def _update_statistics(self, saved, weights):
        """Take what the batch norms saved into the moving statistics."""
        for record, kept in zip(self.network.table, saved, strict=True):
            if record["kind"] == LayerKind.BATCH_NORM:
                n_batches = self.network.state[
                    record["state"] + Statistics.N_BATCHES * record["out_stride"] :
                ][:1]
                for rows, (mean, _, var) in kept:
                    if weights is not None and not weights[rows].any():
                        continue  # no row of this virtual batch counts
                    n_batches += 1
                    moving = self._statistics(record, False)
                    update_moving_statistics(moving, mean, var, n_batches[0], record["momentum"])

    def _penalty(self):
        """Return alpha / 2 times the sum of squared weights."""
        if self.alpha == 0:
            return 0.0
        penalized = (t.view(self.network.params) for t in self.network.tensors if t.penalized)
        return (
            0.5 * self.alpha * sum(float(np.sum(np.square(w, dtype=np.float64))) for w in penalized)
        )

    def _loss_and_gradient(self, X, targets, weights, rows, grads, step):
        """Return the mean loss of one batch, its scores, and what its layers saved."""
        weights = weights_of(weights, rows)
        total = len(rows) if weights is None else weights.sum()
        activations, saved = self._forward(dense_rows(X, rows, weights), weights, step)
        loss, dy, scores = total_loss(self.loss_kind, activations[-1], targets[rows], weights)
        dy = (dy / total).astype(self.network.dtype)
        self._backward(dy, activations, saved, weights, total, grads)
        return (loss + self._penalty()) / total, scores, saved

    def loss_and_gradient(
        self, X, targets, weights, rows, grads, step=0, *, update_statistics=False, sums=None
    ):
        """Return the mean loss with penalty over one batch; write its gradient into ``grads``.

        The batch's statistics enter the moving ones if asked; to ``sums`` is added what ``train``
        adds.
        """
        loss, scores, saved = self._loss_and_gradient(X, targets, weights, rows, grads, step)
        if update_statistics:
            self._update_statistics(saved, weights_of(weights, rows))
        if sums is not None:
            sums += [loss * len(rows), len(rows), *scores]
        return loss

    def new_sums(self):
        """Return zeros for what ``train`` adds up: loss, rows, scores."""
        n_outputs = self.network.n_outputs
        return np.zeros(2 + (1 if self.loss_kind in CLASSIFICATION else n_outputs))

    def train(self, X, targets, weights, rows, start, optimizer, memory, sums):
        """Do one mini-batch from position ``start`` of ``rows``.

        Adds to ``sums`` its loss times its rows, its rows, and its scores; returns the next
        position. A mini-batch without weight is passed over.
        """
        grads = self.network.new_vector()
        batch = next(batch_slices(len(rows) - start, self.batch_size, self.network.min_rows))
        batch = rows[start : start + batch.stop]
        stop = start + len(batch)
        if weights is not None and not weights[batch].any():
            return stop
        step = int(optimizer["t"][0])
        loss, scores, saved = self._loss_and_gradient(X, targets, weights, batch, grads, step)
        self._update_statistics(saved, weights_of(weights, batch))
        optimizer_update(self.network.params, grads, memory, optimizer[0])
        sums += [loss * len(batch), len(batch), *scores]
        return stop

    def _forward_eval(self, x, stop):
        """Return what enters layer ``stop``, with the statistics that predictions use."""
        for index, record in enumerate(self.network.table[:stop]):
            weight, bias = (self._tensor(index, r, self.network.params) for r in ("weight", "bias"))
            if record["kind"] == LayerKind.DENSE:
                x = dense_forward(x, weight, bias, record["activation"])
            elif record["kind"] == LayerKind.BATCH_NORM:
                mean, var = self._statistics(record, self.network.use_population)
                x = batch_norm_forward_eval(
                    x, weight, bias, mean, var, record["epsilon"], record["activation"]
                )
            elif record["kind"] == LayerKind.ELEMENTWISE:
                x = elementwise_forward(x, record["activation"])
        return x

    def predict(self, X):
        """Return the raw outputs."""
        return self._forward_eval(dense_rows(X, slice(None), None), None)

    def evaluate(self, X, targets, weights, rows):
        """Return the sum of the losses, without penalty, the weight of all rows, and the scores."""
        weights = weights_of(weights, rows)
        raw = self._forward_eval(dense_rows(X, rows, weights), None)
        loss, _, scores = total_loss(self.loss_kind, raw, targets[rows], weights)
        return np.array([loss, len(rows) if weights is None else weights.sum(), *scores])

    def update_population_statistics(self, X, weights, rows):
        """Measure each batch norm over all rows, behind the final statistics of those before."""
        self.network.use_population = True
        for index in self.network.batch_norm_indices:
            record = self.network.table[index]
            statistics = self._statistics(record, True)
            of_rows = weights_of(weights, rows)
            x = self._forward_eval(dense_rows(X, rows, of_rows), index)
            for statistic, value in zip(statistics, moments(x, of_rows), strict=True):
                statistic[...] = value
