"""A local server that replaces the Hub."""

import base64
import json
from http.server import BaseHTTPRequestHandler


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the Hub that an upload uses."""

    files: dict[str, bytes] = {}
    refuses = False

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        address, sent = f"http://{self.headers['Host']}", self.body()
        if self.refuses:
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
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(value["oid"])
            done = {"commitUrl": f"{address}/someone/mine/commit/1", "commitOid": "1" * 40}
            self.answer({**done, "success": True, "hookOutput": ""})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        self.files[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"name": "someone", "type": "user", "id": "someone/x", "sha": "0" * 40})

    def log_message(self, *_) -> None:
        pass
