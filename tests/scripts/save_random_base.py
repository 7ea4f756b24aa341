"""Save a base model with random weights, and its tokenizer.

python save_random_base.py AUTO_CLASS FOLDER_WITH_CONFIG TARGET
"""

import sys

import transformers

auto_class, source, target = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(source)
getattr(transformers, auto_class).from_config(config).save_pretrained(target)
transformers.AutoTokenizer.from_pretrained(source).save_pretrained(target)
