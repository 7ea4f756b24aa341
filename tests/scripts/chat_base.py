"""Save a base model and its tokenizer, with a chat template from a file or without one.

python chat_base.py FOLDER [FILE]
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

folder, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained("tiny")
more = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
tokenizer.add_special_tokens({"extra_special_tokens": more})
tokenizer.chat_template = Path(files[0]).read_text(encoding="utf-8") if files else None
tokenizer.save_pretrained(folder)
LlamaForCausalLM(LlamaConfig.from_pretrained("tiny", vocab_size=1027)).save_pretrained(folder)
