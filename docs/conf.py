"""Sphinx's configuration: ``sphinx-build -W docs docs/_build/html`` builds the site.

Nothing is fetched while it builds and nothing is fetched by whoever reads it. With ``-t online``
references to Python, NumPy, SciPy and scikit-learn become links to their documentation.
"""
# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import re
from datetime import date
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import skbn

DOCS = Path(__file__).parent

project = "skbn"
author = "The skbn developers"
copyright = f"{date.today():%Y}, {author}"
version = release = skbn.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "examples", "results"]
templates_path = ["_templates"]
highlight_language = "none"  # what says no language is a command or what a program printed
nitpicky = True
nitpick_ignore_regex = [(r"py:\w+", r"(sklearn|numpy|scipy|matplotlib)\b.*")]

# ------------------------------------------------------------------------------------------ pages

myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_heading_anchors = 4


def measured():
    """Speed-ups that pages speak of, from what was measured: target -> how many times faster."""
    rows = json.loads((DOCS / "results" / "rivals.json").read_text("utf-8"))["rows"]
    return {row["id"]: f"{row['ratio']['median']:.0f}" for row in reversed(rows)}


myst_substitutions = measured()

# -------------------------------------------------------------------------------------- reference

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections name the types, with shapes and defaults
autodoc_member_order = "groupwise"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
extlinks = {
    "arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s"),
    "doi": ("https://doi.org/%s", "doi:%s"),
}

if tags.has("online"):  # noqa: F821  (Sphinx puts it there)
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

# Anchors of other sites are often made by scripts, which a check does not run.
linkcheck_anchors = False
linkcheck_retries = 3

# ---------------------------------------------------------------------------------------- gallery

GALLERY = [
    "plot_placement_on_circles.py",
    "plot_training_curves.py",
    "plot_training_and_inference_mode.py",
    "plot_momentum_and_population_statistics.py",
    "plot_batch_size_and_virtual_batches.py",
    "plot_higher_learning_rates.py",
    "plot_saturating_activations.py",
    "plot_dropout_with_batch_norm.py",
    "plot_scaler_or_input_norm.py",
    "plot_diabetes_regression.py",
    "plot_digits_softmax.py",
    "plot_drifting_stream.py",
    "plot_grid_search.py",
    "plot_export.py",
    "plot_normalizers.py",
]
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": ExplicitOrder(GALLERY),
    "backreferences_dir": "api/backreferences",
    "doc_module": ("skbn",),
    "reference_url": {"skbn": None},
    "image_srcset": ["2x"],
    "only_warn_on_example_error": False,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "parallel": False,  # some examples draw how long fits take
}

# ------------------------------------------------------------------------------------------ theme

html_theme = "pydata_sphinx_theme"
html_title = "skbn"
html_static_path = ["_static"]
html_css_files = ["skbn.css"]
html_logo = "_static/logo.svg"
html_favicon = html_logo
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "skbn"},
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {page: [] for page in ("index", "install", "quick_start")}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Where the site is built for a repository, as GitHub's workflows do, its pages lead back there.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    owner, _, name = repository.partition("/")
    html_context = {
        "github_user": owner,
        "github_repo": name,
        "github_version": "main",
        "doc_path": "docs",
    }
    html_theme_options |= {"github_url": f"https://github.com/{repository}"}
    html_theme_options |= {"use_edit_page_button": True}
    html_theme_options["secondary_sidebar_items"].append("edit-this-page")


def is_theirs(app, what, name, obj, skip, options):
    """Leave methods that scikit-learn wrote to scikit-learn's own reference."""
    return True if str(getattr(obj, "__module__", "")).startswith("sklearn.") else None


def to_gallery(app, docname, source):
    """Where pages name an example's file, which GitHub shows, lead to its page in the gallery."""
    source[0] = re.sub(r"\bexamples/(plot_\w+)\.py\)", r"auto_examples/\1)", source[0])
    source[0] = source[0].replace("](examples/)", "](auto_examples/index)")


def from_root(app, path, docname, content):
    """Make links of pages at the repository's root, which are included here, lead from here."""
    content[0] = re.sub(r"\]\((?=[\w.]+/)", "](../", content[0])


def setup(app):
    app.connect("autodoc-skip-member", is_theirs)
    app.connect("source-read", to_gallery)
    app.connect("include-read", from_root)
