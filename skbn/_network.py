"""A network as data: a table of layer records over flat vectors, and the views that users see.

One vector per role: ``params`` (what optimizers update), ``grads`` of the same layout (made by
whoever needs one) and ``state`` (float64: moving and population statistics, which no optimizer
sees). Tensors start on 64-byte boundaries and the widths of input and hidden layers are padded to
64 bytes, so that loops over a row go in whole cache lines without a remainder; pads are zero and
stay zero. A single output is not padded: one logit would grow sixteenfold.

Rejected: lists of arrays per layer, as in scikit-learn's MLP; they are packed and unpacked at every
L-BFGS step and make a pickle, a copy of the best epoch or an optimizer step a loop over Python
objects.
"""
# SPDX-License-Identifier: BSD-3-Clause

from typing import NamedTuple

import numpy as np

from skbn._layers import BatchNorm, Dense
from skbn.backends.memory import ALIGNMENT, aligned_zeros, padded
from skbn.backends.records import LAYER_DTYPE, LayerKind, Statistics


class Tensor(NamedTuple):
    """Where a trainable tensor lies in ``params`` and ``grads``."""

    layer: int
    role: str
    offset: int
    shape: tuple
    stride: int
    penalized: bool

    def view(self, vector):
        """Return the tensor inside ``vector``, without its pads."""
        rows = self.shape[0] if len(self.shape) == 2 else 1
        block = vector[self.offset : self.offset + rows * self.stride]
        view = block.reshape(rows, self.stride)[:, : self.shape[-1]]
        return view if len(self.shape) == 2 else view[0]


class BatchNormRecord(NamedTuple):
    """One batch normalization of a fitted network.

    Attributes
    ----------
    position : {"input", "before", "after"}
        Where it stands: on the input, before or after the activation of a hidden layer.
    layer : int
        Index of the hidden layer; -1 for the input.
    gamma, beta : ndarray of shape (n_units,)
        Scale and shift: ones and zeros where they are not learned.
    moving_mean, moving_var : ndarray of shape (n_units,)
        Bias-corrected moving statistics of the mini-batches, float64; the variance is the biased
        one.
    population_mean, population_var : ndarray of shape (n_units,) or None
        Statistics of all training rows, float64; None where predictions do not use them.
    """

    position: str
    layer: int
    gamma: np.ndarray
    beta: np.ndarray
    moving_mean: np.ndarray
    moving_var: np.ndarray
    population_mean: np.ndarray | None
    population_var: np.ndarray | None

    def __repr__(self):
        units = f"{len(self.gamma)} units"
        return f"BatchNormRecord(position={self.position!r}, layer={self.layer}, {units})"


def architecture(layers):
    """Return what two networks must share for one to go on from the other's weights."""
    return [layer.architecture for layer in layers if layer.architecture is not None]


