import json

import torch


class Dataset(torch.utils.data.Dataset):
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.rows = [json.loads(line) for line in file]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        bytes_of_text = torch.tensor(list(row["text"].encode()))
        counts = torch.bincount(bytes_of_text, minlength=256).float()
        return {"counts": counts, "labels": int(row["label"] == "spam")}


def generate_dataset(path):
    return Dataset(path)
