"""What the HTML pages and the pictures of reports have in common."""

import base64
import html
import io
from typing import Any

FEW_POINTS = 30  # a curve of fewer points has markers

# The page fits 1,200 pixels; a wider table scrolls by itself.
STYLE = (
  "body{font:15px/1.5 sans-serif;max-width:1160px;margin:2em auto;"
  "padding:0 20px}"
  "table{border-collapse:collapse;display:block;overflow-x:auto;font-size:13px}"
  "th,td{border-bottom:1px solid #ccc;padding:.3em .6em;text-align:left;"
  "white-space:nowrap;font-variant-numeric:tabular-nums}"
  "td.number{text-align:right}tr.best td{background:#eef6ee}"
  "th{background:#f4f4f4}img{max-width:100%}pre{background:#f4f4f4;padding:1em;"
  "white-space:pre-wrap}"
)


def pyplot() -> Any:
  """Returns matplotlib.pyplot, which then draws without a screen."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot

  return matplotlib.pyplot


def png_of(figure: Any, dpi: int, **options: Any) -> bytes:
  """Returns a figure of matplotlib as a picture, and closes it."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=dpi, **options)
  pyplot().close(figure)
  return buffer.getvalue()


def image(png: bytes, text: str) -> str:
  """Returns a picture as a part of a page.

  Args:
    png: the picture.
    text: what stands for it where it cannot be seen.
  """
  data = base64.b64encode(png).decode()
  alt = html.escape(text, quote=True)
  return f"<img alt='{alt}' src='data:image/png;base64,{data}'>"


def figure(png: bytes, caption: str) -> str:
  """Returns a picture with a caption below it, as a part of a page."""
  below = html.escape(caption, quote=True)
  return (
    f"<figure>{image(png, caption)}<figcaption>{below}</figcaption></figure>"
  )


def page(title: str, parts: list[str]) -> str:
  """Returns a page.

  Args:
    title: the title, as plain text.
    parts: what follows the heading, as HTML.
  """
  name = html.escape(title)
  start = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f"<title>{name}</title><style>{STYLE}</style></head><body>"
  )
  return "\n".join([start, f"<h1>{name}</h1>", *parts, "</body></html>\n"])
