"""Runs a notebook from a clean kernel, as its reader would: `python notebook.py IN.ipynb OUT.ipynb`.

In its own folder, with the kernel it names. OUT is written also when a cell fails; the failure is the last line on stderr.
"""
import os
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main(source, target):
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": os.path.dirname(os.path.abspath(source))}}
    execute = lambda: NotebookClient(notebook, timeout=1200, resources=resources).execute()
    failure = None
    try:
        try:
            execute()
        except RuntimeError as error:
            if "died before replying" not in str(error):
                raise
            execute()  # as JupyterLab does: its ports were taken by another program between choosing and opening them
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
    nbformat.write(notebook, target)
    if failure:
        sys.exit(f"a cell of {os.path.basename(source)} failed: {failure}")


main(*sys.argv[1:])
