"""Check that the EOS token is a target in each row, whatever the padding token is.

python end_marks.py PADDING_TOKEN      ("": no padding token)
"""

import sys

from model.dataset import generate_dataset
from training.loading import load_tokenizer

tokenizer = load_tokenizer("tiny")
tokenizer.pad_token = sys.argv[1] or None
dataset = generate_dataset("data/valid.jsonl", tokenizer, 64)
batch = dataset.collate([dataset[index] for index in range(len(dataset))])
with open("data/valid.jsonl", encoding="utf-8") as file:
    rows = sum(1 for _ in file)
assert (batch["labels"] == tokenizer.eos_token_id).sum() == rows
assert (batch["labels"] != -100).sum() == dataset.num_items.sum()
