"""Write docs/does_it_help.md and its figures from docs/results/does_it_help.json.

    python asv_benchmarks/render_study.py

The text is templates/does_it_help.md, with names in braces where numbers and tables go.
Figures need matplotlib.
"""
# SPDX-License-Identifier: BSD-3-Clause

import json
from pathlib import Path

import numpy as np
from does_it_help import (
    AMONG,
    CLOSE,
    CONTENDERS,
    DATA,
    EPOCHS,
    LINEAR,
    N_REPEATS,
    N_SPLITS,
    N_TIMES,
    NONE,
    OUTPUT_FROM_ZERO,
    PLACEMENTS,
    RAW,
    REGIMES,
    RESULTS,
    SETTINGS,
    SKLEARN,
    STANDARDIZED,
    TARGET_AS_IT_IS,
    TREES,
)
from render_page import write_figures
from results import table
from scipy import stats

from skbn import MLPClassifierBN, MLPRegressorBN

TEMPLATE = Path(__file__).parent / "templates" / "does_it_help.md"
PAGE = RESULTS.parents[1] / "does_it_help.md"
N_RESAMPLES = 10_000
DRAWN = 'weight_init="glorot_uniform"'
FLOOR = 0.001  # errors below this count as this
KINDS = {
    "classification": [data.name for data in DATA if not data.is_regression],
    "regression": [data.name for data in DATA if data.is_regression],
}
ALL = [name for names in KINDS.values() for name in names]
GROUPS = KINDS | {"all": ALL}
NETS = [name for name in PLACEMENTS if name != NONE]
RANKED = [name for name in CONTENDERS if name != SKLEARN]  # it ties with ours without batch norm


class Study:
    """What was measured, by data set, regime, contender and setting."""

    def __init__(self, results):
        self.about = results
        keys = ("data", "regime", "name", "setting")
        self.rows = {tuple(row[key] for key in keys): row for row in results["scores"]}
        self.times = {(row["data"], row["name"]): row for row in results["times"]}

    def row(self, data, regime, name, setting=None):
        return self.rows[data, RAW if name == TREES else regime, name, setting]

    def scores(self, *key):
        return np.array(self.row(*key)["scores"])

    def pair(self, data, regime, one, other, settings=(None, None)):
        """Scores of two contenders on the folds that both have."""
        pair = [self.scores(data, regime, *of) for of in zip((one, other), settings, strict=True)]
        n = min(map(len, pair))
        return [scores[:n] for scores in pair]

    def difference(self, *compared):
        """Mean difference of the scores of two contenders, with its interval."""
        return corrected_interval(np.subtract(*self.pair(*compared)))

    def tally(self, sets, regime, one, other, settings=(None, None)):
        """Wins, ties and losses of one contender against another."""
        found = [self.difference(data, regime, one, other, settings) for data in sets]
        wins = sum(low > 0 for _, low, _ in found)
        losses = sum(high < 0 for _, _, high in found)
        return wins, len(found) - wins - losses, losses

    def ratio(self, sets, regimes, one, other=NONE, settings=(None, None)):
        """Geometric mean over data sets of the ratio of errors, with its interval."""
        means = [
            [np.mean(self.pair(data, regime, one, other, settings), axis=1) for regime in regimes]
            for data in sets
        ]
        logs = np.log(errors(means))
        logs = (logs[..., 0] - logs[..., 1]).mean(axis=1)
        rng = np.random.default_rng(0)
        means = rng.choice(logs, (N_RESAMPLES, len(logs))).mean(axis=1)
        return np.exp([logs.mean(), *np.quantile(means, (0.025, 0.975))])

    def ranks(self, sets, regime):
        """Mean ranks of the contenders, their critical difference, and Friedman's p."""
        means = [[self.scores(data, regime, name).mean() for name in RANKED] for data in sets]
        found = stats.rankdata(np.negative(np.round(means, 6)), axis=1)
        k, n = len(RANKED), len(sets)
        critical = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2)
        p = stats.friedmanchisquare(*np.transpose(means)).pvalue
        return found.mean(axis=0), critical * np.sqrt(k * (k + 1) / (6 * n)), p

    def seconds(self, data, name):
        return np.median(self.times[data, name]["seconds"])

    def slower(self, sets, name, other=NONE):
        """Geometric mean of the ratio of fit times."""
        logs = [np.log(self.seconds(data, name) / self.seconds(data, other)) for data in sets]
        return np.exp(np.mean(logs))

    def reached(self, sets, regime, name, in_time=False):
        """Epochs (or seconds) to come close to NONE's last score, over NONE's; inf if never."""
        found = []
        for data in sets:
            pair = []
            for who in (name, NONE):
                epochs = self.row(data, regime, who)["reached"] or np.inf
                if in_time:
                    epochs *= self.seconds(data, who) / self.times[data, who]["epochs"]
                pair.append(epochs)
            found.append(pair[0] / pair[1])
        return np.array(found)

    def curve(self, sets, regime, name):
        """Geometric mean of the error epoch by epoch, over NONE's last."""
        logs = [
            np.log(errors(self.row(data, regime, name)["curve"]))
            - np.log(errors(self.row(data, regime, NONE)["curve"][-1]))
            for data in sets
        ]
        return np.exp(np.mean(logs, axis=0))

    def unconverged(self, sets, regimes, name, setting=None):
        """The share of fits that stopped before they had converged."""
        rows = [self.row(data, regime, name, setting) for data in sets for regime in regimes]
        return sum(r["unconverged"] for r in rows) / sum(len(r["scores"]) for r in rows)


