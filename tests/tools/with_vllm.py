"""Check that vLLM and `generate` have the same greedy tokens."""

import os
import sys

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

checkpoint = sys.argv[1]
ids = AutoTokenizer.from_pretrained(checkpoint)("She was very").input_ids
model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
generated = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
server = LLM(checkpoint, dtype="float32", enforce_eager=True, max_model_len=128)
sampling = SamplingParams(temperature=0, max_tokens=12)
(result,) = server.generate([{"prompt_token_ids": ids}], sampling)
assert list(result.outputs[0].token_ids) == generated[0, len(ids) :].tolist()
