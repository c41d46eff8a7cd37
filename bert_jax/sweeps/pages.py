"""What the HTML pages and the pictures of reports have in common."""

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
