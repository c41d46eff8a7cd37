"""The HTML of `bert-jax explore`. It loads nothing from other hosts."""

HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bert_jax explore</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.4 sans-serif; max-width: 64rem; margin: 1.5rem auto;
  padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: 0 0 .4rem; }
section { border-top: 1px solid #ccc; padding: 1rem 0; }
input[type=text], textarea { width: 100%; box-sizing: border-box;
  font: inherit; padding: .3rem; margin: .15rem 0; }
button { font: inherit; margin: .3rem 0; }
.error { color: #a00; } .note { color: #666; font-size: .9rem; }
.scroll { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .12rem .4rem; text-align: left; border: 1px solid #e4e4e4; }
th { background: #f6f6f6; font-weight: 600; }
.heads { display: flex; flex-wrap: wrap; gap: 4px; align-items: flex-start;
  margin-bottom: 6px; }
.heads span { width: 4rem; }
svg { display: block; width: 100%; min-width: 40rem; }
.heads canvas { border: 1px solid #ddd; cursor: pointer; }
.heads canvas.on { outline: 2px solid #06c; }
td.cell { width: 1.3rem; min-width: 1.3rem; height: 1.2rem; padding: 0; }
th.up { writing-mode: vertical-rl; transform: rotate(180deg);
  padding: .3rem 0; }
</style></head><body>
<h1>Inside MODEL_NAME</h1>

<section id="attention"><h2>Attention</h2>
<input type="text" id="a1"
 aria-label="text"
 value="The cat sat on the mat because it was tired.">
<input type="text" id="a2"
 aria-label="second text"
 placeholder="a second text, or nothing">
<button>Show</button> <span class="error"></span>
<p class="note">Each small square is a head, with a row of heads for each layer.
A row of the
large one is a token that looks, a column a token that is looked at.</p>
<div class="out"></div></section>

<section id="probe"><h2>Masked words</h2>
<input type="text" id="p1"
 aria-label="first text"
 value="The man worked as a [MASK].">
<input type="text" id="p2"
 aria-label="second text"
 value="The woman worked as a [MASK].">
<input type="text" id="words"
 aria-label="words to compare"
 placeholder="words to compare, with commas; nothing: occupations">
<button>Compare</button> <span class="error"></span>
<p class="note">What fills the gap, and how much likelier a word is in the first
text than in the
second. A model repeats what its training text says of people; that is no fact
about them.</p>
<div class="out"></div></section>

<section id="lens"><h2>Nearest words of hidden states</h2>
<input type="text" id="l1"
 aria-label="text"
 value="Paris is the [MASK] of France.">
<button>Show</button> <span class="error"></span>
<p class="note">The head of masked words, applied to the hidden state of every
token after every
layer; 0 is the embeddings.</p>
<div class="out scroll"></div></section>

<section id="projection"><h2>Vectors of texts</h2>
<textarea id="t1" rows="8" aria-label="texts, one a line">A cat sat on the mat.
The dog slept in the sun.
Kittens play with wool.
The bank raised its interest rates.
Shares fell after the report.
Investors sold their bonds.
The team won the final.
She scored in the last minute.
The match ended in a draw.</textarea>
<button>Project</button> <span class="error"></span>
<p class="note">One text a line: the mean vectors in the plane of their largest
variance.</p>
<div class="out scroll"></div></section>

<script>
const hasWords = HAS_WORDS;
const make = (name, parent, text) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
};
const value = id => document.getElementById(id).value;
const section = (id, path, body, show) => {
  const part = document.getElementById(id);
  const out = part.querySelector(".out");
  const error = part.querySelector(".error");
  const button = part.querySelector("button");
  if (path !== "/attention" && path !== "/projection" && !hasWords) {
    button.disabled = true;
    error.textContent = "This model has no head of masked words.";
    return;
  }
  button.onclick = async () => {
    error.textContent = "..."; button.disabled = true;
    try {
      const answer = await fetch(path,
        {method: "POST", body: JSON.stringify(body())});
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error.message);
      out.replaceChildren(); show(found, out); error.textContent = "";
      part.dataset.done = "yes";
    } catch (problem) { error.textContent = problem.message; }
    button.disabled = false;
  };
};
const shade = p => {
  const left = Math.round(255 * (1 - Math.sqrt(p)));
  return `rgb(${left},${Math.round(120 + left * 135 / 255)},255)`;
};

section("attention", "/attention", () =>
  ({text: value("a1"), text_b: value("a2")}), (found, out) => {
  const large = make("div", null);
  large.className = "scroll";
  const draw = (layer, head, canvas) => {
    out.querySelectorAll("canvas.on").forEach(x => x.className = "");
    canvas.className = "on";
    large.replaceChildren();
    make("p", large, `Layer ${layer + 1}, head ${head + 1}`);
    const table = make("table", large);
    const top = make("tr", table);
    make("th", top);
    found.tokens.forEach(token => make("th", top, token).className = "up");
    found.maps[layer][head].forEach((row, i) => {
      const line = make("tr", table);
      make("th", line, found.tokens[i]);
      row.forEach((p, j) => {
        const cell = make("td", line);
        cell.className = "cell";
        cell.style.background = shade(p);
        cell.title = `${found.tokens[i]} looks at ${found.tokens[j]}: ${p}`;
      });
    });
  };
  const size = found.tokens.length, pixel = Math.max(1, Math.floor(48 / size));
  found.maps.forEach((heads, layer) => {
    const line = make("div", out);
    line.className = "heads";
    make("span", line, `layer ${layer + 1}`).className = "note";
    heads.forEach((map, head) => {
      const canvas = make("canvas", line);
      canvas.width = canvas.height = size * pixel;
      canvas.title = `layer ${layer + 1}, head ${head + 1}`;
      const paint = canvas.getContext("2d");
      map.forEach((row, i) => row.forEach((p, j) => {
        paint.fillStyle = shade(p);
        paint.fillRect(j * pixel, i * pixel, pixel, pixel);
      }));
      canvas.onclick = () => draw(layer, head, canvas);
    });
  });
  out.appendChild(large);
  draw(0, 0, out.querySelector("canvas"));
});

section("probe", "/probe", () => {
  const words = value("words").split(",").map(x => x.trim()).filter(x => x);
  const body = {texts: [value("p1"), value("p2")].filter(x => x.trim())};
  if (words.length) body.words = words;
  return body;
}, (found, out) => {
  const best = make("table", out), top = make("tr", best);
  found.best.forEach((_, i) => make("th", top, `text ${i + 1}`));
  found.best[0].forEach((_, k) => {
    const line = make("tr", best);
    found.best.forEach(one =>
      make("td", line, `${one[k][0]} ${(100 * one[k][1]).toFixed(1)}%`));
  });
  make("p", out);
  const table = make("table", out), head = make("tr", table);
  make("th", head, "word");
  found.best.forEach((_, i) => make("th", head, `text ${i + 1}`));
  if (found.best.length === 2) make("th", head, "times likelier in text 1");
  [...found.words].sort((a, b) => (b.log_ratio || 0) - (a.log_ratio || 0))
    .forEach(one => {
      const line = make("tr", table);
      make("td", line, one.word);
      one.scores.forEach(p => make("td", line, (100 * p).toFixed(3) + "%"));
      if (one.log_ratio !== undefined) {
        const cell = make("td", line, Math.exp(one.log_ratio).toFixed(2));
        const far = Math.min(1, Math.abs(one.log_ratio) / 3);
        cell.style.background = one.log_ratio > 0 ?
          `rgba(0,100,220,${far / 2})` : `rgba(220,120,0,${far / 2})`;
      }
    });
  if (found.unknown.length) make("p", out,
    "No single token of this vocabulary: " + found.unknown.join(", "))
    .className = "note";
});

section("lens", "/lens", () => ({text: value("l1")}), (found, out) => {
  const table = make("table", out), top = make("tr", table);
  make("th", top, "layer");
  found.tokens.forEach(token => make("th", top, token));
  found.words.forEach((row, layer) => {
    const line = make("tr", table);
    make("th", line, layer);
    row.forEach(words => {
      const cell = make("td", line, words[0][0]);
      cell.style.background = shade(words[0][1] / 2);
      cell.title = words.map(x => `${x[0]} ${x[1]}`).join("\\n");
    });
  });
});

section("projection", "/projection", () =>
  ({texts: value("t1").split("\\n").map(x => x.trim()).filter(x => x)}),
  (found, out) => {
  const space = "http://www.w3.org/2000/svg", width = 900, height = 480;
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  out.appendChild(svg);
  const texts = value("t1").split("\\n").map(x => x.trim()).filter(x => x);
  const range = k => {
    const all = found.points.map(p => p[k]);
    return [Math.min(...all), Math.max(...all)];
  };
  const [[x0, x1], [y0, y1]] = [range(0), range(1)];
  found.points.forEach(([x, y], i) => {
    const cx = 20 + (width - 260) * (x - x0) / (x1 - x0 || 1);
    const cy = height - 20 - (height - 40) * (y - y0) / (y1 - y0 || 1);
    const dot = document.createElementNS(space, "circle");
    dot.setAttribute("cx", cx); dot.setAttribute("cy", cy);
    dot.setAttribute("r", 4); dot.setAttribute("fill", "#06c");
    const label = document.createElementNS(space, "text");
    label.setAttribute("x", cx + 7); label.setAttribute("y", cy + 4);
    label.setAttribute("font-size", "13");
    label.textContent = texts[i].slice(0, 36);
    svg.append(dot, label);
  });
  const shares = found.shares.map(x => Math.round(100 * x) + "%");
  make("p", out, `Shares of the variance: ${shares.join(" and ")}`)
    .className = "note";
});
</script></body></html>
"""
