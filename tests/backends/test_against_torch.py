"""Ten optimizer steps, against torch: its layers, its losses, its autograd, its optimizers.

Only what torch does not have is written here: bias-corrected moving averages of the biased
variance, and the place of Adam's epsilon (torch adds it behind the bias correction, Kingma & Ba's
efficient form and scikit-learn before it, so torch is given epsilon / sqrt(1 - beta_2**t)).
"""

# Authors: The skbn developers
# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from cases import (
    FUSED,
    PLACEMENTS,
    SOLVERS,
    assert_close,
    each_elementwise_placed,
    each_judged,
    is_frozen,
    network_case,
    optimizer,
    statistics,
    tensors,
    train_epochs,
)

from skbn._layers import BatchNorm, Dense

torch = pytest.importorskip("torch")
functional = torch.nn.functional

N_STEPS, BATCH_SIZE, LEARNING_RATE = 10, 16, 0.03
# Of Adam and RMSprop. A batch norm cancels the shift by a beta two layers before it: that gradient
# is noise of 1e-17, and 1e-8 would make 1e-9 of it, which is no error of either side.
EPSILON = 1e-5
BETA_2 = 0.9  # with 0.999 RMSprop's first steps are 32 learning rates long

FUNCTIONS = {
    "identity": lambda z: z,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": lambda z: functional.softplus(z, threshold=40),  # linear beyond; 20 costs 2e-9
}
OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, LEARNING_RATE),
    "momentum": lambda p: torch.optim.SGD(p, LEARNING_RATE, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, LEARNING_RATE, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, LEARNING_RATE, betas=(0.9, BETA_2), eps=EPSILON),
    "rmsprop": lambda p: torch.optim.RMSprop(p, LEARNING_RATE, alpha=BETA_2, eps=EPSILON),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small pay for a second thread and gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TorchNetwork:
    """The same layers in torch, with copies of the same tensors."""

    def __init__(self, case, network):
        self.case, self.layers = case, network.layers
        self.tensors = {
            (t.layer, t.role): torch.tensor(t.view(network.params), requires_grad=True)
            for t in network.tensors
        }
        self.trained = [
            self.tensors[t.layer, t.role] for t in network.tensors if not is_frozen(network, t)
        ]
        self.moments = {i: [] for i in network.batch_norm_indices}  # of every batch

    def normalize(self, index, layer, x):
        self.moments[index].append((x.mean(0).detach(), x.var(0, correction=0).detach()))
        weight, bias = (self.tensors.get((index, role)) for role in ("weight", "bias"))
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=layer.epsilon)

    def loss(self, x, targets):
        n_rows, penalty = len(x), 0.0
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Dense):
                weight, bias = self.tensors[index, "weight"], self.tensors[index, "bias"]
                x = x @ weight + bias
                penalty = penalty + (weight**2).sum()
            elif isinstance(layer, BatchNorm):
                parts = x.split(layer.virtual_batch_size or n_rows)
                x = torch.cat([self.normalize(index, layer, part) for part in parts])
            x = FUNCTIONS[layer.activation](x)
        if x.shape[1] == 1:
            loss = functional.binary_cross_entropy_with_logits(x[:, 0], targets)
        else:
            loss = functional.cross_entropy(x, targets.long())
        return loss + self.case.alpha / (2 * n_rows) * penalty

    def moving(self):
        """Averages that start at zero, divided by 1 - momentum**t; cumulative: plain means."""
        found = {}
        for position, (index, moments) in enumerate(self.moments.items()):
            momentum, n = self.layers[index].momentum, len(moments)
            weights = np.ones(n) if momentum is None else momentum ** np.arange(n)[::-1]
            for which, values in zip(("mean", "var"), zip(*moments, strict=True), strict=True):
                values = torch.stack(values).numpy()
                found[f"norm {position} moving_{which}"] = weights @ values / weights.sum()
        return found


def check(case, solver, executor):
    """Train both on the same batches; compare the loss of every step and what is left behind."""
    network = case.network()
    X, targets, weights, rows = case.data()
    other = TorchNetwork(case, network)
    initial = {name: view.copy() for name, view in tensors(network, network.params).items()}

    adaptive = {"epsilon": EPSILON, "beta_2": BETA_2}
    rule = optimizer(network, solver, learning_rate_init=LEARNING_RATE, **adaptive)
    n_epochs = N_STEPS * BATCH_SIZE // len(rows)
    with case.executor(executor, network, batch_size=BATCH_SIZE) as it:
        losses = []
        for _ in range(n_epochs):
            for start in range(0, len(rows), BATCH_SIZE):
                batch = rows[start : start + BATCH_SIZE]
                sums, _ = train_epochs(it, (X, targets, weights, batch), rule, 1)
                losses.append(sums[0] / len(batch))

    torch_rule, torch_losses = OPTIMIZERS[solver](other.trained), []
    for _ in range(n_epochs):
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            torch_rule.zero_grad()
            loss = other.loss(torch.tensor(X[batch]), torch.tensor(targets[batch]))
            loss.backward()
            torch_losses.append(loss.item())
            if solver == "adam":
                torch_rule.param_groups[0]["eps"] = EPSILON / np.sqrt(
                    1 - BETA_2 ** len(torch_losses)
                )
            torch_rule.step()

    expected = {
        name: tensor.detach().numpy()
        for name, tensor in zip(initial, other.tensors.values(), strict=True)
    } | other.moving()
    found = tensors(network, network.params) | statistics(network)
    assert_close(
        {"losses": losses} | {name: found[name] for name in expected},
        {"losses": torch_losses} | expected,
        1e-11,
    )
    assert len(losses) == N_STEPS
    for (name, start), tensor in zip(initial.items(), network.tensors, strict=True):
        if is_frozen(network, tensor):
            np.testing.assert_array_equal(found[name], start)


@each_judged
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("placements", PLACEMENTS, ids=lambda p: "+".join(p) or "none")
def test_ten_steps(placements, n_classes, solver, executor):
    case = network_case(placements, "tanh", (9, 5), 3, n_classes, alpha=0.1, n_rows=80)
    check(case, solver, executor)


@each_judged
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize(
    "options",
    [
        {"virtual_batch_size": 8},
        {"momentum": 0.0},
        {"momentum": None},
        {"momentum": 0.99, "epsilon": 1e-5},
        {"center": False},
        {"scale": False},
    ],
    ids=str,
)
def test_ten_steps_by_option(options, activation, executor):
    case = network_case(("input", "after"), activation, (9,), 3, bn=options, n_rows=80)
    check(case, "nesterov", executor)


@each_judged
@each_elementwise_placed
def test_ten_steps_of_elementwise_layers(placements, activation, executor):
    check(network_case(placements, activation, (9, 5), 3, 3, n_rows=80), "nesterov", executor)
