"""Write tables of docs/benchmarks.md and docs/user_guide/gpu.md, and figures, from docs/results.

    python asv_benchmarks/render_page.py

A table stands between two comments, ``<!-- name -->`` and ``<!-- end of name -->``; all else on the
page is left alone. Figures need matplotlib.
"""
# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import json
import re
from pathlib import Path

from measure_gpu import TARGETS as GPU_TARGETS
from results import (
    AMOUNTS,
    FASTER,
    WORST,
    figure,
    quartiles,
    reached,
    scores,
    spread,
    table,
    three_digits,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, GPU_PAGE, RESULTS = DOCS / "benchmarks.md", DOCS / "user_guide" / "gpu.md", DOCS / "results"
NAMES = ("rivals", "threads", "memory", "arrays")


def load():
    """What was measured, by script."""
    paths = {name: RESULTS / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def load_gpu():
    """What was measured on a card; nothing if none was at hand."""
    path = RESULTS / "gpu.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}


def is_target(row):
    return re.fullmatch(r"C\d+", row["id"]) is not None


def targets(results):
    """Rows of targets by their numbers."""
    rows = [row for name in NAMES for row in results[name]["rows"] if is_target(row)]
    return sorted(rows, key=lambda row: int(row["id"][1:]))


# ----------------------------------------------------------------------------------------- tables


def bound(value):
    return "-" if value is None else f"{value:g}"


def verdict(row):
    return f"**{row['met']}**" if row["met"].startswith("no") else row["met"]


def overview(results):
    """Every target with its bounds and what is reached."""
    lines = [["id", "what is timed: against what", "floor", "must", "aim", "reached", "met"]]
    for row in targets(results):
        if row["must"] is None and row["aim"] is None:
            continue  # noted beside, among the details
        bounds = [row["floor"] or "-", bound(row["must"]), bound(row["aim"])]
        lines.append([row["id"], row["what"], *bounds, reached(row), verdict(row)])
    return table(lines, markdown=True)


def details(name, results):
    """The times (or bytes) behind the ratios of one script."""
    rows, scored = results[name]["rows"], "error" if name == "arrays" else "accuracy"
    if name == "memory":
        lines = [["id", "what: beside", "ours, MB", "other, MB", "floor, MB"]]
        lines += [
            [row["id"], row["what"], spread(row, "ours"), spread(row, "rival"), row["floor"]]
            for row in rows
        ]
    else:
        lines = [["id", "what: against", "ours, ms", "rival, ms", "ratio", scored]]
        lines += [
            [
                row["id"],
                row["what"],
                spread(row, "ours"),
                spread(row, "rival"),
                quartiles(row),
                scores(row),
            ]
            for row in rows
        ]
    return table(lines, markdown=True)


def shortfalls(results):
    """The targets that are missed, and those that miss their aim, as two paragraphs."""
    missed, below = [], []
    for row in targets(results):
        if row["met"].startswith("no"):
            key = "must" if row["must"] is not None else "aim"
            missed.append(f"- **{row['id']}**, {row['what']}: {reached(row)}, {key} {row[key]:g}.")
        elif row["met"].startswith("must") and row["aim"] is not None:
            below.append(row["id"])
    bars = "\n".join(missed) or "No bar is missed."
    aims = ", ".join(dict.fromkeys(below)) or "none"
    return f"{bars}\n\nTheir bar is met but not their aim: {aims}."


def machines(results):
    """What the figures were taken on, and how busy that was."""
    found = {}
    for name in NAMES:
        for row in results[name]["rows"]:
            about = results[name]["machines"][row["machine"]]
            about = {key: value for key, value in about.items() if key not in ("packages", "blas")}
            key = json.dumps(about)
            packages = results[name]["machines"][row["machine"]]
            ids, loads, versions = found.setdefault(key, ({}, [], {}))
            ids[row["id"]] = None
            loads.append(row["load"])
            versions |= dict.fromkeys(packages["packages"].split(", "))
            versions |= dict.fromkeys(packages["blas"].split(", "))
    lines = []
    for key, (ids, loads, versions) in found.items():
        about = json.loads(key)
        known = [load for load in loads if load is not None]
        busy = f", load average {min(known):g} to {max(known):g}" if known else ""
        lines.append(
            f"- {', '.join(ids)}: {about['processor']}, {about['cores']} cores, {about['system']}, "
            f"`{about['executor']}`; Python {about['python']}, {', '.join(versions)}{busy}."
        )
    return "\n".join(lines)


NOT_MEASURED = "not measured yet"


def on_a_card(results):
    """Every target of the GPU with its bounds, and what is reached where it was measured."""
    measured = {(row["id"], row["what"]): row for row in results["rows"]}
    if not measured:
        lines = [["id", "what: against what", "must", "aim"]]
        for target in GPU_TARGETS:
            bounds = (bound_with_unit(target, key) for key in ("must", "aim"))
            lines.append([target.id, target.what, *bounds])
        return f"What a card should reach; {NOT_MEASURED}:\n\n{table(lines, markdown=True)}"
    lines = [["id", "what: against what", "floor", "must", "aim", "reached", "met", "ours, ms"]]
    for target in GPU_TARGETS:
        row = measured.get((target.id, target.what))
        bounds = [target.floor or "-", *(bound_with_unit(target, key) for key in ("must", "aim"))]
        found = [NOT_MEASURED, "-", "-"]
        if row is not None:
            time = "-" if row["unit"] in WORST else spread(row, "ours")
            found = [reached(row), verdict(row), time]
        lines.append([target.id, target.what, *bounds, *found])
    return table(lines, markdown=True)


def bound_with_unit(target, key):
    value = getattr(target, key)
    return "-" if value is None else f"{value:g} {target.unit}"


def cards(results):
    """What the figures were taken on."""
    lines = []
    for index, about in enumerate(results.get("machines", [])):
        ids = dict.fromkeys(row["id"] for row in results["rows"] if row["machine"] == index)
        clocks = [row["clocks"] for row in results["rows"] if row["machine"] == index]
        sm, memory = (" to ".join(extremes(clocks, key)) for key in ("clocks.sm", "clocks.mem"))
        lines.append(
            f"- {', '.join(ids)}: {about['card']}, driver {about['driver']}, CUDA {about['cuda']}, "
            f"clocks {sm}, of the memory {memory}; {about['processor']}, {about['cores']} cores; "
            f"Python {about['python']}, {about['packages']}."
        )
    return "\n".join(lines)


def extremes(clocks, key):
    """The lowest and the highest of some clocks, one if they are the same."""
    found = sorted({clock[key] for clock in clocks}, key=lambda text: (len(text), text))
    return dict.fromkeys((found[0], found[-1]))


def render_gpu(text, results):
    """The page of the GPU with its table written anew."""
    return filled(text, {"targets": on_a_card(results), "cards": cards(results)})


def render(text, results):
    """The page with its tables written anew."""
    blocks = {"overview": overview(results), "shortfalls": shortfalls(results)}
    blocks |= {name: details(name, results) for name in NAMES}
    blocks["machines"] = machines(results)
    return filled(text, blocks)


def filled(text, blocks):
    """The page with these blocks between their marks."""
    for name, block in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text, n = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"{n} places for {name!r} on the page")
    return text


# ---------------------------------------------------------------------------------------- figures

# The colours are those of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {"aim": "#009e73", "must": "#0072b2", "no": "#d55e00", "-": "#5c5c5c"}
SIDES = {
    "skbn": "#0072b2",
    "torch": "#d55e00",
    "torch, DataLoader": "#d55e00",
    "torch, one gather an epoch": "#e69f00",
    "scikit-learn": "#5c5c5c",
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "font.size": 9,
    "savefig.dpi": 110,
}


LEGIBLE = {"font.size": 12, "savefig.dpi": 150}  # at 7 inches: on a phone too

# What a label can do without, beside its number; the page's tables have it.
SHORTER = [
    (r" eager| without batch norm|, forward and backward|,? each at its best.*|, all cores$", ""),
    (r", SGD(?=: [KJ]|,)|, batch 256, Adam|, 16 candidates.*(?=:)", ""),
    (r"Keras's fit on JAX, once compiled, an epoch.*", "Keras, epoch at once"),
    (r"Keras's fit on JAX, once compiled", "Keras, compiled"),
    (r"Keras's fit on JAX, compiling counted", "Keras, compiling"),
    (r"JAX, an epoch in one lax.scan", "JAX, lax.scan"),
    (r"2-50-1, (?=p)|, all cores(?=: one)| of 32 rows|batch norm of ", ""),
    (r"1048576 x 64 \((.*)\)", r"\1"),
    (r"784-512-512-10, (?=.*matrix)|an epoch of (?=784)|(?<=one) row| rows(?=: s)", ""),
    (r"the bare matrix products", "products"),
    (r", beside a busy process", ""),
    (r"without it", "alone"),
]


def short(what):
    """What a row times, in as few words as a figure has room for."""
    for pattern, words in SHORTER:
        what = re.sub(pattern, words, what)
    return what


def digest(rows):
    """What a figure was drawn from, for the test that it is up to date."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def figures(results):
    """Each figure's rows and how they are drawn, by file name."""
    known = [row for row in targets(results) if figure(row) is not None]
    return {
        "targets.png": (known, draw_targets),
        "threads.png": ([row for row in known if row["id"] in ("C12", "C13")], draw_threads),
        "memory.png": (results["memory"]["rows"], draw_memory),
    }


def dots(ax, rows):
    """One line a row: the ratio with its quartiles, and its bounds."""
    for y, row in enumerate(rows):
        colour = COLOURS[row["met"].partition(",")[0]]
        ratio = row["ratio"]
        ax.plot([ratio["q1"], ratio["q3"]], [y, y], color=colour, lw=3, solid_capstyle="butt")
        ax.plot(ratio["median"], y, "o", ms=6, color=colour)
        for key, marker in [("must", "|"), ("aim", "D")]:
            if row[key] is not None:
                ax.plot(row[key], y, marker, ms=10 if marker == "|" else 4.5, mfc="white", mec="k")
        end = max(value for value in (ratio["q3"], row["must"], row["aim"]) if value is not None)
        ax.annotate(
            three_digits(ratio["median"]),
            (end, y),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    ax.set_yticks(range(len(rows)), [f"{short(row['what'])}  {row['id']}" for row in rows])
    ax.set(xscale="log", ylim=(len(rows) - 0.4, -0.6))
    low, high = ax.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low < t < high]
    ax.set_xticks(ticks, map("{:g}".format, ticks))
    ax.set_xticks([], minor=True)
    ax.grid(axis="y", color="0.92", lw=0.8)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_axisbelow(True)


def draw_targets(plt, rows):
    """Ratios of all targets that are ratios, beside their bounds."""
    rows = [row for row in rows if row["unit"] not in AMOUNTS and row["met"] != "-"]
    panels = {
        "How many times faster (more is better)": [row for row in rows if row["unit"] == FASTER],
        "How many times slower (less is better)": [row for row in rows if row["unit"] != FASTER],
    }
    heights = [len(panel) + 1 for panel in panels.values()]
    size = (7, 1.6 + 0.3 * sum(heights))
    figure, axes = plt.subplots(2, 1, figsize=size, height_ratios=heights, layout="constrained")
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        dots(ax, panel)
        ax.set_title(title)
    handles = [
        plt.Line2D([], [], color=COLOURS[key], marker="o", lw=3, label=label)
        for key, label in [("aim", "aim met"), ("must", "bar met"), ("no", "bar missed")]
    ]
    marks = {"mfc": "white", "mec": "k", "ls": ""}
    handles.append(plt.Line2D([], [], marker="|", ms=10, label="bar (must)", **marks))
    handles.append(plt.Line2D([], [], marker="D", ms=4.5, label="aim", **marks))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
    return figure


def draw_threads(plt, rows):
    """What a second thread brings, and what a busy neighbour takes."""
    panels = {
        "C12: times faster on all cores (black: the bar)": [
            row for row in rows if row["id"] == "C12"
        ],
        "C13: times slower beside a busy process": [row for row in rows if row["id"] == "C13"],
    }
    size = (7, 1.2 + 0.36 * sum(map(len, panels.values())))
    figure, axes = plt.subplots(
        2, 1, figsize=size, height_ratios=[*map(len, panels.values())], layout="constrained"
    )
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        values = [row["ratio"]["median"] for row in panel]
        sides = ("torch" if row["what"].startswith("torch") else "skbn" for row in panel)
        colours = [SIDES[side] for side in sides]
        limit = 1.12 * max([*values, *(row["must"] or 0 for row in panel)])
        ax.barh(range(len(panel)), values, 0.6, color=colours)
        for y, (row, value) in enumerate(zip(panel, values, strict=True)):
            if row["must"] is not None:
                ax.plot([row["must"]] * 2, [y - 0.42, y + 0.42], color="k", lw=1.6)
            near = row["must"] is not None and 0 < row["must"] - value < limit / 10
            end = row["must"] if near else value
            ax.annotate(
                three_digits(value), (end, y), (5, 0), textcoords="offset points", va="center"
            )
        ax.set_yticks(range(len(panel)), [short(row["what"].partition(":")[0]) for row in panel])
        ax.set(title=title, ylim=(len(panel) - 0.4, -0.6))
        ax.set_xlim(0, limit)
        ax.axvline(1, color="0.6", lw=0.8, zorder=0)
        ax.tick_params(axis="y", length=0)
    return figure


def draw_memory(plt, rows):
    """Peaks above X beside X itself."""
    size = float(re.search(r"X of (\d+) MB", rows[0]["what"])[1])
    bars = {}
    for row in rows:
        layout, rival = row["what"].partition(", ")[2].split(": ")
        for who, name in [("ours", "skbn"), ("rival", rival)]:
            if who in row:
                bars.setdefault(layout, {})[name] = row[who]["median"] * AMOUNTS["MB"]
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    y, ticks = 0.0, {}
    for layout, group in bars.items():
        ticks[layout] = y + (len(group) - 1) / 2
        for name, value in group.items():
            ax.barh(y, value, 0.8, color=SIDES[name])
            side, shift = ("right", -4) if value > size / 4 else ("left", 4)  # in a long bar
            ax.annotate(
                f"{name} {three_digits(value)}",
                (value, y),
                (shift, 0),
                textcoords="offset points",
                ha=side,
                va="center",
            )
            y += 1
        y += 0.7
    floor = float(rows[0]["floor"])
    ax.axvline(floor, color="k", lw=1.2, ls=":")
    ax.axvline(size, color="0.6", lw=1.2)
    ax.annotate(f"X, {size:g} MB", (size, y - 0.6), (4, 0), textcoords="offset points", color="0.4")
    ax.annotate(f"floor, {floor:g} MB", (floor, y - 0.6), (4, 0), textcoords="offset points")
    ax.set_yticks(list(ticks.values()), list(ticks))
    ax.set(ylim=(y - 0.1, -0.7), xscale="log", xlim=(5, 4 * size))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_title("C17: peak memory of a fit above X, MB")
    ax.tick_params(axis="y", length=0)
    return figure


def write_figures(figures, **style):
    """Draw figures, and note in each what it was drawn from; ``style`` is added to STYLE."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    for name, (rows, draw) in figures.items():
        with plt.rc_context(STYLE | style):
            draw(plt, rows).savefig(RESULTS / name)
        about = PngInfo()
        about.add_text("Description", digest(rows))
        with Image.open(RESULTS / name) as picture:
            few_colours = picture.convert("RGB").quantize(
                128, Image.Quantize.MAXCOVERAGE
            )  # a quarter of the bytes
        few_colours.save(RESULTS / name, optimize=True, pnginfo=about)


def main():
    results = load()
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    page = render_gpu(GPU_PAGE.read_text(encoding="utf-8"), load_gpu())
    GPU_PAGE.write_text(page, encoding="utf-8")
    write_figures(figures(results), **LEGIBLE)


if __name__ == "__main__":
    main()
