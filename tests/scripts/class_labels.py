"""Print the label names and the labels that are read from data sets with `ClassLabel`.

python class_labels.py FOLDER
"""

import sys
from pathlib import Path

import datasets

from model.dataset import generate_dataset

names = datasets.ClassLabel(names=["sad", "glad", "cold"])
for feature, labels in ((names, [2, 0, 1]), (datasets.List(names), [[1, 2], [], [0]])):
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    rows = {"text": ["one", "two", "three"], "label": labels}
    path = str(Path(sys.argv[1], "named.parquet"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    dataset = generate_dataset(path)
    tensor = dataset.collate([dataset[index] for index in range(3)])["labels"]
    print(dataset.schema["labels"], tensor.tolist())