def errors(scores):
    """1 - accuracy or 1 - R2; 1 at most, which is guessing."""
    return np.clip(1 - np.asarray(scores), FLOOR, 1)


def corrected_interval(differences):
    """Mean and 95 % interval of differences fold by fold, by the corrected resampled t test."""
    n = len(differences)
    inflated = np.sqrt(1 / n + 1 / (N_SPLITS - 1)) * differences.std(ddof=1)
    half = stats.t.ppf(0.975, n - 1) * inflated
    return differences.mean(), differences.mean() - half, differences.mean() + half


# ----------------------------------------------------------------------------------------- tables


def default_of(kind):
    """The name of the placement that is the estimator's default."""
    estimator = {"classification": MLPClassifierBN, "regression": MLPRegressorBN}[kind]()
    return next(name for name, value in PLACEMENTS.items() if value == estimator.batch_norm)


class Compared:
    """One contender against another: ``ratio`` of errors, its bounds, wins, ties, losses."""

    def __init__(self, study, sets, regimes, one, other, settings=(None, None)):
        self.ratio, self.low, self.high = study.ratio(sets, regimes, one, other, settings)
        tallies = [study.tally(sets, regime, one, other, settings) for regime in regimes]
        self.wins, self.ties, self.losses = np.sum(tallies, axis=0).tolist()

    @property
    def times(self):
        return f"{self.ratio:.2f} times ({self.low:.2f} to {self.high:.2f})"

    @property
    def record(self):
        wins = f"{self.wins} win" + "s" * (self.wins != 1)
        losses = f"{self.losses} loss" + "es" * (self.losses != 1)
        return f"{wins} and {losses}"

    def __str__(self):
        ratio = f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"
        ratio = f"**{ratio}**" if self.low > 1 or self.high < 1 else ratio
        return f"{self.wins} / {self.ties} / {self.losses}; {ratio}"


def against(study, names, other_of):
    """A table of comparisons, a column for every kind of data and regime."""
    columns = [(kind, regime) for kind in KINDS for regime in REGIMES]
    yield ["", *(f"{kind}, {regime}" for kind, regime in columns)]
    for name in names:
        cells = []
        for kind, regime in columns:
            other = other_of(kind)
            same = name == other
            cells.append("-" if same else str(Compared(study, KINDS[kind], [regime], name, other)))
        yield [name, *cells]


def every_score(study, regime):
    """Mean scores of all contenders on all data sets, the best of them in bold."""
    yield ["", *RANKED]
    for data in ALL:
        means = [f"{study.scores(data, regime, name).mean():.3f}" for name in RANKED]
        best = max(means, key=float)
        yield [data, *(f"**{mean}**" if mean == best else mean for mean in means)]


