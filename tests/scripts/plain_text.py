"""Read a .txt file, and print the text that is decoded from its blocks.

python plain_text.py FILE
"""

import sys

from model.dataset import generate_dataset
from training.loading import load_tokenizer

blocks = [block["input_ids"].tolist() for block in generate_dataset(sys.argv[1], max_len=8)]
tokens = blocks[0] + [token for block in blocks[1:] for token in block[1:]]
print(repr(load_tokenizer("tiny").decode(tokens)))
