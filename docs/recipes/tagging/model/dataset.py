"""Read sentences with a tag for each word."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from errors import DataError
from reading.locate import locate_row
from reading.sources import Source
from reading.tables import read_table
from reading.tokens import pad

KEEP = "KEEP"


class Dataset(torch.utils.data.Dataset):
    """Tokenized sentences; the label of a word's first token is the word's tag."""

    def __init__(self, sentences: list[dict], tags: list[str], tokenizer: PreTrainedTokenizerBase):
        self.sentences = sentences
        self.tokenizer = tokenizer
        self.schema = {"tags": tags}
        self.lengths = np.array([len(sentence["input_ids"]) for sentence in sentences])
        self.num_items = np.array([(s["labels"] != -100).sum().item() for s in sentences])

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict:
        return self.sentences[index]

    def collate(self, examples: list[dict]) -> dict:
        input_ids, mask = pad(examples, "input_ids", self.tokenizer.pad_token_id)
        labels, _ = pad(examples, "labels", -100)
        words = [example["words"] for example in examples]  # for the scores, not for forward
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "words": words}


def generate_dataset(
    path: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_len: int = 128,
    tags: list[str] | None = None,
) -> Dataset:
    """Read sentences with `words` and `tags`; truncate each sentence to `max_len` tokens.

    Raises:
        DataError: The file cannot be read, the numbers of words and tags of a row differ, or a tag
            is not in `tags`.
    """
    table = read_table(path, ["words", "tags"], lists=["words", "tags"])
    tags = tags or [KEEP, *sorted({tag for row in table["tags"] for tag in row} - {KEEP})]
    sentences = []
    for index, row in enumerate(table):
        if len(row["words"]) != len(row["tags"]) or not set(row["tags"]) <= set(tags):
            raise DataError(
                f"{locate_row(path, index)}: {len(row['words'])} words, tags {row['tags']}; "
                f"expected one of {', '.join(tags)} for each word"
            )
        tokens = tokenizer(
            row["words"], is_split_into_words=True, truncation=True, max_length=max_len
        )
        words = tokens.word_ids()
        labels = torch.full((len(words),), -100)
        for position, word in enumerate(words):
            if word is not None and word not in words[:position]:
                labels[position] = tags.index(row["tags"][word])
        ids = torch.tensor(tokens.input_ids)
        sentences.append({"input_ids": ids, "labels": labels, "words": row["words"]})
    return Dataset(sentences, tags, tokenizer)
