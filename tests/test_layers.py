"""What layers say of themselves, and the order in which a multilayer perceptron stacks them."""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import pickle
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from cases import LAYERS, each_layer

from skbn._layers import (
    ACTIVATIONS,
    BatchNorm,
    Dense,
    Dropout,
    Elementwise,
    multilayer_perceptron,
)
from skbn.backends.records import LAYER_DTYPE, Activation, LayerKind


def perceptron(placements, dropout=0.0, activation="tanh"):
    return multilayer_perceptron(
        3,
        (5, 4),
        2,
        activation=activation,
        placements=placements,
        bn_options={"epsilon": 0.5},
        dropout=dropout,
    )


@pytest.mark.parametrize(
    ("placements", "dropout", "expected"),
    [
        ((), 0.0, "D5t D4t D2"),
        (("input",), 0.0, "N3 D5t D4t D2"),
        (("before",), 0.0, "D5* N5t D4* N4t D2"),
        (("after",), 0.0, "D5t N5 D4t N4 D2"),
        (("after", "before", "input"), 0.0, "N3 D5* N5t N5 D4* N4t N4 D2"),
        ((), 0.5, "D5t O5 D4t O4 D2"),
        (("before",), 0.5, "D5* N5t O5 D4* N4t O4 D2"),
        (("after",), 0.5, "D5t N5 O5 D4t N4 O4 D2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_order(placements, dropout, expected, activation):
    """Kind and width of each layer, t with the activation, * with a bias that is not trained."""
    if activation == "gelu":  # a layer of its own at the same place
        expected = re.sub(r"(\d)t", r"\1 E\1", expected)
    letters = {Dense: "D", BatchNorm: "N", Dropout: "O", Elementwise: "E"}
    assert expected == " ".join(
        letters[type(layer)]
        + str(layer.n_out)
        + "t" * (getattr(layer, "activation", "identity") == "tanh")
        + "*" * (not getattr(layer, "train_bias", True))
        for layer in perceptron(placements, dropout, activation)
    )


def test_who_applies_an_activation():
    """A dense layer has no kernel for what needs z behind it, nor an elementwise layer for ReLU."""
    for layer in (Dense(3, 5, "gelu"), BatchNorm(5, "before", 0, "gelu"), Elementwise(5, "relu")):
        with pytest.raises(KeyError, match=layer.activation):
            layer.record_fields()


def test_where_batch_norm_says_it_stands():
    norms = [x for x in perceptron(("input", "before", "after")) if isinstance(x, BatchNorm)]
    assert [(x.position, x.hidden_layer) for x in norms] == [
        ("input", -1),
        ("before", 0),
        ("after", 0),
        ("before", 1),
        ("after", 1),
    ]
    assert {x.epsilon for x in norms} == {0.5}


@each_layer
def test_layer_descriptions(case):
    """They are keys and travel in pickles; what they put in a record, the record has room for."""
    layer = LAYERS[case].layer
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert hash(layer) == hash(pickle.loads(pickle.dumps(layer)))
    assert set(layer.record_fields()) <= set(LAYER_DTYPE.names)
    assert layer.kind in set(LayerKind)
    for spec in layer.tensors():
        assert spec.role in LAYER_DTYPE.names
        assert spec.shape[-1] == layer.n_out
    with pytest.raises(FrozenInstanceError):
        layer.n_out = 1


def test_tensors():
    """L2 is for weight matrices alone; gamma starts at 1 and all else at 0."""
    specs = {s.role: s for s in Dense(3, 5).tensors()}
    assert specs["weight"].shape == (3, 5)
    assert specs["bias"].shape == (5,)
    assert (specs["weight"].penalized, specs["bias"].penalized) == (True, False)
    for center, scale in np.ndindex(2, 2):
        specs = {s.role: s for s in BatchNorm(5, "after", 0, center=center, scale=scale).tensors()}
        assert ("weight" in specs, "bias" in specs) == (scale, center)
        assert not any(s.penalized for s in specs.values())
        assert [s.initial for s in specs.values()] == [1.0] * scale + [0.0] * center
    assert list(Dropout(5, 0.5).tensors()) == list(Elementwise(5, "elu").tensors()) == []


def test_record_fields():
    fields = BatchNorm(
        5, "before", 0, "relu", momentum=None, virtual_batch_size=None
    ).record_fields()
    assert np.isnan(fields["momentum"])
    assert fields["virtual_batch_size"] == 0
    assert fields["activation"] == Activation.RELU
    assert Dense(1, 1, train_bias=False).record_fields()["train_bias"] is False
    assert Elementwise(5, "gelu").record_fields() == {"activation": Activation.GELU}
    assert set(ACTIVATIONS.values()) == set(Activation)
