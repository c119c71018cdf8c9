"""The README's Python code runs as it stands."""
# SPDX-License-Identifier: BSD-3-Clause

import re
import textwrap
from pathlib import Path

import pytest
import sklearn

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.skipif(not README.exists(), reason="the tests lie elsewhere than the sources")
def test_python_blocks(capsys):
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    names = {}
    with sklearn.config_context():  # one of the blocks sets a global option
        for block in blocks:
            exec(textwrap.dedent(block), names)
    assert "mlpclassifierbn__batch_norm" in capsys.readouterr().out
    assert len(names["pipe"]["mlp"].validation_scores_) > 1
