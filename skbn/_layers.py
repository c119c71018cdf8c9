"""What each kind of layer is: its sizes, its tensors, its state. No arithmetic, no data.

A layer is a small frozen description. :class:`skbn._network.Network` turns a list of them into the
record table and the flat vectors that executors walk. A new kind (convolution, pooling, LSTM)
starts here: one dataclass that says which tensors it owns, how much state it keeps and what goes in
its record; docs/adding_a_layer.md lists the other places.
"""
# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

from skbn.backends.records import Activation, LayerKind, Statistics

# Dense and BatchNorm apply these to their own output, the only thing they keep: it gives the
# derivative away.
FUSED_ACTIVATIONS = {
    "identity": Activation.IDENTITY,
    "logistic": Activation.LOGISTIC,
    "tanh": Activation.TANH,
    "relu": Activation.RELU,
}
# These are layers of their own, which read z and write y, so that backward has z. GELU and SiLU
# need it: two z share one y. For the others it saves digits (ELU's slope is y + 1, with y near -1).
ELEMENTWISE_ACTIVATIONS = {
    "leaky_relu": Activation.LEAKY_RELU,
    "elu": Activation.ELU,
    "selu": Activation.SELU,
    "gelu": Activation.GELU,
    "silu": Activation.SILU,
    "softplus": Activation.SOFTPLUS,
}
ACTIVATIONS = FUSED_ACTIVATIONS | ELEMENTWISE_ACTIVATIONS


class TensorSpec(NamedTuple):
    """A trainable tensor that a layer asks for."""

    role: str  # also the record field that receives the offset: "weight" or "bias"
    shape: tuple
    penalized: bool  # whether alpha (L2) applies
    initial: float = 0.0


@dataclass(frozen=True)
class Dense:
    """Fully connected layer, ``activation(x @ weight + bias)``."""

    n_in: int
    n_out: int
    activation: str = "identity"
    train_bias: bool = True

    kind = LayerKind.DENSE
    min_rows = 1

    @property
    def architecture(self):
        """What must not change while the same weights go on training."""
        return self.kind, self.n_in, self.n_out, self.train_bias

    def tensors(self):
        yield TensorSpec("weight", (self.n_in, self.n_out), penalized=True)
        yield TensorSpec("bias", (self.n_out,), penalized=False)

    def state_size(self, stride):
        return 0

    def saved_size(self, stride):
        return 0

    def record_fields(self):
        return {"activation": FUSED_ACTIVATIONS[self.activation], "train_bias": self.train_bias}


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalization of every unit over the rows of a batch, then an activation."""

    n_out: int
    position: str  # "input" | "before" | "after" the activation
    hidden_layer: int  # index of the hidden layer it belongs to; -1 for the input
    activation: str = "identity"
    momentum: float | None = 0.9
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    virtual_batch_size: int | None = None

    kind = LayerKind.BATCH_NORM
    min_rows = 2  # one row has no variance

    @property
    def architecture(self):
        """What must not change while the same weights go on training."""
        return self.kind, self.n_out, self.position, self.hidden_layer, self.center, self.scale

    @property
    def n_in(self):
        return self.n_out

    def tensors(self):
        if self.scale:
            yield TensorSpec("weight", (self.n_out,), penalized=False, initial=1.0)
        if self.center:
            yield TensorSpec("bias", (self.n_out,), penalized=False)

    def state_size(self, stride):
        """Four rows of statistics, then the number of batches, alone in its cache line."""
        return Statistics.N_BATCHES * stride + 8

    def saved_size(self, stride):
        """The mean in two parts and 1 / sqrt(var + epsilon), per virtual batch."""
        return 3 * stride

    def record_fields(self):
        return {
            "activation": FUSED_ACTIVATIONS[self.activation],
            "momentum": nan if self.momentum is None else self.momentum,
            "epsilon": self.epsilon,
            "virtual_batch_size": self.virtual_batch_size or 0,
        }


@dataclass(frozen=True)
class _Weightless:
    """A layer that maps each unit to itself and keeps nothing from one batch to the next."""

    n_out: int

    min_rows = 1
    architecture = None  # it holds no weights: it may come and go

    @property
    def n_in(self):
        return self.n_out

    def tensors(self):
        return iter(())

    def state_size(self, stride):
        return 0

    def saved_size(self, stride):
        return 0


@dataclass(frozen=True)
class Dropout(_Weightless):
    """Inverted dropout: a unit is zero with probability ``rate``, else divided by ``1 - rate``."""

    rate: float

    kind = LayerKind.DROPOUT

    def record_fields(self):
        return {"activation": Activation.IDENTITY, "rate": self.rate}


@dataclass(frozen=True)
class Elementwise(_Weightless):
    """One of ``ELEMENTWISE_ACTIVATIONS``, applied to what the layer before it gives."""

    activation: str

    kind = LayerKind.ELEMENTWISE

    def record_fields(self):
        return {"activation": ELEMENTWISE_ACTIVATIONS[self.activation]}


def multilayer_perceptron(
    n_features,
    hidden_layer_sizes,
    n_outputs,
    *,
    activation,
    placements,
    bn_options,
    dropout,
):
    """List the layers of a multilayer perceptron with batch norm at the given placements.

    Parameters
    ----------
    n_features, n_outputs : int
        Widths of the input and of the output.
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers.
    activation : str
        Activation of the hidden layers; the output stays raw (the loss knows its link).
    placements : collection of {"input", "before", "after"}
        Where batch norm stands. The output layer is never normalized.
    bn_options : dict
        Keyword arguments of every :class:`BatchNorm`.
    dropout : float
        Rate of the :class:`Dropout` behind each hidden layer; 0 adds none.

    Returns
    -------
    list
        Layers in the order of the forward pass.
    """
    fused = activation if activation in FUSED_ACTIVATIONS else "identity"
    layers = []
    if "input" in placements:
        layers.append(BatchNorm(n_features, "input", -1, **bn_options))
    n_in = n_features
    for hidden_layer, width in enumerate(hidden_layer_sizes):
        if "before" in placements:
            # The mean subtraction cancels this bias, so its gradient is rounding noise: never train
            # it.
            layers.append(Dense(n_in, width, train_bias=False))
            layers.append(BatchNorm(width, "before", hidden_layer, fused, **bn_options))
        else:
            layers.append(Dense(n_in, width, fused))
        if activation != fused:
            layers.append(Elementwise(width, activation))
        if "after" in placements:
            layers.append(BatchNorm(width, "after", hidden_layer, **bn_options))
        if dropout > 0:
            layers.append(Dropout(width, dropout))
        n_in = width
    layers.append(Dense(n_in, n_outputs))
    return layers