def speeds(study, sets):
    """Fit times, and epochs and time to the quality that a net without batch norm ends with."""
    yield ["", "time of a fit", "epochs", "epochs to the quality", "time to it", "never there"]
    for name in CONTENDERS:
        cells = [f"{study.slower(sets, name):.2f}"]
        if name in PLACEMENTS:
            logs = [
                np.log(np.mean(study.row(data, STANDARDIZED, name)["epochs"]))
                - np.log(np.mean(study.row(data, STANDARDIZED, NONE)["epochs"]))
                for data in sets
            ]
            epochs, seconds = (
                study.reached(sets, STANDARDIZED, name, in_time) for in_time in (False, True)
            )
            cells += [f"{value:.2f}" for value in (np.exp(np.mean(logs)), np.median(epochs))]
            cells += [f"{np.median(seconds):.2f}", f"{np.isinf(epochs).sum()} of {len(sets)}"]
        yield [name, *cells, *["-"] * (5 - len(cells))]


def other_defaults(study, sets):
    """Every setting against the same network with its default."""
    yield ["", *AMONG]
    for setting in [*SETTINGS, OUTPUT_FROM_ZERO, TARGET_AS_IT_IS]:
        cells = []
        for name in AMONG:
            known = (sets[0], STANDARDIZED, name, setting) in study.rows
            how = (study, sets, [STANDARDIZED], name, name, (setting, None))
            cells.append(str(Compared(*how)) if known else "-")
        if set(cells) != {"-"}:
            yield [f"`{setting}`" if setting in SETTINGS else setting, *cells]


def stopped_early(study):
    """How many fits in a hundred stopped before they had converged."""
    columns = [(kind, regime) for kind in KINDS for regime in REGIMES]
    yield ["", *(f"{kind}, {regime}" for kind, regime in columns)]
    for name in [*RANKED[:-2], LINEAR]:
        shares = [study.unconverged(KINDS[kind], [regime], name) for kind, regime in columns]
        yield [name, *(f"{100 * share:.0f} %" for share in shares)]


def data_sets():
    """What the data sets are."""
    yield ["", "rows", "features", "score"]
    names = {"accuracy_score": "accuracy", "r2_score": "R2"}
    for data in DATA:
        X, y = data.load()
        score = names.get(data.score.__name__, "balanced accuracy")
        classes = "" if data.is_regression else f", {len(np.unique(y))} classes"
        yield [data.name, f"{len(X):,}", str(X.shape[1]), score + classes]


# ---------------------------------------------------------------------------------------- figures

# Okabe and Ito's colours.
COLOURS = {
    NONE: "#5c5c5c",
    "before": "#e69f00",
    "after": "#0072b2",
    "input": "#009e73",
    "input + before": "#d55e00",
    "input + after": "#56b4e9",
    TREES: "#cc79a7",
    LINEAR: "#000000",
    SKLEARN: "#5c5c5c",
    RAW: "#d55e00",
    STANDARDIZED: "#0072b2",
}


def draw_differences(plt, study):
    """Every data set: what each placement wins or loses."""
    shown = ["before", "after", "input", "input + after"]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(8, 8.2), sharex=True, sharey=True, layout="constrained"
    )
    gap = 1.2  # between classification and regression
    where = {data: y + gap * (data in KINDS["regression"]) for y, data in enumerate(ALL)}
    for ax, name in zip(axes, shown, strict=True):
        for regime, shift in zip(REGIMES, (-0.17, 0.17), strict=True):
            for data, y in where.items():
                found = study.difference(data, regime, name, NONE)
                mean, low, high = (100 * value for value in found)
                sure = low > 0 or high < 0
                colour = COLOURS[regime]
                face = colour if sure else "white"
                ax.plot([low, high], [y + shift] * 2, color=colour, lw=1.2, zorder=2)
                ax.plot(mean, y + shift, "o", ms=4, color=colour, mfc=face, zorder=3)
        ax.axvline(0, color="0.4", lw=0.8, zorder=1)
        ax.set_xscale("symlog", linthresh=2, linscale=0.6)
        ax.set_xticks([-20, -2, 0, 2, 20], ["-20", "-2", "0", "2", "20"])
        ax.set_xticks([], minor=True)
        ax.set(title=name, xlim=(-70, 90))
        ax.grid(axis="y", color="0.92", lw=0.8)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_axisbelow(True)
    axes[0].set_yticks(list(where.values()), list(where))
    axes[0].set_ylim(max(where.values()) + 0.6, -0.6)
    handles = [
        plt.Line2D([], [], color=COLOURS[regime], marker="o", ms=4, label=f"features {regime}")
        for regime in REGIMES
    ]
    handles.append(
        plt.Line2D([], [], color="0.4", marker="o", ms=4, mfc="white", label="interval holds 0")
    )
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    figure.supxlabel(
        "points of accuracy or R2 that the same network without batch norm has less (right: batch "
        "norm wins)",
        size="medium",
    )
    return figure


