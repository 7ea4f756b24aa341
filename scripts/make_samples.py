"""Make the sample data and the built-in base models of templates/<task>/.

    python scripts/make_samples.py --sms_spam DIR --cmudict DIR --austen DIR

Each DIR holds train.jsonl and valid.jsonl (see the LICENSE.md beside each sample for the source).
Writes data/train.jsonl, data/valid.jsonl and tiny/ (configuration and tokenizer, no weights) for
each task. The same sources and library versions give the same bytes.
Needs transformers and tokenizers; no network, no torch.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MARK = "<<"  # every Jinja mark of this template begins with it, and Jinja reads these files
MAX_LENGTH = 512
Row = dict[str, str]


def read(path: Path) -> Iterator[Row]:
    """The rows of a JSON lines file, less those that Jinja would take for markup."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if MARK not in line:
                yield json.loads(line)


def messages(path: Path) -> list[Row]:
    """All single messages: a text of many lines is several messages run together by mistake."""
    return [row for row in read(path) if "\n" not in row["text"] and len(row["text"]) <= 2000]


def novel(path: Path, title: str, size: int) -> list[Row]:
    """Whole rows from the one that begins with `title`, about `size` characters of text."""
    kept: list[Row] = []
    for row in read(path):
        if kept or row["text"].startswith(title):
            kept.append(row)
            size -= len(row["text"])
            if size <= 0:
                break
    return kept


def write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def train_tokenizer(
    texts: list[str], size: int, special: dict[str, str], single: str = "", pair: str = ""
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be written in it, so it has no unknown token."""
    tokens = list(dict.fromkeys(special.values()))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if single:
        ids = [(token, core.token_to_id(token)) for token in tokens]
        core.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=ids
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def save(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, task: Path) -> None:
    config.save_pretrained(task / "tiny")
    tokenizer.save_pretrained(task / "tiny")
    for path in (*task.glob("data/*"), *task.glob("tiny/*")):
        if MARK in path.read_text(encoding="utf-8"):
            raise SystemExit(f"{path} holds {MARK}, which Jinja would read as markup")


def classification(source: Path, task: Path) -> None:
    train, valid = messages(source / "train.jsonl"), messages(source / "valid.jsonl")
    write(train, task / "data" / "train.jsonl")
    write(valid, task / "data" / "valid.jsonl")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = train_tokenizer(
        [row["text"] for row in train], 1024, special, "<s> $A </s>", "<s> $A </s> $B </s>"
    )
    # DistilBERT: an encoder without a pooling layer, which a mean over tokens would leave unused.
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        n_layers=2,
        n_heads=4,
        dim=96,
        hidden_dim=384,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(config, tokenizer, task)


def seq2seq(source: Path, task: Path) -> None:
    train = list(islice(read(source / "train.jsonl"), 6000))
    valid = list(islice(read(source / "valid.jsonl"), 500))
    write(train, task / "data" / "train.jsonl")
    write(valid, task / "data" / "valid.jsonl")
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    texts = [text for row in train for text in row.values()]
    # Ends by itself at bytes + letters + phones: nothing longer stands between two spaces.
    tokenizer = train_tokenizer(texts, 512, special, "$A </s>", "$A </s> $B </s>")
    config = T5Config(
        vocab_size=len(tokenizer),
        n_positions=MAX_LENGTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        d_model=128,
        d_kv=32,
        d_ff=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    save(config, tokenizer, task)


def causal_lm(source: Path, task: Path) -> None:
    train = novel(source / "train.jsonl", "NORTHANGER ABBEY", 450_000)
    valid = novel(source / "valid.jsonl", "Persuasion", 60_000)
    write(train, task / "data" / "train.jsonl")
    write(valid, task / "data" / "valid.jsonl")
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = train_tokenizer([row["text"] for row in train], 1024, special)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_size=128,
        intermediate_size=384,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(config, tokenizer, task)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample data and the tiny base models.")
    parser.add_argument("--sms_spam", type=Path, required=True, help="fields: text, label")
    parser.add_argument("--cmudict", type=Path, required=True, help="fields: source, target")
    parser.add_argument("--austen", type=Path, required=True, help="field: text")
    parser.add_argument("--outdir", type=Path, default=TEMPLATES, help="holds one folder per task")
    args = parser.parse_args()
    classification(args.sms_spam, args.outdir / "classification")
    seq2seq(args.cmudict, args.outdir / "seq2seq")
    causal_lm(args.austen, args.outdir / "causal_lm")


if __name__ == "__main__":
    main()
