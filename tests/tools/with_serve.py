"""Check that `transformers serve` and `generate` give the same greedy continuation of a text."""

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint, command = sys.argv[1:]
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
address = f"http://localhost:{port}"
body = {"model": checkpoint, "prompt": "She was very", "max_tokens": 12, "temperature": 0}
request = urllib.request.Request(
    f"{address}/v1/completions",
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
)
# Run the `transformers` of this Python environment, not the first `transformers` on the PATH.
main = "from transformers.cli.transformers import main; main()"
words = [sys.executable, "-c", main, *shlex.split(command)[1:], "--port", str(port)]
with subprocess.Popen([*words, "--device", "cpu"]) as server:
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        answer = json.load(urllib.request.urlopen(request, timeout=120))
    finally:
        server.terminate()
found = answer["choices"][0]["text"]

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
ids = tokenizer("She was very", return_tensors="pt").input_ids
new = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
expected = tokenizer.decode(new, skip_special_tokens=True)
assert found == expected, (found, expected)
assert len(new) > 0
