"""Print the label names and the labels that are read from data sets with `ClassLabel`.

python class_labels.py FOLDER
"""

import sys
from pathlib import Path

import datasets

from errors import DataError
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
# An id without a name, as in the test sets of some data sets.
features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(2)})
table = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [1, -1]}, features=features)
path = str(Path(sys.argv[1], "unnamed.parquet"))
table.to_parquet(path)
try:
    generate_dataset(path)
except DataError as error:
    print(Path(str(error)).name)