def draw_ranks(plt, study):
    """Mean ranks with their critical difference."""
    figure, axes = plt.subplots(
        2, 2, figsize=(8, 5), sharex=True, sharey=True, layout="constrained"
    )
    for row, (kind, sets) in zip(axes, KINDS.items(), strict=True):
        for ax, regime in zip(row, REGIMES, strict=True):
            means, critical, p = study.ranks(sets, regime)
            best = means.min()
            ax.axvspan(best, best + critical, color="0.94", lw=0, zorder=0)
            for y, (name, mean) in enumerate(zip(RANKED, means, strict=True)):
                ax.plot([1, mean], [y, y], color="0.85", lw=0.8, zorder=1)
                ax.plot(mean, y, "o", ms=7, color=COLOURS[name], zorder=2)
                ax.annotate(
                    f"{mean:.1f}", (mean, y), (6, 0), textcoords="offset points", va="center"
                )
            ax.set_title(f"{kind}, {regime} (p = {p:.1g})")
            ax.set(xlim=(1, len(RANKED)), ylim=(len(RANKED) - 0.5, -0.5))
            ax.set_yticks(range(len(RANKED)), RANKED)
            ax.tick_params(axis="y", length=0)
    figure.supxlabel(
        "mean rank, 1 is best; grey: no further from the best than chance", size="medium"
    )
    return figure


