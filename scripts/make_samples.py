"""Generate the sample data and the base models `tiny` in templates/<task>/.

    python scripts/make_samples.py --sms_spam DIR --cmudict DIR --austen DIR --wordnet_chat DIR \
        --usaddress FILE

Each DIR must contain train.jsonl and valid.jsonl. FILE is training/labeled.xml of the source
distribution of usaddress. data/LICENSE.md of each task gives the source of its data.

The script writes data/train.jsonl, data/valid.jsonl and tiny/ for each task. tiny/ has a
configuration and a tokenizer, but no weights. With the same sources and the same version of
transformers, the files are the same, byte for byte.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

MARK = "<<"  # the start of opening delimiters of this template: Jinja reads the generated files
MAX_LENGTH = 512
TOKENS = ("pad", "bos", "eos")
HEAD_SIZE = 32  # the smallest head size that vLLM supports on a CPU

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Row = dict[str, Any]


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON lines file, without rows that Jinja would interpret as markup."""
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if MARK not in line)


def messages(path: Path) -> list[Row]:
    """Return the messages of the SMS data, without texts of several lines or over 2000 characters.

    In the source, each text of several lines is several messages, joined by an unclosed quote.
    """
    return [row for row in read(path) if "\n" not in row["text"] and len(row["text"]) <= 2000]


def novel(path: Path, title: str, size: int) -> Iterator[Row]:
    """Yield the rows of a novel from its title on, about `size` characters in total."""
    begun = False
    for row in read(path):
        begun = begun or row["text"].startswith(title)
        if begun and size > 0:
            size -= len(row["text"])
            yield row


def addresses(file: Path) -> Iterator[Row]:
    """Yield each distinct address, with its parts as entities.

    Omit addresses with the name of a recipient, with a line break, or with a label that has fewer
    than 20 entities in the data.
    """
    rows = {row["text"]: row for row in map(address, ElementTree.parse(file).getroot())}
    counts = Counter(entity["label"] for row in rows.values() for entity in row["entities"])
    usual = {label for label, count in counts.items() if count >= 20 and label != "Recipient"}
    for text, row in rows.items():
        if "\n" not in text and {entity["label"] for entity in row["entities"]} <= usual:
            yield row


def address(item: ElementTree.Element) -> Row:
    """Return the text of an address, and its entities: adjacent words with the same label."""
    text = ""
    entities: list[Row] = []
    for word in item:
        start = len(text)
        end = start + len((word.text or "").rstrip(" ,;"))
        if entities and entities[-1]["label"] == word.tag:
            entities[-1]["end"] = end
        else:
            entities.append({"start": start, "end": end, "label": word.tag})
        text += f"{word.text or ''}{word.tail or ''}"
    return {"text": text.rstrip(), "entities": entities}