class Network:
    """Layer table and flat vectors of one network.

    Parameters
    ----------
    layers : list
        Layer descriptions (``skbn._layers``) in the order of the forward pass.
    dtype : {float32, float64}
        Type of parameters and activations. Statistics are always float64.

    Attributes
    ----------
    table : ndarray of LAYER_DTYPE, shape (n_layers,)
        One record per layer.
    tensors : list of Tensor
        Where each trainable tensor lies.
    params : ndarray
        All trainable parameters.
    state : ndarray of float64
        All statistics.
    row_size : int
        Elements per row that a buffer for every activation needs.
    min_rows : int
        A rest of fewer rows joins the mini-batch before it.
    saved_size : int
        float64 values per virtual batch that forward saves for backward.
    use_population : bool
        Whether predictions normalize with the population statistics (else the moving ones).
    """

    def __init__(self, layers, dtype):
        self.layers = tuple(layers)
        self.dtype = np.dtype(dtype)
        self.use_population = False
        self._build_table()
        self.params = aligned_zeros(self.n_params, self.dtype)
        self.state = aligned_zeros(self.n_state, np.float64)
        for tensor, spec in zip(self.tensors, self._specs(), strict=True):
            tensor.view(self.params)[...] = spec.initial
        for norm in self.table[self.table["kind"] == LayerKind.BATCH_NORM]:
            # Before any batch: the statistics of an input that is standardized already.
            for which in (Statistics.MOVING_VAR, Statistics.POPULATION_VAR):
                self.statistics(norm, which)[...] = 1.0

    def _specs(self):
        for layer in self.layers:
            yield from layer.tensors()

    def _build_table(self):
        """Lay out tensors, state and buffers; every layer reads what the one before it wrote."""
        itemsize = self.dtype.itemsize
        self.table = np.zeros(len(self.layers), dtype=LAYER_DTYPE)
        self.tensors = []
        n_params = n_state = saved = 0
        read_from, write_to = 0, padded(self.layers[0].n_in, itemsize)
        for index, layer in enumerate(self.layers):
            if index > 0 and layer.n_in != self.layers[index - 1].n_out:
                raise ValueError(
                    f"Layer {index} takes {layer.n_in} inputs, but the layer before it gives "
                    f"{self.layers[index - 1].n_out}."
                )
            in_stride, out_stride = padded(layer.n_in, itemsize), padded(layer.n_out, itemsize)
            if index == len(self.layers) - 1 and layer.n_out == 1:
                out_stride = 1
            record = dict.fromkeys(LAYER_DTYPE.names, 0)
            record |= dict.fromkeys(("weight", "bias", "state", "saved"), -1)
            record |= layer.record_fields()
            record |= {"kind": layer.kind, "n_in": layer.n_in, "n_out": layer.n_out}
            record |= {"in_stride": in_stride, "out_stride": out_stride}
            record |= {"input": read_from, "output": write_to}
            for role, shape, penalized, _ in layer.tensors():
                record[role] = n_params
                self.tensors.append(Tensor(index, role, n_params, shape, out_stride, penalized))
                rows = shape[0] if len(shape) == 2 else 1
                # The weights of a single output are padded behind their last: loops over the units
                # that feed it read a whole padded row.
                n_params += -(-rows * out_stride * itemsize // ALIGNMENT) * ALIGNMENT // itemsize
            if layer.state_size(out_stride):
                record["state"] = n_state
                n_state += layer.state_size(out_stride)
            if layer.saved_size(out_stride):
                record["saved"] = saved
                saved += layer.saved_size(out_stride)
            self.table[index] = tuple(record.values())  # a field by itself takes 1 us
            read_from, write_to = write_to, write_to + out_stride
        self.n_params, self.n_state = n_params, n_state
        self.row_size, self.saved_size = write_to, saved
        self.min_rows = max(layer.min_rows for layer in self.layers)

    @property
    def n_features(self):
        return self.layers[0].n_in

    @property
    def n_outputs(self):
        return self.layers[-1].n_out

    @property
    def batch_norm_indices(self):
        """Positions of the batch norms in the table."""
        return [i for i, layer in enumerate(self.layers) if isinstance(layer, BatchNorm)]

    @property
    def dense_indices(self):
        """Positions of the dense layers in the table."""
        return [i for i, layer in enumerate(self.layers) if isinstance(layer, Dense)]

    def statistics(self, record, which):
        """Return a view of one row of a batch norm's statistics, without pads."""
        start = record["state"] + which * record["out_stride"]
        return self.state[start : start + record["n_out"]]

    def forget_batches(self):
        """Let the next batch be the first: its statistics replace the moving ones."""
        for index in self.batch_norm_indices:
            record = self.table[index]
            self.state[record["state"] + Statistics.N_BATCHES * record["out_stride"]] = 0

    def _tensor(self, layer, role):
        for tensor in self.tensors:
            if (tensor.layer, tensor.role) == (layer, role):
                return tensor.view(self.params)
        return None

    def _dense(self, role):
        return [self._tensor(index, role) for index in self.dense_indices]

    @property
    def coefs(self):
        """Weight matrices, views of shape (n_in, n_out)."""
        return self._dense("weight")

    @property
    def intercepts(self):
        """Bias vectors, views."""
        return self._dense("bias")

    @property
    def batch_norms(self):
        """One :class:`BatchNormRecord` of views per batch norm, in network order."""
        records = []
        for index in self.batch_norm_indices:
            layer, record = self.layers[index], self.table[index]
            gamma, beta = self._tensor(index, "weight"), self._tensor(index, "bias")
            moving_mean, moving_var, population_mean, population_var = (
                self.statistics(record, which) for which in range(Statistics.N_BATCHES)
            )
            if not self.use_population:
                population_mean = population_var = None
            records.append(
                BatchNormRecord(
                    layer.position,
                    layer.hidden_layer,
                    np.ones(layer.n_out, self.dtype) if gamma is None else gamma,
                    np.zeros(layer.n_out, self.dtype) if beta is None else beta,
                    moving_mean,
                    moving_var,
                    population_mean,
                    population_var,
                )
            )
        return records

    def new_vector(self):
        """Return a zero vector of the layout of ``params`` (gradients, optimizer memory)."""
        return aligned_zeros(self.n_params, self.dtype)

    def copy(self):
        """Return a network of its own vectors; the table, which never changes, is shared."""
        twin = object.__new__(Network)
        twin.__dict__.update(self.__dict__)
        twin.params = self.new_vector()
        twin.state = aligned_zeros(self.n_state, np.float64)
        twin.assign(self)
        return twin

    def head(self, stop):
        """Return the layers before ``stop`` as a network over the same vectors."""
        twin = object.__new__(Network)
        twin.__dict__.update(self.__dict__, layers=self.layers[:stop], table=self.table[:stop])
        return twin

    def assign(self, other):
        """Take over the parameters and statistics of a network of the same layers."""
        self.params[:] = other.params
        self.state[:] = other.state
        self.use_population = other.use_population

    def first_non_finite_layer(self):
        """Return which layer first has parameters or statistics that are not finite, or None.

        Dense layers count from 0, the output last; a batch norm counts as the hidden layer that it
        belongs to, and -1 is the input.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.params.sum()  # takes no memory; where it overflows we look closer
        if (np.isfinite(total) or np.isfinite(self.params).all()) and np.isfinite(self.state).all():
            return None
        n_dense = 0
        for index, (layer, record) in enumerate(zip(self.layers, self.table, strict=True)):
            owner = getattr(layer, "hidden_layer", n_dense)
            n_dense += isinstance(layer, Dense)
            vectors = [t.view(self.params) for t in self.tensors if t.layer == index]
            if isinstance(layer, BatchNorm):
                vectors += [self.statistics(record, w) for w in range(Statistics.N_BATCHES)]
            if not all(np.isfinite(vector).all() for vector in vectors):
                return owner
        return n_dense - 1
