"""Save a base model and its tokenizer, with a chat template from a file or without one.

python chat_base.py FOLDER [FILE]
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained("tiny")
more = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
tokenizer.add_special_tokens({"extra_special_tokens": more})
tokenizer.save_pretrained(folder, save_jinja_files=False)
file = folder / "tokenizer_config.json"
config = json.loads(file.read_text(encoding="utf-8"))
del config["chat_template"]
for template in sys.argv[2:]:
    config["chat_template"] = Path(template).read_text(encoding="utf-8")
file.write_text(json.dumps(config), encoding="utf-8")
LlamaForCausalLM(LlamaConfig.from_pretrained("tiny", vocab_size=1027)).save_pretrained(folder)
