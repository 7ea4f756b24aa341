"""Run the example in the README of the template from which this template was derived."""

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model

ids = torch.tensor([[5, 6, 7]])
config = ModelConfig()
model = Model(config)
is_of_texts = model(input_ids=ids).logits.ndim == 2  # a label for each text, not for each token
labels = ids[:, 0] % 2 if is_of_texts else ids % 2
outputs = model(**{"input_ids": ids, "attention_mask": ids * 0 + 1, "labels": labels})
outputs.loss.backward()

train_dataset = generate_dataset("data/train.jsonl")
valid_dataset = generate_dataset("data/valid.jsonl")
train_loader = DataLoader(train_dataset)
valid_loader = DataLoader(valid_dataset)

path = "outputs/best"
model = Model.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
print(model(**next(iter(valid_loader))).loss.item())
