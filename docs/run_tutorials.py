"""Run the notebooks in docs/tutorials again and keep what they show.

Only results are kept: no warnings or progress on stderr, no times, no paths.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"


def run(path: Path) -> None:
    """Execute a notebook in place, in a fresh kernel."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.get("name") != "stderr"
            ]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for notebook_path in sorted(TUTORIALS.glob("*.ipynb")):
        print(notebook_path.name)
        run(notebook_path)
