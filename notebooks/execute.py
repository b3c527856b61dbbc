"""Runs the notebooks from top to bottom and saves what they show.

    python notebooks/execute.py [NOTEBOOK ...]

A warning is an error. Large pictures become JPEGs. Progress bars, widgets, times and versions are left out: running it
again changes only what is really different.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
LARGE = 200_000  # characters of a PNG in base64; a picture of photos takes a quarter of it as a JPEG
WIDGET = "application/vnd.jupyter.widget-view+json"
# ipykernel announces on its way out that its own method will have to be a coroutine some day.
WARNINGS = "error,ignore::PendingDeprecationWarning:ipykernel.kernelbase"
# One thread: the same last digits everywhere, and two test processes do not fight for two cores.
QUIET = {"PYTHONWARNINGS": WARNINGS, "OMP_NUM_THREADS": "1"}


def main() -> None:
    os.environ.update(QUIET)
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        start = time.perf_counter()
        execute(path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e6:.2f} MB")


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    options = {"kernel_name": "python3", "timeout": 600, "record_timing": False, "coalesce_streams": True}
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, resources=folder, shutdown_kernel="immediate", **options).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            kept = (o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {}))
            cell.outputs = [lighter(output) for output in kept]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def lighter(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Store a large picture as a JPEG with full colour, which cannot be told from the PNG."""
    data = output.get("data", {})
    if len(data.get("image/png", "")) > LARGE:
        picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85, subsampling=0)
        data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
        output.metadata = {}
    return output


if __name__ == "__main__":
    main()
