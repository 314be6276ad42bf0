"""A local stand-in for the Hugging Face hub, with as much of its API as reading a small data repository needs.

with hub.Hub() as served:
    served.commit("owner/name", {"train.jsonl": b"..."}, "main", "v1")
    subprocess.run(..., env=served.environment(home))
"""

import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse

API = re.compile(
    r"/api/datasets/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
FILE = re.compile(r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Repo:
    def __init__(self):
        self.commits, self.refs, self.token, self.tattles = {}, {}, None, False


class Hub:
    """The server, in a thread; `asked` are the requests: (method, path, Authorization)."""

    def __init__(self):
        self.repos, self.asked = {}, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo_id, files, *refs, token=None):
        """Add a commit that `refs` (branches, tags) point at, and return its sha. With `token`, the repository is private from now on."""
        repo = self.repos.setdefault(repo_id, Repo())
        sha = hashlib.sha1(repr((len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[sha] = files
        repo.refs |= dict.fromkeys(refs or ["main"], sha)
        repo.token = token or repo.token
        return sha

    def environment(self, home, token=None, offline="0"):
        """Return the variables for a process that asks only this hub, and keeps its cache under `home`."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({"HF_TOKEN": token} if token else {}),
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # httpx keeps its connection
    hub = None

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        url = urllib.parse.urlsplit(self.path)
        self.hub.asked.append(
            (self.command, urllib.parse.unquote(self.path), self.headers.get("Authorization"))
        )
        match = API.fullmatch(url.path) or FILE.fullmatch(url.path)
        if not match:
            return self.answer(404, {"error": "no such page"})
        asked = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items() if v}
        repo = self.hub.repos.get(asked["id"])
        if not repo or repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self.answer(401, {"error": "Repository not found"}, code="RepoNotFound")
        if repo.tattles:  # an error that shows the token it was sent
            return self.answer(
                403, {"error": f"not for {self.headers.get('Authorization')}"}, code="Forbidden"
            )
        revision = asked.get("revision", "main")
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self.answer(
                404, {"error": f"Invalid rev id: {revision}"}, code="RevisionNotFound"
            )
        files = repo.commits[sha]
        if match.re is FILE:
            return self.file(sha, files.get(asked["path"]))
        if asked.get("what") == "paths-info":
            wanted = (
                json.loads(body)["paths"]
                if body.startswith("{")
                else urllib.parse.parse_qs(body).get("paths", [])
            )
            return self.answer(
                200,
                [
                    entry
                    for path in wanted
                    for entry in self.entries(files, sha)
                    if entry["path"] == path.strip("/")
                ],
            )
        if asked.get("what") == "tree":
            top = asked["path"].strip("/") + "/" if "path" in asked else ""
            under = [e for e in self.entries(files, sha) if e["path"].startswith(top)]
            if not under:
                return self.answer(404, {"error": "not found"}, code="EntryNotFound")
            deep = urllib.parse.parse_qs(url.query).get("recursive", [""])[0].lower() in (
                "true",
                "1",
            )
            return self.answer(
                200, [e for e in under if deep or "/" not in e["path"].removeprefix(top)]
            )
        return self.answer(
            200,
            {
                "id": asked["id"],
                "sha": sha,
                "private": bool(repo.token),
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in files],
            },
        )

    @staticmethod
    def entries(files, sha):
        folders = {path.rsplit("/", n)[0] for path in files for n in range(1, path.count("/") + 1)}
        last = {"id": sha, "title": "data", "date": "2026-01-01T00:00:00.000Z"}
        return [
            *(
                {"type": "directory", "oid": sha, "size": 0, "path": path, "lastCommit": last}
                for path in sorted(folders)
            ),
            *(
                {
                    "type": "file",
                    "oid": hashlib.sha1(data).hexdigest(),
                    "size": len(data),
                    "path": path,
                    "lastCommit": last,
                }
                for path, data in sorted(files.items())
            ),
        ]

    def file(self, sha, data):
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, code="EntryNotFound", commit=sha)
        content, status, headers = data, 200, {}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            data, status = data[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None], 206
            headers = {
                "Content-Range": f"bytes {asked[1]}-{int(asked[1]) + len(data) - 1}/{len(content)}"
            }
        return self.answer(
            status, data, commit=sha, etag=hashlib.sha1(content).hexdigest(), headers=headers
        )

    def answer(self, status, body, code="", commit="", etag="", headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        own_headers = {
            "Content-Length": len(data),
            "Content-Type": "application/octet-stream" if data is body else "application/json",
            "X-Error-Code": code,
            "X-Error-Message": body["error"] if code else "",
            "X-Repo-Commit": commit,
            "ETag": etag and f'"{etag}"',
            "Accept-Ranges": "bytes",
        }
        for name, value in {**own_headers, **(headers or {})}.items():
            if value != "":
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
