"""Runs a notebook through the vitrine kernel, prints what its cells show, and writes one HTML page.

    python headless.py NOTEBOOK PAGE PLOTLY_JS KERNELS

Exit code 0 when every cell ran, 1 when one failed (the page is written all the same).
"""
import asyncio
import os
import re
import sys
import time
import warnings

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

PLOTLY = "application/vnd.plotly.v1+json"
sys.path.insert(0, sys.argv[4])  # kernels/, where the page's writer stands
import export_html  # noqa: E402

warnings.filterwarnings("ignore", module="nbformat")  # notes on cell ids are no business of who runs a notebook
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def main(notebook_path, page_path, plotly_js):
    started = time.monotonic()
    notebook = nbformat.read(notebook_path, as_version=4)
    folder = os.path.dirname(os.path.abspath(notebook_path))
    client = NotebookClient(notebook, kernel_name="vitrine", timeout=None, resources={"metadata": {"path": folder}},
                            on_cell_executed=lambda cell, cell_index, execute_reply: tell(cell))
    print(f"Running {os.path.relpath(notebook_path)} …", flush=True)
    failed = None
    try:
        client.execute()
    except CellExecutionError as error:
        failed = f"a cell failed: {error.ename}: {error.evalue}"
    except (DeadKernelError, NoSuchKernel, RuntimeError) as error:
        failed = f"the kernel did not run: {error}. `npm run doctor` checks the parts."
    export_html.write(page_path, export_html.export(notebook, plotly_js))
    seconds = time.monotonic() - started
    print(f"{'Failed: ' + failed if failed else 'Every cell ran'} ({seconds:.0f} s). The page: {os.path.abspath(page_path)}", flush=True)
    return 1 if failed else 0


def tell(cell):
    """A cell's outputs: text as it is, one line for a figure or picture."""
    for output in cell.get("outputs", []):
        text = describe(output)
        if text:
            print(text.rstrip("\n"), flush=True)


def describe(output):
    kind = output["output_type"]
    if kind == "stream":
        return COLOURS.sub("", joined(output["text"]))
    if kind == "error":
        return COLOURS.sub("", "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}")
    data = output.get("data", {})
    text = joined(data.get("text/plain", ""))
    if PLOTLY in data:
        return f"[figure] {text.splitlines()[0] if text else title_of(data[PLOTLY])}"
    picture = next((mime for mime in data if mime.startswith("image/")), None)
    if picture and not text:
        return f"[picture] {picture}"
    return text or f"[{', '.join(data)}]"


def joined(text):
    return "".join(text) if isinstance(text, list) else text


def title_of(figure):
    title = figure.get("layout", {}).get("title", "")
    return title.get("text", "") if isinstance(title, dict) else title


if __name__ == "__main__":
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    try:
        sys.exit(main(*sys.argv[1:4]))
    except KeyboardInterrupt:
        sys.exit(130)
