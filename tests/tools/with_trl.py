"""Train a checkpoint with TRL, without and with LoRA; check that the results can be loaded."""

import sys

import datasets
import peft
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

checkpoint = sys.argv[1]
rows = datasets.Dataset.from_dict({"text": ["She was very happy."] * 8})
for name, lora in (("whole", None), ("lora", peft.LoraConfig(task_type="CAUSAL_LM"))):
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 32}
    quiet = {"report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False}
    config = SFTConfig(name, **options, **quiet)
    trainer = SFTTrainer(checkpoint, args=config, train_dataset=rows, peft_config=lora)
    assert trainer.train().training_loss > 0
    trainer.save_model(name)
AutoModelForCausalLM.from_pretrained("whole")
peft.AutoPeftModelForCausalLM.from_pretrained("lora")