def save_data(train: Iterable[Row], valid: Iterable[Row], task: Path) -> list[Row]:
    """Write data/train.jsonl and data/valid.jsonl of the task; return the training rows."""
    (task / "data").mkdir(parents=True, exist_ok=True)
    parts = {"train": list(train), "valid": list(valid)}
    for name, rows in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (task / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return parts["train"]


def train_tokenizer(
    rows: list[Row],
    size: int,
    template: str,
    special: dict[str, str],
    splits: Sequence[pre_tokenizers.PreTokenizer] = (),
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    The tokenizer has an UNK token, because CTranslate2 requires one, but never returns this token.

    Args:
        template: Special tokens around a text `$A`.
        special: Special tokens by name.
        splits: Further pre-tokenizers.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if splits:
        core.pre_tokenizer = pre_tokenizers.Sequence([*splits, core.pre_tokenizer])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator((row[key] for row in rows for key in row if key != "label"), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=template,
        pair=template + template[template.index("$A") :].replace("$A", " $B"),
        special_tokens=[(token, core.token_to_id(token)) for token in special.values()],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        unk_token=special["pad_token"],
        **special,
    )


def save_model(
    kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast, task: Path, **shape: Any
) -> None:
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in TOKENS}
    kind(**shape, **ids).save_pretrained(task / "tiny")
    tokenizer.save_pretrained(task / "tiny", save_jinja_files=False)
    for path in (*task.glob("data/*"), *task.glob("tiny/*")):
        if MARK in path.read_text(encoding="utf-8"):
            raise SystemExit(f"{path} contains {MARK}, which Jinja would interpret as markup")


def classification(source: Path, task: Path) -> None:
    rows = save_data(messages(source / "train.jsonl"), messages(source / "valid.jsonl"), task)
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = train_tokenizer(rows, 1024, "<s> $A </s>", {"pad_token": "<pad>", **special})
    shape = {"dim": 96, "hidden_dim": 384, "n_layers": 2, "n_heads": 96 // HEAD_SIZE}
    save_model(DistilBertConfig, tokenizer, task, initializer_range=0.06, **shape)


def seq2seq(source: Path, task: Path) -> None:
    train, valid = read(source / "train.jsonl"), read(source / "valid.jsonl")
    rows = save_data(islice(train, 6000), islice(valid, 500), task)
    # The vocabulary stays smaller than 512: when each letter and each phone is a token, there are
    # no more pairs to merge.
    special = {"bos_token": "</s>", "eos_token": "</s>"}
    tokenizer = train_tokenizer(rows, 512, "$A </s>", {"pad_token": "<pad>", **special})
    end = tokenizer.eos_token_id
    shape = {"d_model": 96, "decoder_start_token_id": end, "forced_eos_token_id": end}
    for side in ("encoder", "decoder"):
        shape |= {f"{side}_layers": 2, f"{side}_attention_heads": 96 // HEAD_SIZE}
        shape |= {f"{side}_ffn_dim": 256}
    # CTranslate2 needs these keys, which BartConfig does not write any more. Their values are the
    # same for every BART model.
    shape |= {"normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False}
    # With the default init_std of 0.02, the loss of such a small model hardly decreases.
    save_model(BartConfig, tokenizer, task, init_std=0.08, num_labels=2, **shape)


def causal_lm(source: Path, task: Path) -> None:
    train = novel(source / "train.jsonl", "NORTHANGER ABBEY", 432_000)
    rows = save_data(train, novel(source / "valid.jsonl", "Persuasion", 60_000), task)
    # BOS and EOS are the same token, which separates documents.
    special = {"bos_token": "</s>", "eos_token": "</s>"}
    tokenizer = train_tokenizer(rows, 1024, "$A", {"pad_token": "<pad>", **special})
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 128 // HEAD_SIZE}
    shape["num_hidden_layers"] = 2
    save_model(LlamaConfig, tokenizer, task, initializer_range=0.04, **shape)


def chat(source: Path, task: Path) -> None:
    train, valid = read(source / "train.jsonl"), read(source / "valid.jsonl")
    rows = save_data(islice(train, 1300), islice(valid, 130), task)
    messages = [message for row in rows for message in row["messages"]]
    texts = [{"text": f"{message['role']}\n{message['content']}"} for message in messages]
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = train_tokenizer(texts, 1024, "$A", {"pad_token": "<pad>", **special})
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 128 // HEAD_SIZE}
    shape["num_hidden_layers"] = 2
    save_model(LlamaConfig, tokenizer, task, initializer_range=0.04, **shape)


def token_classification(source: Path, task: Path) -> None:
    found = list(addresses(source))
    is_valid = [number % 10 == 9 for number in range(len(found))]
    train = [row for row, is_held_out in zip(found, is_valid, strict=True) if not is_held_out]
    valid = [row for row, is_held_out in zip(found, is_valid, strict=True) if is_held_out]
    save_tagger(save_data(first_with_each_label(train), valid, task), task)


def first_with_each_label(rows: list[Row]) -> list[Row]:
    """Move the first row with each label to the front, so that the first rows have all labels."""
    firsts: dict[str, int] = {}
    for number, row in enumerate(rows):
        for entity in row["entities"]:
            firsts.setdefault(entity["label"], number)
    return sorted(rows, key=lambda row: rows.index(row) not in firsts.values())


def save_tagger(rows: list[Row], task: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    texts = [{"text": row["text"]} for row in rows]
    # Punctuation marks are separate tokens, so that entities can end before them.
    splits = [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    form = "<s> $A </s>"
    tokenizer = train_tokenizer(texts, 1024, form, {"pad_token": "<pad>", **special}, splits)
    # Exclude the space before a word from the offsets.
    core = tokenizer.backend_tokenizer
    trim = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    core.post_processor = processors.Sequence([trim, core.post_processor])
    shape = {"dim": 96, "hidden_dim": 384, "n_layers": 2, "n_heads": 96 // HEAD_SIZE}
    save_model(DistilBertConfig, tokenizer, task, initializer_range=0.06, **shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sms_spam", type=Path, required=True, help="rows with text and label")
    parser.add_argument("--cmudict", type=Path, required=True, help="rows with source and target")
    parser.add_argument("--austen", type=Path, required=True, help="rows with text")
    parser.add_argument("--wordnet_chat", type=Path, required=True, help="rows with messages")
    parser.add_argument("--usaddress", type=Path, required=True, help="labeled.xml of usaddress")
    templates = Path(__file__).parents[1] / "templates"
    parser.add_argument("--outdir", type=Path, default=templates, help="output directory")
    args = parser.parse_args()
    classification(args.sms_spam, args.outdir / "classification")
    seq2seq(args.cmudict, args.outdir / "seq2seq")
    causal_lm(args.austen, args.outdir / "causal_lm")
    chat(args.wordnet_chat, args.outdir / "chat")
    token_classification(args.usaddress, args.outdir / "token_classification")


if __name__ == "__main__":
    main()
