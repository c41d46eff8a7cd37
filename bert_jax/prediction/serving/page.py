"""The description of the server for programs (OpenAPI) and for people (HTML).

The page loads nothing from other hosts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import bert_jax
from bert_jax.kinds import table

_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
_MODEL = {
  "type": "string",
  "description": "The model. With one model, any name is accepted.",
}

# Path -> summary, properties of the body, needed properties, example.
_ROUTES: dict[str, tuple[str, dict[str, Any], list[str], dict[str, Any]]] = {
  "/v1/embeddings": (
    "The vector of each text, as OpenAI's clients ask for it.",
    {
      "input": {"oneOf": [_STRING, _STRINGS]},
      "model": _MODEL,
      "encoding_format": {"type": "string", "enum": ["float", "base64"]},
      "dimensions": {"type": "integer"},
      "user": _STRING,
    },
    ["input"],
    {"input": ["Paris is in France.", "A cat sat."], "model": "any"},
  ),
  "/predict": (
    "The answer to each record, as `bert-jax predict` gives it.",
    {
      "records": {"type": "array", "items": {"type": "object"}},
      "kind": {
        "type": "string",
        "description": "The kind of prediction; by default, the model's.",
      },
      "model": _MODEL,
      "top_k": {
        "type": "integer",
        "description": "fill-mask: the number of tokens for each [MASK].",
      },
    },
    ["records"],
    {"kind": "embed", "records": [{"text": "Paris is in France."}]},
  ),
  "/rerank": (
    "Documents in the order of their relevance to a query.",
    {
      "query": _STRING,
      "documents": _STRINGS,
      "model": _MODEL,
      "top_n": {"type": "integer"},
      "return_documents": {"type": "boolean"},
      "label": {
        "type": "string",
        "description": "classify: the label that means relevant.",
      },
    },
    ["query", "documents"],
    {
      "query": "Where is Paris?",
      "documents": ["A cat sat.", "Paris is in France."],
    },
  ),
}
_LOOKS = {
  "/health": "200 if requests are answered, else 503.",
  "/metrics": "Numbers for Prometheus.",
  "/v1/models": "The models.",
}
_ERRORS = {
  "400": "The request cannot be used.",
  "401": "The API key is missing or wrong.",
  "404": "There is no such model.",
  "413": "The request is too large.",
  "429": "The queue is full.",
  "503": "The server starts or stops.",
}


def openapi(
  kinds: Mapping[str, Sequence[str]], has_key: bool
) -> dict[str, Any]:
  """Returns the description of the server in OpenAPI 3.1.

  Args:
    kinds: name of a model -> its kinds of prediction.
    has_key: whether requests need the API key.
  """
  paths: dict[str, Any] = {}
  answers = {
    "200": {
      "description": "The answer.",
      "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **{code: {"description": text} for code, text in _ERRORS.items()},
  }
  model, own = next(iter(kinds.items()), ("", ()))
  for path, (summary, properties, needed, example) in _ROUTES.items():
    if path == "/predict" and own:
      record = dict(table.ANSWERERS[own[0]].example)
      example = {"kind": own[0], "records": [record]}
    if len(kinds) > 1:
      example = example | {"model": model}
    schema = {
      "type": "object",
      "properties": properties,
      "required": needed,
      "additionalProperties": False,
    }
    content = {"application/json": {"schema": schema, "example": example}}
    body = {"required": True, "content": content}
    paths[path] = {
      "post": {"summary": summary, "requestBody": body, "responses": answers}
    }
  for path, summary in _LOOKS.items():
    found = {"200": {"description": summary}}
    paths[path] = {"get": {"summary": summary, "responses": found}}
  models = "; ".join(f"{k}: {', '.join(names)}" for k, names in kinds.items())
  described: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
      "title": "bert_jax",
      "version": bert_jax.__version__,
      "description": f"Models and their kinds: {models or 'being loaded'}",
    },
    "paths": paths,
  }
  if has_key:
    described["components"] = {
      "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}
    }
    described["security"] = [{"key": []}]
  return described


HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bert_jax</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.4 sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem; }
textarea, pre { width: 100%; box-sizing: border-box; font: 14px monospace; }
pre { background: #f3f3f3; padding: .6rem; max-height: 20rem; overflow: auto;
  white-space: pre-wrap; }
pre:empty { display: none; }
section { border-top: 1px solid #ccc; }
</style></head><body>
<h1>bert_jax</h1><p id="models"></p>
<p><label>API key, if the server has one:
<input id="key" type="password" autocomplete="off"></label>
<a href="/openapi.json">openapi.json</a></p>
<div id="routes"></div>
<script>
const make = (name, text, parent) => {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  return parent.appendChild(node);
};
// A vector takes one line.
const short = text => text.replace(
  /\\[\\s*(-?[\\d.eE+-]+(?:,\\s+-?[\\d.eE+-]+){8,})\\s*\\]/g,
  (all, list) => {
    const numbers = list.split(/,\\s+/);
    return `[${numbers.slice(0, 4).join(", ")}, ... ${numbers.length} numbers]`;
  });
const send = async (path, method, body, out) => {
  out.textContent = "...";
  const key = document.getElementById("key").value;
  const headers = key ? {Authorization: "Bearer " + key} : {};
  const start = performance.now();
  try {
    const answer = await fetch(path, {method, body, headers});
    const text = await answer.text();
    const took = Math.round(performance.now() - start);
    let shown = text;
    try { shown = short(JSON.stringify(JSON.parse(text), null, 1)); } catch {}
    out.textContent = answer.status + " in " + took + " ms\\n" +
      shown.slice(0, 20000);
  } catch (error) { out.textContent = String(error); }
};
fetch("/openapi.json").then(found => found.json()).then(all => {
  document.getElementById("models").textContent = all.info.description;
  for (const [path, methods] of Object.entries(all.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      const part = make("section", "", document.getElementById("routes"));
      make("h2", method.toUpperCase() + " " + path, part);
      make("p", route.summary, part);
      let area = null;
      if (route.requestBody) {
        const content = route.requestBody.content["application/json"];
        area = make("textarea", "", part);
        area.value = JSON.stringify(content.example, null, 1);
        area.rows = area.value.split("\\n").length + 1;
        area.setAttribute("aria-label", "body of " + path);
      }
      const button = make("button", "Send", part);
      const out = make("pre", "", part);
      button.onclick = () =>
        send(path, method.toUpperCase(), area ? area.value : undefined, out);
    }
  }
});
</script></body></html>
"""
