"""A local server that replaces the Hub."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the Hub that uploads and downloads use.

    Attributes:
        files: Content of the single repository, by file name.
        blobs: Content of uploaded large files, by checksum.
        commits: Names of the files in each commit.
        refuses: Whether to reject uploads.
        has_refused: Event that is set when an upload is rejected.
    """

    files: dict[str, bytes] = {}
    blobs: dict[str, bytes] = {}
    commits: list[set[str]] = []
    refuses = False
    has_refused = threading.Event()

    def answer(self, content: dict | list, status: int = 200, error: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        address, sent = f"http://{self.headers['Host']}", self.body()
        if self.refuses:
            self.has_refused.set()
            self.answer({"error": "forbidden"}, 403)
        elif self.path == "/api/repos/create":
            name = json.loads(sent)["name"]
            self.answer({"url": f"{address}/someone/{name}", "id": f"someone/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file in json.loads(sent)["files"]
                for mode in ["lfs" if file["path"].endswith(".safetensors") else "regular"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{address}/upload/{item['oid']}"}}}
                for item in json.loads(sent)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in sent.splitlines()]
            self.commits.append({line["value"].get("path", "") for line in lines} - {""})
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.blobs[value["oid"]]
            done = {"commitUrl": f"{address}/someone/mine/commit/1", "commitOid": "1" * 40}
            self.answer({**done, "success": True, "hookOutput": ""})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        self.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.send_file()
        elif "/tree/" in self.path:
            sizes = {name: len(content) for name, content in self.files.items()}
            files = [{"type": "file", "path": n, "size": s, "oid": "1"} for n, s in sizes.items()]
            self.answer(files)
        elif "/revision/unknown" in self.path:
            self.answer({"error": "Invalid rev id: unknown"}, 404, "RevisionNotFound")
        else:
            self.answer({"name": "someone", "type": "user", "id": "someone/x", "sha": COMMIT})

    def do_HEAD(self) -> None:
        self.send_file(has_content=False)

    def send_file(self, has_content: bool = True) -> None:
        name = self.path.partition("/resolve/")[2].partition("?")[0].partition("/")[2]
        if name not in self.files:
            return self.answer({}, 404, "EntryNotFound")
        content = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if has_content:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass
