"""One HTML file that holds all it needs: it opens without a network, loads nothing, runs no script but its own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

from qlab.plots.theme import DARK, LIGHT, Palette

_HERE = Path(__file__)


@dataclass(frozen=True)
class Chart:
    """A figure for light and for dark, with what it says for those who do not see it."""

    light: Any  # go.Figure
    dark: Any
    label: str
    caption: str = ""

    @property
    def height(self) -> int:
        return int(self.light.layout.height or 450)


def text(value: object) -> str:
    """Free text as HTML: no markup of its own, and its direction of writing ends with it."""
    return f"<bdi>{plain(value)}</bdi>"


def plain(value: object) -> str:
    """Text as HTML, in an element or in an attribute between double quotes."""
    return html.escape(str(value), quote=True)


def as_data(text_of_json: str) -> str:
    """The same JSON with every sign escaped that means something in HTML, so that no script element ends in it."""
    signs: dict[str, str | int | None] = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"}
    return text_of_json.translate(str.maketrans(signs))


def place(name: str, chart: Chart) -> str:
    """Where the chart of this name will be drawn."""
    caption = f"<figcaption>{chart.caption}</figcaption>" if chart.caption else ""
    return (
        f'<figure><div class="chart" id="{plain(name)}" role="img" aria-label="{plain(chart.label)}"'
        f' style="--height: {chart.height}px"><p>The chart is drawn by the script of this page.</p></div>'
        f"{caption}</figure>"
    )


def page(title: str, body: str, charts: Mapping[str, Chart]) -> bytes:
    """The file. body: HTML with the `place` of every chart, by name."""
    script = _HERE.with_suffix(".js").read_text(encoding="utf-8")
    library = _library() if charts else Packed("", "")
    figures = {
        name: f'{{"light": {chart.light.to_json()}, "dark": {chart.dark.to_json()}}}' for name, chart in charts.items()
    }
    data = "{" + ", ".join(f"{json.dumps(name)}: {figure}" for name, figure in figures.items()) + "}"
    return _PAGE.substitute(
        policy=plain(_policy(_hash(script), library.hash)), title=plain(title), colours=_colours(),
        style=_HERE.with_suffix(".css").read_text(encoding="utf-8"), body=body, figures=as_data(data),
        library=library.data, script=script,
    ).encode()  # fmt: skip


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>
$colours
$style
</style>
</head>
<body>
$body
<noscript><p>Charts and sorting need JavaScript. The tables are complete without it.</p></noscript>
<script type="application/json" id="chart-data">$figures</script>
<script type="text/plain" id="plotly">$library</script>
<script>$script</script>
</body>
</html>
""")


def _policy(*hashes: str) -> str:
    """What the page may load: nothing from anywhere, and of scripts those alone whose text has one of these hashes.

    plotly.js writes style elements and attributes, and its images (a heatmap, a saved picture) are data and blobs.
    """
    scripts = " ".join(f"'{one}'" for one in hashes if one)
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@dataclass(frozen=True)
class Packed:
    """A script as gzip in base64, and its hash before that."""

    data: str
    hash: str


@lru_cache(maxsize=1)
def _library() -> Packed:
    """plotly.js. As it is it would fill the file alone; the page unpacks it with the browser's DecompressionStream."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return Packed(base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode(), _hash(source))


def _colours() -> str:
    def variables(colours: Palette) -> str:
        return " ".join(f"--{name}: {value};" for name, value in asdict(colours).items())

    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ {variables(LIGHT)} }}\n{dark}"