def draw_time(plt, study):
    """The time of a fit beside the error."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for ax, (kind, sets) in zip(axes, KINDS.items(), strict=True):
        points = {name: (study.slower(sets, name), 1.0) for name in CONTENDERS}
        for name in RANKED:
            points[name] = points[name][0], study.ratio(sets, [STANDARDIZED], name)[0]
        order = sorted(points, key=lambda name: points[name][1])
        heights = np.array([points[name][1] for name in order])
        gap = 0.062 * np.ptp(heights)  # labels in a column, none on another
        label_y = np.maximum.accumulate(heights - gap * np.arange(len(order)))
        label_y += gap * np.arange(len(order)) - gap * 1.5
        right = 4 * max(x for x, _ in points.values())
        for name, y in zip(order, label_y, strict=True):
            ax.plot(*points[name], "o", ms=7, color=COLOURS[name])
            ax.annotate(
                name,
                points[name],
                (right, y),
                va="center",
                color=COLOURS[name],
                arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.6, "shrinkB": 5},
            )
        ax.set(xscale="log", title=kind, xlabel="time of a fit over that without batch norm")
        low, high = ax.get_ylim()
        ax.set(xlim=(0.02, 30 * right), ylim=(min(low, label_y[0] - gap), high))
        ax.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        ax.set_xticks([], minor=True)
    axes[0].set_ylabel("error over that without batch norm")
    return figure


def draw_epochs(plt, study):
    """Errors on test rows from epoch to epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for ax, (kind, sets) in zip(axes, KINDS.items(), strict=True):
        shown = (NONE, "before", "after", "input")
        ends = {name: study.curve(sets, STANDARDIZED, name) for name in shown}
        for name, curve in ends.items():
            ax.plot(EPOCHS, curve, "o-", ms=3, lw=1.5, color=COLOURS[name], label=name)
        ax.axhline(1, color="0.7", lw=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", title=kind, xlabel="epoch")
        ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        ticks = [
            tick for tick in (0.8, 1, 1.5, 2, 3, 5, 8) if ax.get_ylim()[0] < tick < ax.get_ylim()[1]
        ]
        ax.set_yticks(ticks, map("{:g}".format, ticks))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(plt.NullLocator())
    axes[0].legend(frameon=False)
    axes[0].set_ylabel("error over that without batch norm at its end")
    return figure


def figures(results):
    """Each figure's rows and how they are drawn, by file name."""
    study = Study(results)
    draws = {"": draw_differences, "_ranks": draw_ranks, "_time": draw_time, "_epochs": draw_epochs}
    return {
        f"{RESULTS.stem}{name}.png": (
            [results["scores"], results["times"]],
            lambda plt, _, draw=draw: draw(plt, study),
        )
        for name, draw in draws.items()
    }


# ------------------------------------------------------------------------------------------- page


def extreme(study, which):
    """The data set on which gradient boosting is best or worst beside "after"."""

    def difference(data):
        return study.difference(data, STANDARDIZED, TREES, "after")[0]

    name = which(ALL, key=difference)
    return f'"{name}" ({100 * difference(name):+.0f} points)'


def best_placement(study, sets):
    """The placement with the lowest error over raw and standardized features."""
    name = min(NETS, key=lambda name: study.ratio(sets, REGIMES, name)[0])
    found = Compared(study, sets, REGIMES, name, NONE)
    return f"{name}, {found.times}, {found.record}"


def output_layer(study):
    """What the output layer's initial weights have to do with it."""
    sets = KINDS["regression"]
    drawn = Compared(study, sets, [STANDARDIZED], "after", "after", (DRAWN, None))
    if drawn.low > 1:
        return (
            "Behind units of variance 1, an output layer with scikit-learn's initial weights "
            "begins as noise that is larger than the targets, so it starts at zero; drawn within "
            f"Glorot's bounds like the other layers, they would have {drawn.times} the error."
        )
    return ""


def fields(study):
    """What stands in the text's braces."""
    regimes = {regime: [regime] for regime in REGIMES} | {"both": REGIMES}

    def compared_with(other):
        return {
            kind: {
                regime: {
                    name: Compared(study, sets, pair, name, other)
                    for name in RANKED
                    if name != other
                }
                for regime, pair in regimes.items()
            }
            for kind, sets in GROUPS.items()
        }

    reached = {
        kind: {name: study.reached(sets, STANDARDIZED, name) for name in PLACEMENTS}
        for kind, sets in GROUPS.items()
    }
    same = [study.row(data, regime, SKLEARN) for data in ALL for regime in REGIMES]
    about = study.about["machine"]
    found = {
        "n_sets": len(ALL),
        "none": compared_with(NONE),
        "boosting": {
            kind: {STANDARDIZED: Compared(study, sets, [STANDARDIZED], TREES, "after")}
            for kind, sets in GROUPS.items()
        },
        "trees_win_most": extreme(study, max),
        "trees_lose_most": extreme(study, min),
        "slower": {
            kind: {name: f"{study.slower(sets, name):.2f}" for name in PLACEMENTS}
            for kind, sets in GROUPS.items()
        },
        "best": {kind: best_placement(study, sets) for kind, sets in KINDS.items()},
        "output_layer": output_layer(study),
        "reached": {
            kind: {name: f"{np.median(value):.2f}" for name, value in values.items()}
            for kind, values in reached.items()
        },
        "n_same": sum(len(row["scores"]) for row in same),
        "largest_difference": max(row["largest_difference"] for row in same),
        "close": CLOSE,
        "n_splits": N_SPLITS,
        "n_repeats": N_REPEATS,
        "n_folds": N_SPLITS * N_REPEATS,
        "inflation": 1 + N_SPLITS * N_REPEATS / (N_SPLITS - 1),
        "n_resamples": N_RESAMPLES,
        "n_times": N_TIMES,
        "floor": FLOOR,
        "defaults": " and ".join(f'`"{name}"`' for name in dict.fromkeys(map(default_of, KINDS))),
        "machine": f"{about['processor']}, {about['cores']} cores, {about['system']}, "
        f"`{about['executor']}`; Python {about['python']}, {about['packages']}; load average "
        f"{study.about['load']:g} before",
        "data_sets": data_sets(),
        "stopped_early": stopped_early(study),
        "against_none": against(study, RANKED[1:], lambda kind: NONE),
        "against_trees": against(study, [*PLACEMENTS, LINEAR], lambda kind: TREES),
        "against_default": against(study, PLACEMENTS, default_of),
        "scores_raw": every_score(study, RAW),
        "scores_standardized": every_score(study, STANDARDIZED),
    }
    for kind, sets in KINDS.items():
        found[f"speeds_{kind}"] = speeds(study, sets)
        found[f"settings_{kind}"] = other_defaults(study, sets)
    return {
        key: table(value, markdown=True) if hasattr(value, "__next__") else value
        for key, value in found.items()
    }


def render(results):
    """The page."""
    return TEMPLATE.read_text(encoding="utf-8").format(**fields(Study(results)))


def main():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(render(results), encoding="utf-8")
    write_figures(figures(results))


if __name__ == "__main__":
    main()
