"""Print the labels of a `ModelConfig` that is built for the labels in a file.

python label_order.py FILE
"""

import sys

from model.configuration import ModelConfig
from model.dataset import generate_dataset

print(list(ModelConfig(**generate_dataset(sys.argv[1]).schema).id2label.values()))
