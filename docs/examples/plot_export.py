"""
====================================
Export to scikit-learn and to ONNX
====================================

In predictions a batch normalization is a scale and a shift, and the dense layer beside it can take
both: what is left is a plain network. Here one leaves skbn in three ways, as arrays, as
scikit-learn's MLP and as an ONNX graph. What stays the same are the predictions; what does not are
sizes, and the time for a single row.
"""

# SPDX-License-Identifier: BSD-3-Clause
# Authors: The skbn developers

# sphinx_gallery_thumbnail_number = 2

# %%
# A network with norms before and after its activations, behind a scaler. ONNX takes part where
# skl2onnx and onnxruntime are installed (``pip install skl2onnx onnxruntime``).

import pickle
import time
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skbn import MLPClassifierBN

if has_onnx := all(find_spec(name) for name in ("skl2onnx", "onnxruntime")):
    import onnxruntime
    from skl2onnx import to_onnx
else:
    print("skl2onnx and onnxruntime are not both installed: ONNX is left out.")

plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "font.size": 12,
    }
)
GREY, BLUE, VERMILION = "#5c5c5c", "#0072b2", "#d55e00"  # of Okabe and Ito

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
mlp = MLPClassifierBN((64, 32), batch_norm=("before", "after"), random_state=0)
pipe = make_pipeline(StandardScaler(), mlp).fit(X_train, y_train)
print(f"test accuracy {pipe.score(X_test, y_test):.3f}")

# %%
# As arrays
# ---------
# ``fold`` gives weights and biases with every norm folded in, and NumPy is enough to predict with
# them.

scaler = pipe[0]
coefs, intercepts = mlp.fold()


def predict_folded(X):
    """Probabilities, by NumPy alone."""
    hidden = (X - scaler.mean_) / scaler.scale_
    for coef, intercept in zip(coefs[:-1], intercepts[:-1], strict=True):
        hidden = np.maximum(hidden @ coef + intercept, 0)
    logits = hidden @ coefs[-1] + intercepts[-1]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


# %%
# As scikit-learn's MLP
# ---------------------
# Where it is loaded, skbn need not be installed; and what reads scikit-learn's MLP reads it.

plain = Pipeline([("scale", scaler), ("mlp", mlp.to_sklearn())])
print(type(plain[-1]))

# %%
# As ONNX
# -------
# skl2onnx knows scikit-learn's MLP, so the plain Pipeline becomes a graph. The type of the sample
# row is the type of the graph.

ways = {
    "skbn": pipe.predict_proba,
    "scikit-learn": plain.predict_proba,
    "NumPy, folded": predict_folded,
}
sizes = {
    "skbn": len(pickle.dumps(pipe)),
    "scikit-learn": len(pickle.dumps(plain)),
    "NumPy, folded": sum(array.nbytes for array in (*coefs, *intercepts)),
}
if has_onnx:
    graph = to_onnx(plain, X_test[:1].astype(np.float32), options={"zipmap": False})
    graph = graph.SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    sizes["ONNX, float32"] = len(graph)

    def predict_onnx(X):
        return session.run(["probabilities"], {"X": X.astype(np.float32)})[0]

    ways["ONNX, float32"] = predict_onnx

# %%
# The same predictions
# --------------------
# In float64 they agree to rounding, and in float32 to its own: a few ten-millionths.

expected = pipe.predict_proba(X_test)
differences, same = {}, {}
for name, predict in ways.items():
    found = predict(X_test)
    differences[name] = np.abs(found - expected).max(axis=1)
    same[name] = np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    print(f"{name:14} largest difference {differences[name].max():.0e},", end=" ")
    print(f"same decisions: {same[name]}, {sizes[name] / 1024:.0f} KiB")

figure, ax = plt.subplots(figsize=(7, 3.6))
rng = np.random.default_rng(0)
exports = list(ways)[1:]
for height, name in enumerate(exports):
    jitter = height + rng.uniform(-0.25, 0.25, len(X_test))
    ax.scatter(np.maximum(differences[name], 1e-18), jitter, s=8, color=BLUE, alpha=0.4, lw=0)
for value, text in ((2.0**-52, "float64's epsilon"), (2.0**-23, "float32's")):
    ax.axvline(value, color=VERMILION, lw=1.2, ls="--")
    ax.annotate(text, (value, -0.6), (4, 0), textcoords="offset points", color=VERMILION, size=11)
ax.set_yticks(range(len(exports)), exports)
ax.set(xscale="log", xlabel="largest difference of a row's probabilities from skbn's")
ax.set(ylim=(len(exports) - 0.5, -0.7), xlim=(1e-18, 1e-5))
ax.set_title("Exports predict the same, to rounding")
plt.show()

# %%
# Time for a single row
# ---------------------
# A service asks for one row at a time, and the arithmetic of so small a network is the least of it.
# skbn and scikit-learn validate X, in each step of the Pipeline. Arrays and ONNX do not, and are
# many times faster. (All times are from the machine that made this page; each dot is one call.)

row = X_test[:1]
times = {}
for name, predict in ways.items():
    predict(row)
    runs = []
    for _ in range(300):
        start = time.perf_counter()
        predict(row)
        runs.append(time.perf_counter() - start)
    times[name] = 1e6 * np.array(runs)
    print(f"{name:14} {np.median(times[name]):6.0f} us")

# %%
# Stored, skbn's network is the largest, because it holds the optimizer's memory: training can go on
# where it stopped. The graph holds the scaler too, and its weights are float32.

figure, (ax_size, ax_time) = plt.subplots(2, 1, figsize=(7, 6))
ax_size.barh(range(len(ways)), [sizes[name] / 1024 for name in ways], color=GREY, height=0.6)
for height, name in enumerate(ways):
    jitter = height + rng.uniform(-0.25, 0.25, len(times[name]))
    ax_time.scatter(times[name], jitter, s=8, color=BLUE, alpha=0.3, lw=0)
    median = np.median(times[name])
    ax_time.plot([median] * 2, [height - 0.35, height + 0.35], color=BLUE, lw=3)
for ax in (ax_size, ax_time):
    ax.set_yticks(range(len(ways)), ways)
    ax.set(ylim=(len(ways) - 0.4, -0.6))
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
ax_size.set(title="Smaller, without what training goes on with", xlabel="KiB, stored")
ax_time.set(title="Faster, where nothing is validated", xscale="log")
ax_time.set(xlabel="microseconds for a single row, with the scaler")
plt.show()
