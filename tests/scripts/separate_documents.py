"""Check that with separate_documents the loss of a block is the sum of its documents' losses."""

import json

import torch

from model.configuration import ModelConfig
from model.dataset import Dataset, generate_dataset
from model.modeling import Model

TEXTS = ["It was late.", "", "She looked at him for a long while, and said nothing.", "No.", "Yes!"]


def read(texts: list[str], max_len: int) -> Dataset:
    with open("documents.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return generate_dataset("documents.jsonl", max_len=max_len, separate_documents=True)


def summed_loss(model: Model, dataset: Dataset) -> float:
    batch = dataset.collate([dataset[index] for index in range(len(dataset))])
    return model(**batch, num_items_in_batch=1).loss.item()


together = read(TEXTS, 100)
torch.manual_seed(0)
model = Model(ModelConfig(**together.schema)).eval()
assert model.config.separate_documents
alone = sum(summed_loss(model, read([text], 100)) for text in TEXTS if text)
together = read(TEXTS, 100)
assert len(together) == 1
assert together.num_items[0] == together.lengths[0] - len(TEXTS)
assert abs(summed_loss(model, together) - alone) < 1e-4 * alone

blocks = read(TEXTS, 6)
assert len(blocks) > 3
targets = [int((blocks[index]["labels"] != -100).sum()) for index in range(len(blocks))]
assert targets == blocks.num_items.tolist()
assert sum(targets) == together.num_items[0]

# A .txt file is one document, so its lines are not separated.
with open("lines.txt", "w") as file:
    file.write("\n".join(TEXTS))
plain = generate_dataset("lines.txt", max_len=100, separate_documents=True)
assert plain.num_items[0] == plain.lengths[0] - 1
assert plain.notes == ["lines.txt is one text: --separate_documents has no effect"]
assert plain[0]["position_ids"].tolist() == list(range(plain.lengths[0]))
