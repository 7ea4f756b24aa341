"""Compare the loss of the task chat with an independent computation, for several chat templates.

python chat_losses.py FOLDER_WITH_TEMPLATES

The independent computation is in float64. It does not use chat templates, but concatenates the
parts of each conversation.
"""

import json
import sys
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from errors import DataError
from model.configuration import ModelConfig
from model.dataset import Dataset, generate_dataset
from model.modeling import Model

STYLES = Path(sys.argv[1])
# For each role: the text before a message, the text after its end-of-turn token, and the
# end-of-turn token. The end-of-turn token of an answer is a target; the text after it is not.
CHATML = {
    role: (f"<|im_start|>{role}\n", "\n", "<|im_end|>") for role in ("system", "user", "assistant")
}
HEADER = {
    role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "", "<|eot_id|>") for role in CHATML
}
TURNS = {
    "user": ("<start_of_turn>user\n", "\n", "<end_of_turn>"),
    "assistant": ("<start_of_turn>model\n", "\n", "<end_of_turn>"),
}
INST = {"user": ("[INST] ", "", " [/INST]"), "assistant": (" ", "", "<|im_end|>")}
FRAMES = {"chatml": CHATML, "marked": CHATML, "reasoning": CHATML, "header": HEADER}
FRAMES |= {"no_system": TURNS, "inst": INST}
BEGINS = ("inst", "header", "no_system")  # templates that start with the BOS token
ASKED = ["What is a dog?", "Und was ist ein Eichhörnchen 🐿?", "And a cat, say?"]
ANSWERED = ["An animal that barks.\n\n- loyal\n- “good”", "Ein Nagetier.", "It purrs 5.0 times."]


def conversation(turns: int, system: str = "", thought: str = "") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in list(zip(ASKED, ANSWERED, strict=True))[:turns]:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": thought + answered})
    return messages


def tokenizer_of(style: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    tokenizer.add_tokens(["\n\n\n"])
    tokenizer.pad_token = tokenizer.eos_token  # so that the padding token is also a target
    more = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    more += ["<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"extra_special_tokens": more})
    tokenizer.chat_template = (STYLES / f"{style}.jinja").read_text(encoding="utf-8")
    return tokenizer


def parts_of(style: str, messages: list[dict[str, str]], only_last: bool) -> list[tuple[str, bool]]:
    """Return the parts of a rendered conversation, and whether each part is a target."""
    parts = [("<|im_start|>", False)] if style in BEGINS else []
    if style == "inst" and messages[0]["role"] == "system":
        asked = messages[0]["content"] + "\n\n" + messages[1]["content"]
        messages = [{"role": "user", "content": asked}, *messages[2:]]
    for n, message in enumerate(messages):
        before, behind, mark = FRAMES[style][message["role"]]
        content = message["content"]
        is_last = n == len(messages) - 1
        if style == "reasoning" and message["role"] == "assistant" and not is_last:
            content = content.rpartition("</think>")[2].lstrip("\n")
        is_target = message["role"] == "assistant" and (is_last or not only_last)
        if style == "inst" and is_target:  # the space is a target
            parts += [(before + content + mark, True)]
        else:
            parts += [(before, False), (content + mark, is_target), (behind, False)]
    return parts


def expected_loss(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[tuple[str, bool]]],
) -> tuple[float, int]:
    """Return the mean of -log p over the targets, in float64, and the number of targets."""
    total = 0.0
    count = 0
    for parts in conversations:
        ids: list[int] = []
        targets: list[bool] = []
        for is_target, group in groupby(parts, key=lambda part: part[1]):
            text = "".join(part for part, _ in group)
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            ids += tokens
            targets += [is_target] * len(tokens)
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if targets[place]:
                total -= log_probs[place - 1, ids[place]].item()
                count += 1
    return total / count, count


def read(rows: list[list[dict[str, str]]], style: str, targets: str) -> Dataset:
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows]
    Path(f"{style}.jsonl").write_text("".join(lines), encoding="utf-8")
    return generate_dataset(f"{style}.jsonl", tokenizer_of(style), 500, targets=targets)


def compare(rows: list[list[dict[str, str]]], style: str, targets: str = "all") -> None:
    dataset = read(rows, style, targets)
    batch = dataset.collate([dataset[n] for n in range(len(dataset))])
    with torch.no_grad():
        loss = MODEL(**batch).loss.item()
        parts = [parts_of(style, messages, targets == "last") for messages in rows]
        expected, count = expected_loss(DOUBLE, tokenizer_of(style), parts)
    assert dataset.num_items.sum() == count, (style, targets, dataset.num_items.sum(), count)
    assert abs(loss - expected) < 1e-5 * expected, (style, targets, loss, expected)
    prompt = tokenizer_of(style).apply_chat_template(
        rows[0][:-1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    labels = dataset[0]["labels"]
    first = next(n for n in reversed(range(len(labels))) if labels[n] != -100)
    while labels[first - 1] != -100:
        first -= 1
    assert dataset[0]["input_ids"][:first].tolist() == prompt  # the prompt that predict.py uses


def refused(rows: list[list[dict[str, str]]], style: str, words: str) -> None:
    try:
        read(rows, style, "all")
    except DataError as error:
        assert str(error).startswith(f"{style}.jsonl:{len(rows)}: ") and words in str(error), error
    else:
        raise AssertionError(style)


torch.manual_seed(0)
config = LlamaConfig.from_pretrained("tiny", vocab_size=1030)
LlamaForCausalLM(config).save_pretrained("base")
MODEL = Model(ModelConfig("base")).eval()
DOUBLE = LlamaForCausalLM.from_pretrained("base", dtype=torch.float64).eval()

PLAIN = [conversation(turns) for turns in (1, 2, 3)]
WITH_SYSTEM = [conversation(turns, "You are a dictionary.") for turns in (1, 3)]
THOUGHT = "<think>\nLet me see.\n</think>\n\n"
for style in ("chatml", "inst", "header", "reasoning", "marked"):
    for targets in ("all", "last"):
        compare([*PLAIN, *WITH_SYSTEM], style, targets)
for targets in ("all", "last"):
    compare(PLAIN, "no_system", targets)
refused([*PLAIN, WITH_SYSTEM[0]], "no_system", "System role not supported")
refused([*PLAIN, PLAIN[1] + PLAIN[0][1:]], "inst", "Roles must alternate")
compare([conversation(1, thought=THOUGHT)], "reasoning")
compare([conversation(2, thought=THOUGHT), *PLAIN], "reasoning", "last")
refused([conversation(1, thought="\n\n")], "chatml", r"the token '\n\n\n' contains")
refused([*PLAIN, conversation(2, thought=THOUGHT)], "reasoning", "message 2 differently")
