"""The notebooks in docs/tutorials, as they are committed; the suite also runs them."""

import json
import re
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))


def test_there_are_tutorials():
    assert len(TUTORIALS) >= 2


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_from_top_to_bottom(path):
    text = path.read_text()
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for c in cells for output in c["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {
        "display_data",
        "execute_result",
        "stream",
    }
    assert all(output.get("name") != "stderr" for output in outputs)
    assert len(text) < 500_000


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_committed_notebook_names_no_machine(path):
    for cell in json.loads(path.read_text())["cells"]:
        shown = "".join(cell["source"]) + "".join(
            "".join(output.get("text", []))
            + "".join(output.get("data", {}).get("text/plain", ""))
            for output in cell.get("outputs", [])
        )
        assert not re.search(r"(?<![\w:/.<])/\w[\w.-]*/", shown)  # an absolute path
        assert "site-packages" not in shown
