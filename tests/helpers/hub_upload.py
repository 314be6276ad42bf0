"""A local stand-in for the hub's upload protocol: repositories, files in parts, commits, failures.

with hub_upload.Hub() as served:
    served.fail("PUT", "/lfs/", 500, times=1)
    push.push_run(...)                          # HF_TOKEN is one of served.tokens
    served.repos["maria/first-aid"].files       # {path: bytes}
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import types
import urllib.parse

from huggingface_hub import constants

TOKEN = "hf_writes"

ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "card"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
    ("PUT", r"/api/models/([^/]+/[^/]+)/settings", "settings"),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", "preupload"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/([^/]+/[^/]+)/(\w+)/(\d+)", "part"),
    ("POST", r"/lfs/([^/]+/[^/]+)/(\w+)/complete", "complete"),
    ("POST", r"/lfs/([^/]+/[^/]+)/(\w+)/verify", "verify"),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", "commit"),
    ("GET", r"/api/models/([^/]+/[^/]+)/xet-write-token/main", "xet_token"),
    ("POST", r"/xet/([^/]+/[^/]+)/v1/xorbs/default/(\w+)", "xorb"),
    ("POST", r"/xet/([^/]+/[^/]+)/v1/shards", "shard"),
]


def account(role="write", name="maria", orgs=(), scoped=None):
    """Return the answer of whoami for a token."""
    token = {"displayName": "t", "role": role} | (
        {"fineGrained": {"global": [], "scoped": scoped}} if role == "fineGrained" else {}
    )
    return {
        "type": "user",
        "name": name,
        "orgs": [{"name": n, "roleInOrg": r} for n, r in dict(orgs).items()],
        "auth": {"accessToken": token},
    }


class Refusal(Exception):
    """status, error and X-Error-Code of the answer"""


class Repo:
    """A repository: `commits` is [(id, {path: bytes})] with the newest last, `stored` are the large files that arrived, by sha256."""

    def __init__(self, private):
        self.private, self.stored, self.parts, self.commits = private, {}, {}, []
        self.name = ""  # where it was moved to
        self.add({".gitattributes": b"*.safetensors filter=lfs\n"})

    def add(self, files):
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    @property
    def files(self):
        return {
            path: data for path, data in self.commits[-1][1].items() if path != ".gitattributes"
        }


class Hub:
    """The server, in a thread. `asked`: (method, path) of the requests; `received`: bytes of large files' bodies; `part_size`: larger files are multipart."""

    def __init__(self):
        self.repos, self.tokens, self.asked, self.received, self.failures = (
            {},
            {TOKEN: account()},
            [],
            [],
            [],
        )
        self.part_size, self.xorbs, self.busy = 2**20, b"", threading.Event()
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method, path, how, skip=0, times=10**6):
        """Let requests with `path` in their path fail: with a status, "drop" in the middle of the body, "hang", or "lost" (done, but unanswered)."""
        self.failures.append(
            {"method": method, "path": path, "how": how, "skip": skip, "times": times}
        )

    def failure(self, method, path):
        for fault in self.failures:
            if fault["method"] == method and fault["path"] in path and fault["times"]:
                if not fault["skip"]:
                    fault["times"] -= 1
                    return fault["how"]
                fault["skip"] -= 1
        return None


