"""Check that the blocks of the task causal_lm contain all texts, each followed by the EOS token."""

import json

from model.dataset import generate_dataset
from training.loading import load_tokenizer

MAX_LEN = 50

tokenizer = load_tokenizer("tiny")
dataset = generate_dataset("data/valid.jsonl", max_len=MAX_LEN)
blocks = [block["input_ids"].tolist() for block in dataset]
joined = blocks[0] + [token for block in blocks[1:] for token in block[1:]]
with open("data/valid.jsonl", encoding="utf-8") as file:
    rows = [json.loads(line)["text"] for line in file]
expected = [t for row in rows for t in [*tokenizer(row).input_ids, tokenizer.eos_token_id]]
assert joined == expected
assert max(map(len, blocks)) == MAX_LEN
