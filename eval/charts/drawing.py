"""matplotlib's SVG inside our pages: accessible, in the page's colours and font, for two widths.

A plot is drawn with stand-ins for the colours, which become variables of the style sheet, so that
the page is light or dark as the reader's system is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from eval.charts.figure import COLOURS, Chart

WIDE, NARROW = 880.0, 380.0  # in CSS pixels: text keeps its size on a phone
FONT = 12.0
_NAMES = ["ink", "soft", "hair", "rule", "paper", "heat", "loss", "gain"]
_NAMES += ["on-dark", "on-mid", "on-pale", *(f"c{i}" for i in range(COLOURS))]
# Variable of the style sheet -> its stand-in in a drawing.
PALETTE = {name: f"#0000{number:02x}" for number, name in enumerate(_NAMES, start=16)}
_VARIABLES = {stand_in: f"var(--{name})" for name, stand_in in PALETTE.items()}
_STAND_IN = re.compile("|".join(_VARIABLES))
# What only makes a page longer: the font's name, rotations by nothing, the ids of groups (what is
# referred to, as clip paths and markers, has an id of another form), indentation, far decimals.
_NEEDLESS = re.compile(
    r" font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"| id=\"[\w.]+_\d+\"|(?<=\n) +"
)
_LONG_NUMBER = re.compile(r"\d+\.\d{3,}")
_TAG = re.compile(r"<[^>]*>")


def both(draw: Callable[[float], Canvas], title: str) -> Chart:
    """Return a plot drawn for both widths; `title` is what a screen reader says."""
    return Chart(_svg(draw(WIDE), title), _svg(draw(NARROW), title))


def axes(width: float, height: float, left: float, right: float, top: float, bottom: float) -> Axes:
    """Return empty axes without frame and ticks inside a canvas; all sizes in CSS pixels."""
    # At the 72 dpi that the SVG backend always has, a point is a CSS pixel.
    canvas = Canvas(figsize=(width / 72, height / 72), frameon=False)
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    ax = canvas.add_axes(box)
    plain(ax)
    return ax


def plain(ax: Axes) -> None:
    """Take frame and ticks from axes."""
    ax.set_frame_on(False)
    ax.tick_params(length=0, pad=7, labelsize=FONT, labelcolor=PALETTE["soft"])
    ax.set_axisbelow(True)


def label(ax: Axes, x: float, y: float, text: str, align: str) -> None:
    """Write a text `x`, `y` pixels off the lower left corner of the canvas."""
    ax.annotate(text, (x, y), xycoords="figure points", ha=align, va="center", fontsize=FONT,
                color=PALETTE["soft"], annotation_clip=False)  # fmt: skip


def _short(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}"


def _svg(canvas: Canvas, title: str) -> Markup:
    buffer = io.StringIO()
    # Text as text, in the font of the page. Ids from the title and no date: the same numbers give
    # the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    width, height = canvas.get_size_inches() * 72
    body = buffer.getvalue()
    body = body[body.index("<defs>", body.index("</metadata>")) : body.rindex("</svg>")]
    # The rules of a style element would hold for the whole page; report.css has them for charts.
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.S)
    # Inside tags only: a tick that says 0.004 must not say 0.00.
    body = _TAG.sub(lambda tag: _LONG_NUMBER.sub(_short, tag.group()), _NEEDLESS.sub("", body))
    body = _STAND_IN.sub(lambda found: _VARIABLES[found.group()], body)
    head = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}"'
    return Markup(f'<svg {head} class="chart">{body}</svg>')
