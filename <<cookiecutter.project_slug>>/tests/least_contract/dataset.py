import json

import torch


class Dataset(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = [torch.tensor(row) for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"inputs": self.rows[index][:3], "labels": self.rows[index][3]}


def generate_dataset(path):
    with open(path) as file:
        return Dataset([json.loads(line) for line in file])
