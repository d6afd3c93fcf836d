"""A notebook with its outputs as one HTML file that works without a network: `python export_html.py IN.ipynb OUT.html`.

Figures stay interactive; plotly.js is in the file once, and not at all where there is no figure. What outputs and texts contain is
cleaned of scripts, and the page forbids itself every script but its own and every address but itself.
"""
import copy
import html
import json
import os
import re
import secrets
import sys
from base64 import b64encode
from pathlib import Path

import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bleach.sanitizer import Cleaner
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune

PLOTLY = "application/vnd.plotly.v1+json"
PLAIN = {"text/plain", "image/png", "image/jpeg"}

TAGS = {"a", "b", "br", "caption", "code", "dd", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "hr", "i", "img", "li",
        "ol", "p", "pre", "progress", "small", "span", "strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul"}
STYLES = {"background-color", "border", "color", "display", "font-family", "font-size", "font-weight", "gap", "grid-template-columns", "height",
          "justify-content", "line-height", "margin", "max-width", "overflow-wrap", "padding", "text-align", "vertical-align", "white-space", "width"}
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]*\Z")


def allowed(tag, name, value):
    """Attributes that cannot run anything or reach anywhere. Pictures are those inside the page."""
    if name == "src":
        return tag == "img" and PICTURE.match(value) is not None
    if name == "href":
        return tag == "a" and re.match(r"https?://|#", value) is not None
    return name in {"align", "alt", "class", "colspan", "height", "max", "rowspan", "style", "title", "value", "width"}


CLEANER = Cleaner(tags=TAGS, attributes=allowed, protocols={"http", "https", "data"}, strip=True, strip_comments=True,
                  css_sanitizer=CSSSanitizer(allowed_css_properties=STYLES))

# Figures are drawn when they come into view; until then, and where scripts are off, the still picture stands.
DRAW = """
for (const place of document.querySelectorAll("[data-vitrine-figure]")) {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    const { data, layout, config } = JSON.parse(document.getElementById(place.dataset.vitrineFigure).textContent);
    place.replaceChildren();
    Plotly.newPlot(place, data, layout, config);
  }, { rootMargin: "200px" }).observe(place);
}
"""


def export(notebook, plotly_js=None):
    """The HTML text of a notebook node. plotly_js: the file to put in (default: the one of the plotly package)."""
    notebook = copy.deepcopy(notebook)
    # nbconvert gets words that stand for what is ours or was cleaned; they cannot be guessed, so nothing in a notebook can pose as one.
    key = secrets.token_hex(16)
    blocks = []

    def stand_in(block):
        blocks.append(block)
        return f"{key}-{len(blocks) - 1}"

    figures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = stand_in(CLEANER.clean(markdown2html_mistune(cell.source)))
        elif cell.cell_type == "raw":
            cell.source = CLEANER.clean(cell.source)
        for output in cell.get("outputs", []):
            if "data" not in output:
                continue
            block = block_of(output["data"], f"vitrine-figure-{figures}")
            figures += PLOTLY in output["data"]
            output["data"] = {"text/plain": stand_in(block)} if block else {mime: data for mime, data in output["data"].items() if mime in PLAIN}
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", mermaid_layout_elk_js_url="")
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(rf"<(pre|p)>\s*{key}-(\d+)\s*</\1>", lambda found: blocks[int(found[2])], without_scripts(body))
    return finished(body, figures, plotly_js)


def block_of(data, name):
    """An output as HTML of ours, or None where nbconvert shows it as it is."""
    if PLOTLY in data:
        return figure_block(data, name)
    if "text/html" in data:
        return rendered(CLEANER.clean(joined(data["text/html"])))
    if "image/svg+xml" in data:
        # As a picture an SVG runs no scripts.
        return f'<img alt="" src="data:image/svg+xml;base64,{b64encode(joined(data["image/svg+xml"]).encode()).decode()}">'
    if "text/markdown" in data:
        return rendered(CLEANER.clean(markdown2html_mistune(joined(data["text/markdown"]))))
    return None


def rendered(markup):
    return f'<div class="jp-RenderedHTMLCommon" style="font-family:var(--jp-content-font-family)">{markup}</div>'


def joined(text):
    return "".join(text) if isinstance(text, list) else text


def figure_block(data, name):
    """The figure as data (in a script element of type JSON, where "<" is escaped so that nothing can end it) and its still picture."""
    still = joined(data.get("image/png", "")).replace("\n", "")
    picture = f'<img alt="{html.escape(joined(data.get("text/plain", "figure")))}" src="data:image/png;base64,{html.escape(still)}">' if still else ""
    layout = data[PLOTLY].get("layout", {})
    height = int(layout.get("height") or 450)
    content = json.dumps({"data": data[PLOTLY].get("data", []), "layout": layout, "config": {"displaylogo": False, "responsive": True}}).replace("<", "\\u003c")
    return f'<div data-vitrine-figure="{name}" style="min-height:{height}px">{picture}</div><script type="application/json" id="{name}">{content}</script>'


def without_scripts(body):
    """nbconvert's own scripts load libraries from elsewhere; the page needs none of them."""
    return re.sub(r"<script[^>]*>.*?</script>", "", body, flags=re.DOTALL | re.IGNORECASE)


def finished(body, figures, plotly_js):
    """Adds the policy, and plotly once where there are figures."""
    nonce = secrets.token_hex(16)
    # plotly's 3-D traces compile their shaders' wrappers: 'unsafe-eval' is for them; without the nonce no script runs at all.
    policy = (f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; font-src data:; script-src 'nonce-{nonce}' 'unsafe-eval'; "
              "base-uri 'none'; form-action 'none'")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    body = re.sub(r"(<head[^>]*>\s*(?:<meta charset[^>]*>)?)", lambda found: found[1] + head, body, count=1)
    if figures:
        library = Path(plotly_js or packaged_plotly()).read_text(encoding="utf-8").replace("</script", "<\\/script")
        scripts = f'<script nonce="{nonce}">{library}</script>\n<script nonce="{nonce}">{DRAW}</script>\n'
        at = body.rindex("</body>")
        body = body[:at] + scripts + body[at:]
    return body


def packaged_plotly():
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def write(path, text):
    """Under another name first: a page is there whole or not at all."""
    unfinished = f"{path}.{os.getpid()}.new"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python export_html.py IN.ipynb OUT.html")
    write(sys.argv[2], export(nbformat.read(sys.argv[1], as_version=4)))