@contextlib.contextmanager
def serving(monkeypatch, token_path):
    """Yield the stand-in, with this process's hub library pointed at it and without waits between retries."""
    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_TOKEN_PATH": str(token_path),
        }.items():
            monkeypatch.setattr(constants, name, value)
        no_wait = types.SimpleNamespace(sleep=lambda seconds: None)
        monkeypatch.setattr("huggingface_hub.utils._http.time", no_wait)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def changes(hub):
    """Return the requests that change something."""
    looking = ("/api/validate-yaml",)
    return [(method, path) for method, path in hub.asked if method != "GET" and path not in looking]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = (
        -1,
        True,
    )  # head and body in one packet: 40 ms a request less
    hub, lost = None, False

    def log_message(self, *words):
        pass

    def handle_one(self):
        url, length, chunked = (
            urllib.parse.urlsplit(self.path),
            int(self.headers.get("Content-Length") or 0),
            self.headers.get("Transfer-Encoding"),
        )
        self.hub.asked.append((self.command, url.path))
        how = self.hub.failure(self.command, url.path)
        body = (
            self.chunks()
            if chunked
            else self.rfile.read(length // 2 if how and how != "lost" else length)
        )
        if how == "hang":
            self.hub.busy.set()
            time.sleep(30)
        if how in ("drop", "hang"):
            return self.drop()
        if isinstance(how, int):
            self.close_connection = True
            return self.answer(
                how,
                {"error": f"told to answer {how} to {self.headers.get('Authorization')}"},
                headers={"Connection": "close"},
            )
        self.lost = how == "lost"
        for method, pattern, name in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, url.path)):
                try:
                    return getattr(self, name)(
                        body, *(group and urllib.parse.unquote(group) for group in match.groups())
                    )
                except Refusal as refusal:
                    status, error, *code = refusal.args
                    return self.answer(
                        status,
                        {"error": error},
                        {"X-Error-Code": code[0], "X-Error-Message": error} if code else {},
                    )
        return self.answer(404, {"error": f"no {self.command} {url.path}"})

    do_GET = do_POST = do_PUT = handle_one

    def chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def drop(self):
        self.close_connection = True
        self.connection.close()

    def answer(self, status, body, headers=()):
        if self.lost:
            return self.drop()
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": len(data),
            "Content-Type": "application/json",
            **dict(headers),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        return self.wfile.write(data)

    # who asks, and for what

    def account(self):
        return self.hub.tokens.get(
            (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        )

    def may_write(self, owner):
        if not (who := self.account()):
            return False
        token = who["auth"]["accessToken"]
        member = owner == who["name"] or any(
            o["name"] == owner and o["roleInOrg"] != "read" for o in who["orgs"]
        )
        return member and (
            token["role"] == "write"
            or token["role"] == "fineGrained"
            and any(
                s["entity"]["name"] == owner and "repo.write" in s["permissions"]
                for s in token["fineGrained"]["scoped"]
            )
        )

    def repo(self, name, writing=True):
        """Return the repository if the token may write to it, or may see it; otherwise raise Refusal in the hub's words."""
        repo, may = self.hub.repos.get(name), self.may_write(name.split("/")[0])
        if not repo or repo.private and not may:
            raise Refusal(401, "Repository not found", "RepoNotFound")
        if writing and not may:
            raise Refusal(403, "You don't have the rights to write here")
        return repo

    def whoami(self, body):
        if not (who := self.account()):
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.answer(200, who)

    def card(self, body):
        wrong = "license: none-such" in json.loads(body)["content"]
        self.answer(
            400 if wrong else 200,
            {
                "errors": [{"message": '"license" must be one of ...'}] if wrong else [],
                "warnings": [],
            },
        )

    # repositories

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.may_write(asked["organization"]):
            raise Refusal(
                403,
                f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"',
            )
        if name in self.hub.repos:
            raise Refusal(409, "You already created this model repo")
        self.hub.repos[name] = Repo(asked.get("visibility") == "private")
        self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def settings(self, body, name):
        self.repo(name).private = json.loads(body)["visibility"] == "private"
        self.answer(200, {})

    def info(self, body, name, revision):
        repo = self.repo(name, writing=False)
        sha, files = next((c for c in repo.commits if c[0] == revision), repo.commits[-1])
        entries = []
        for path, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
            held = pointer if digest in repo.stored else data
            lfs = (
                {"lfs": {"sha256": digest, "size": len(data), "pointerSize": len(pointer)}}
                if digest in repo.stored
                else {}
            )
            entries.append(
                {
                    "rfilename": path,
                    "size": len(data),
                    "blobId": hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest(),
                    **lfs,
                }
            )
        self.answer(
            200, {"id": repo.name or name, "sha": sha, "private": repo.private, "siblings": entries}
        )

    # files

    def preupload(self, body, name):
        self.repo(name)
        self.answer(
            200,
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs"
                        if f["path"].endswith((".safetensors", ".gguf"))
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
            },
        )

    def batch(self, body, name):
        repo, size, objects = self.repo(name), self.hub.part_size, []
        for asked in json.loads(body)["objects"]:
            here, signed = f"{self.hub.url}/lfs/{name}/{asked['oid']}", "?X-Amz-Signature=SIGNED"
            parts = {str(n + 1): f"{here}/{n}{signed}" for n in range(-(-asked["size"] // size))}
            upload = (
                {"href": parts["1"]}
                if len(parts) == 1
                else {
                    "href": f"{here}/complete{signed}",
                    "header": {"chunk_size": str(size), **parts},
                }
            )
            todo = (
                {}
                if asked["oid"] in repo.stored
                else {"actions": {"upload": upload, "verify": {"href": f"{here}/verify"}}}
            )
            objects.append({**asked, **todo})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def part(self, body, name, oid, number):
        self.hub.received.append(len(body))
        self.hub.repos[name].parts.setdefault(oid, {})[int(number)] = body
        self.answer(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def complete(self, body, name, oid):
        parts = self.hub.repos[name].parts[oid]
        if [(p["partNumber"], p["etag"]) for p in json.loads(body)["parts"]] != [
            (n + 1, hashlib.md5(parts[n]).hexdigest()) for n in sorted(parts)
        ]:
            raise Refusal(400, "parts do not match")
        self.answer(200, {})

    def verify(self, body, name, oid):
        repo = self.repo(name)
        data = b"".join(part for _, part in sorted(repo.parts.get(oid, {}).items()))
        if hashlib.sha256(data).hexdigest() != oid or len(data) != json.loads(body)["size"]:
            raise Refusal(422, "what was stored is not what was announced")
        repo.stored[oid] = data
        self.answer(200, {})

    def commit(self, body, name):
        repo = self.repo(name)
        _, *lines = [json.loads(line) for line in body.splitlines()]
        gone = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
        files = {path: data for path, data in repo.commits[-1][1].items() if path not in gone}
        new = {}
        lines = [line for line in lines if line["key"] != "deletedFile"]
        for value, large in ((line["value"], line["key"] == "lfsFile") for line in lines):
            if large and value["oid"] not in repo.stored:
                raise Refusal(
                    400, f"LFS pointer of {value['path']} points to a file that does not exist"
                )
            new[value["path"]] = (
                repo.stored[value["oid"]] if large else base64.b64decode(value["content"])
            )
        sha = repo.add({**files, **new})
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    # the same files by the newer protocol: chunks of all files packed into xorbs, then a shard that says which make which file

    def xet_token(self, body, name):
        self.repo(name)
        url, until = f"{self.hub.url}/xet/{name}", int(time.time()) + 3600
        self.answer(
            200,
            {"casUrl": url, "accessToken": "xet", "exp": until},
            {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": until},
        )

    def xorb(self, body, name, digest):
        self.hub.received.append(len(body))
        while (
            body and body[0] == 0
        ):  # version, 3 bytes of length as sent, compression, 3 bytes of length; then, of version 1, a footer
            sent, packed = int.from_bytes(body[1:4], "little"), body[4]
            assert packed == 0, "what does not compress is sent as it is: test with random bytes"
            self.hub.xorbs += body[8 : 8 + sent]
            body = body[8 + sent :]
        self.answer(200, {"was_inserted": True})

    def shard(self, body, name):
        """Store a file from a shard: files are sent one at a time and are new, so the chunks since the last shard are its bytes."""
        self.hub.repos[name].stored[hashlib.sha256(self.hub.xorbs).hexdigest()] = self.hub.xorbs
        self.hub.xorbs = b""
        self.answer(200, {"result": 1})
