"""Check that a sample of causal_lm is the first half of a block and its greedy continuation."""

import torch

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.metrics import Scores
from model.modeling import Model
from training.loading import load_tokenizer

tokenizer = load_tokenizer("tiny")
dataset = generate_dataset("data/valid.jsonl", max_len=50)
model = Model(ModelConfig()).eval()
scores = Scores(model, tokenizer, torch.device("cpu"), max_new_tokens=8)
batch = dataset.collate([dataset[0], dataset[len(dataset) - 1], dataset[1]])
scores.update(None, batch)
scores.compute(1.0)
lengths = (batch["labels"] != -100).sum(1).tolist()
assert lengths[1] < lengths[0] == lengths[2] < 64  # the last block is shorter
for ids, sample in zip(batch["input_ids"][[0, 2]], scores.samples, strict=True):
    ids = ids[None, : lengths[0] // 2]
    whole = model.generate(ids, max_new_tokens=8, do_sample=False)
    parts = (ids, whole[:, ids.shape[1] :])
    assert list(sample) == [tokenizer.decode(part[0]) for part in parts]
scores.reset()
assert scores.compute(1.0)
assert scores.samples == []
