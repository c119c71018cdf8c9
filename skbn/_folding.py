"""Folding: in inference a batch norm is a scale and a shift that the dense layer beside it takes.

With gain = gamma / sqrt(var + epsilon), a batch norm behind a dense layer ("before" the activation)
and one in front of it ("after", "input") are

    (x @ weight + bias - mean) * gain + beta   =  x @ (weight * gain) + (bias - mean) * gain + beta
    ((x - mean) * gain + beta) @ weight + bias =  x @ (gain[:, None] * weight)
                                                  + (beta - mean * gain) @ weight + bias

This is done in float64 whatever the type of the network. To predict with the result in float32 is
another matter: in the second line the mean is now subtracted behind the product instead of in front
of it, so that terms are larger by up to abs(mean) / std and cancel, and rounding grows as much.
Predictions fold such a norm only up to ``MAX_RATIO``. The first line needs no bound: the mean is
subtracted from a rounded product with or without folding, and the errors that were measured are the
same, at ratios from 0 to 3e6.
"""
# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass, replace

import numpy as np

from skbn._layers import BatchNorm, Dense, Dropout, Elementwise
from skbn._network import Network
from skbn.backends.records import Statistics

# If all units of two layers of 500 have this ratio, the error of a float32 output is 2e-6 of the
# largest, where the unfolded network has 7e-7. ReLU on standardized data stays below 1.5.
MAX_RATIO = 4.0

# Outside of this range folded weights might overflow float32 or be flushed to zero.
MIN_STD, MAX_STD = 1e-9, 1e9

# Folding takes 50 us and 1 ns a weight; a row gains 2 ns in a layer of 50 units, 4 in one of 100.
MIN_ROWS = 20_000


@dataclass(eq=False)
class _Part:
    """A layer that may change: its place in the network and its tensors by role, in float64."""

    layer: object
    index: int
    tensors: dict


class _Norm:
    """A batch norm as predictions use it, ``(x - mean) * gain + beta``, in float64."""

    def __init__(self, network, part):
        record = network.table[part.index]
        which = Statistics.POPULATION_MEAN if network.use_population else Statistics.MOVING_MEAN
        self.mean, var = (network.statistics(record, w) for w in (which, which + 1))
        self.std = np.sqrt(var + part.layer.epsilon)
        # Where var + epsilon is 0, the output is beta.
        inverse = np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std != 0)
        self.ratio = np.abs(self.mean) * inverse
        self.gain = inverse * part.tensors.get("weight", 1.0)
        self.beta = part.tensors.get("bias", 0.0)

    def fold_behind(self, dense, activation):
        """Let a dense layer take this norm of its outputs, and the activation behind it."""
        dense.layer = replace(dense.layer, activation=activation)
        dense.tensors["weight"] *= self.gain
        dense.tensors["bias"] = (dense.tensors["bias"] - self.mean) * self.gain + self.beta

    def fold_in_front(self, dense):
        """Let a dense layer take this norm of its inputs."""
        dense.tensors["bias"] += (self.beta - self.mean * self.gain) @ dense.tensors["weight"]
        dense.tensors["weight"] *= self.gain[:, np.newaxis]

    def keeps_digits(self, is_behind):
        """Return whether predictions lose nothing if it is folded."""
        std = self.std[self.std != 0]
        in_range = np.all((std >= MIN_STD) & (std <= MAX_STD))
        return in_range and (is_behind or np.all(self.ratio <= MAX_RATIO))


def _fold(network, may_fold):
    """List the layers of a network of the same predictions: no dropout, batch norms folded.

    A norm stays if ``may_fold(norm, is_behind)`` is false, or if no dense layer is right beside it:
    neither an activation nor a layer of another kind is passed over.
    """
    parts = []
    for index, layer in enumerate(network.layers):
        if not isinstance(layer, Dropout):
            own = (tensor for tensor in network.tensors if tensor.layer == index)
            tensors = {t.role: t.view(network.params).astype(np.float64) for t in own}
            parts.append(_Part(layer, index, tensors))

    def dense_at(place):
        part = parts[place] if 0 <= place < len(parts) else None
        return part if part is not None and isinstance(part.layer, Dense) else None

    for part in [part for part in parts if isinstance(part.layer, BatchNorm)]:
        place, norm, activation = parts.index(part), _Norm(network, part), part.layer.activation
        front, rear = dense_at(place - 1), dense_at(place + 1)
        if front and front.layer.activation == "identity" and may_fold(norm, True):
            norm.fold_behind(front, activation)
        elif rear and activation == "identity" and may_fold(norm, False):
            norm.fold_in_front(rear)
        else:
            continue
        parts.remove(part)
    return parts


def _assemble(parts, network, dtype):
    """Make a network of the parts; layers with statistics take those they had in ``network``."""
    folded = Network([part.layer for part in parts], dtype)
    folded.use_population = network.use_population
    for tensor in folded.tensors:
        tensor.view(folded.params)[...] = parts[tensor.layer].tensors[tensor.role]
    for part, record in zip(parts, folded.table, strict=True):
        size = part.layer.state_size(record["out_stride"])
        if size:
            start, source = record["state"], network.table[part.index]["state"]
            folded.state[start : start + size] = network.state[source : source + size]
    return folded


def folded(network):
    """Return a float64 network of dense layers and activations that predicts the same.

    Parameters
    ----------
    network : Network
        Fitted network.

    Returns
    -------
    Network
        Dense and elementwise layers, with weights of their own.

    Raises
    ------
    ValueError
        If any other layer is left, or a weight that float64 cannot hold.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        parts = _fold(network, lambda norm, is_behind: True)
    for part in parts:
        if not isinstance(part.layer, Dense | Elementwise):
            raise ValueError(f"{part.layer} cannot be folded into a dense layer.")
    result = _assemble(parts, network, np.float64)
    if not np.isfinite(result.params).all():
        raise ValueError("The folded weights are not finite.")
    return result


def folded_for_predictions(network, n_rows):
    """Return a network for predicting many rows faster, of the same type and accuracy.

    Parameters
    ----------
    network : Network
        Fitted network.
    n_rows : int
        Rows that will be predicted.

    Returns
    -------
    Network
        The network itself where folding would not pay or would lose digits. Nothing is kept
        between calls: users may write into ``coefs_``.
    """
    if n_rows < MIN_ROWS or not network.batch_norm_indices:
        return network
    with np.errstate(over="ignore", invalid="ignore"):
        result = _assemble(_fold(network, _Norm.keeps_digits), network, network.dtype)
    return result if np.isfinite(result.params).all() else network
