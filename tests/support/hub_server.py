"""A hub of models in this process, for a few models in memory."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub:
  """A hub; `models` is name -> revision -> file -> bytes, the newest last.

  Attributes:
    requests: the method and path of each request.
    pushed: name -> the files of the commits that were made.
    url: its address.
  """

  def __init__(self, models):
    self.models = models
    self.requests = []
    self.pushed = {}
    self.url = ""

  def revision(self, name, asked):
    revisions = self.models[name]
    newest = list(revisions)[-1]
    if asked in ("main", None):
      return newest
    return asked if asked in revisions else None


def _etag(content):
  return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  @property
  def hub(self):
    return self.server.hub

  def log_message(self, *args):
    pass

  def _answer(self, content, status=200, **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
      headers.setdefault("Content_Type", "application/json")
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def _refuse(self, code, status=404):
    self._answer({"error": code}, status, X_Error_Code=code)

  def do_GET(self):
    path = urllib.parse.urlsplit(self.path).path.strip("/")
    self.hub.requests.append((self.command, path))
    parts = path.split("/")
    if parts[:2] == ["api", "models"]:
      return self._api(parts[2:])
    if len(parts) > 4 and parts[2] == "resolve":
      return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
    return self._refuse("EntryNotFound")

  do_HEAD = do_GET  # noqa: N815

  def _model(self, name, asked):
    """Returns the revision; None if the answer was given already."""
    if name == "some/gated":
      self._refuse("GatedRepo", 403)
    elif name not in self.hub.models:
      self._refuse("RepoNotFound")
    elif (revision := self.hub.revision(name, asked)) is None:
      self._refuse("RevisionNotFound")
    else:
      return revision
    return None

  def _api(self, parts):
    name, rest = "/".join(parts[:2]), parts[2:]
    revision = self._model(name, rest[1] if rest else "main")
    if revision is None:
      return None
    files = self.hub.models[name][revision]
    if rest and rest[0] == "tree":
      return self._answer([
        {"type": "file", "path": path, "size": len(c), "oid": _etag(c)}
        for path, c in files.items()
      ])  # fmt: skip
    names = [{"rfilename": path} for path in files]
    facts = {"id": name, "modelId": name, "sha": revision, "siblings": names}
    return self._answer(facts)

  def _file(self, name, asked, path):
    revision = self._model(name, asked)
    if revision is None:
      return None
    content = self.hub.models[name][revision].get(path)
    if content is None:
      return self._refuse("EntryNotFound")
    headers = {"ETag": f'"{_etag(content)}"', "X_Repo_Commit": revision}
    return self._answer(content, **headers)

  def do_POST(self):
    path = urllib.parse.urlsplit(self.path).path.strip("/")
    self.hub.requests.append((self.command, path))
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = path.split("/")
    if self.headers.get("Authorization") != "Bearer hf_good":
      return self._answer({"error": "Invalid token"}, 401)
    if path == "api/repos/create":
      given = json.loads(body)
      name = "/".join(filter(None, (given.get("organization"), given["name"])))
      self.hub.pushed.setdefault(name, {})
      return self._answer({"url": f"{self.hub.url}/{name}", "name": name})
    if path == "api/validate-yaml":  # of a model card
      return self._answer({"errors": [], "warnings": []})
    name = "/".join(parts[2:4])
    if parts[4] == "preupload":
      files = json.loads(body)["files"]
      return self._answer({
        "files": [
          {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
          for f in files
        ]
      })  # fmt: skip
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    files = [x["value"]["path"] for x in lines if x["key"] == "file"]
    self.hub.pushed[name] |= dict.fromkeys(files, True)
    oid = "c" * 40
    url = f"{self.hub.url}/{name}/commit/{oid}"
    facts = {"success": True, "commitOid": oid, "commitUrl": url}
    return self._answer(facts)


@contextlib.contextmanager
def serving(models):
  """A context with a running hub."""
  hub = Hub(models)
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.hub = hub
  hub.url = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
