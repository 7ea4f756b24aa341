"""Compare the byte perplexity of lm-evaluation-harness with that of transformers."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint, command = sys.argv[1:]
TEXTS = ["She was very happy to see him.", "It was a truth that nobody doubted at all."]
TASK = """
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
Path("local.yaml").write_text(TASK, encoding="utf-8")
rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
Path("texts.jsonl").write_text(rows, encoding="utf-8")
words = shlex.split(command.replace("wikitext", "local"))
more = ["--include_path", ".", "--device", "cpu", "--batch_size", "1", "--output_path", "out"]
program = Path(sys.executable).parent / words[0]
subprocess.run([program, *words[1:], *more], check=True)
(results,) = Path("out").rglob("results_*.json")
found = json.loads(results.read_text(encoding="utf-8"))["results"]["local"]["byte_perplexity,none"]

tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
total = 0.0
for text in TEXTS:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    logits = model(ids).logits[:, :-1].log_softmax(-1)
    total += logits.gather(2, ids[:, 1:, None]).sum().item()
expected = math.exp(-total / sum(len(text.encode()) for text in TEXTS))
assert math.isclose(found, expected, rel_tol=1e-4), (found, expected)
