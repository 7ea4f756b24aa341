"""Find entities in texts, or predict labels of words, for predict.py."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reading.alignment import Unit, join_words, units_of
from reading.entities import entities_of
from reading.windows import Tokens, tokenize_in_windows

from .dataset import Schema

# Arguments of Predictor that predict.py offers on its command line.
OPTIONS: dict[str, dict] = {}
BATCH = 32  # number of windows in a batch


class Predictor:
    """Find entities in texts, or predict the labels of words.

    Args:
        max_len: Longer texts are divided into overlapping windows of at most this number of tokens.
        schema: Settings with which the training data were read.

    Attributes:
        columns: Name of the column of the texts or words in the training data.
        takes_lists: True, since a cell may be a list of words.
    """

    takes_lists = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        schema: dict,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.columns: list[str] = Schema(**schema).columns[:1]
        self.is_trained_on_words = "text_column" in schema and schema["text_column"] is None
        self.names = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def __call__(self, texts: list) -> list[dict]:
        """Return the `prediction` for each text or list of words, and its `scores`.

        For a text: its entities, with start and end (exclusive) in characters. The score of an
        entity is the mean probability of the labels of its tokens or, if the model was trained on
        words, of its words. For a list of words: the label of each word and its probability, or
        None for a word without a token.
        """
        joined = [(text, None) if isinstance(text, str) else join_words(text) for text in texts]
        tokenized = tokenize_in_windows(self.tokenizer, [text for text, _ in joined], self.max_len)
        found = []
        for (text, words), tokens, probabilities in zip(
            joined, tokenized, self._probabilities(tokenized), strict=True
        ):
            scores, indices = (part.tolist() for part in probabilities.max(-1))
            labels = [self.names[index] for index in indices]
            if words is not None:
                units = units_of(tokens, words)
                found.append(_of_words(words, units, labels, scores))
            else:
                units = self._units(tokens)
                found.append(_of_text(text, units, labels, scores))
        return found

    def _units(self, tokens: Tokens) -> list[Unit]:
        """Return the units of a text: words if the model was trained on words, otherwise tokens."""
        if not self.is_trained_on_words:
            return units_of(tokens, None)
        units: dict[int, Unit] = {}
        for token, (number, (start, end)) in enumerate(
            zip(tokens.words, tokens.offsets, strict=True)
        ):
            first = units.get(number, Unit(token, start, end))
            units[number] = first._replace(end=end)
        return list(units.values())

    @torch.no_grad()
    def _probabilities(self, tokenized: list[Tokens]) -> list[Tensor]:
        """Return the probabilities of the labels for each text, shape (tokens, labels)."""
        windows = [(row, *part) for row, tokens in enumerate(tokenized) for part in tokens.bounds()]
        parts: list[list[Tensor]] = [[torch.zeros(0, len(self.names))] for _ in tokenized]
        for first in range(0, len(windows), BATCH):
            batch = windows[first : first + BATCH]
            ids = [torch.tensor(window.input_ids) for _, window, _, _ in batch]
            pad_id = self.tokenizer.pad_token_id or 0  # any id, since padding is masked
            inputs = torch.nn.utils.rnn.pad_sequence(ids, True, pad_id)
            lengths = torch.tensor([len(row) for row in ids])
            mask = (torch.arange(inputs.shape[1]) < lengths[:, None]).long()
            device = self.model.device
            logits = self.model(inputs.to(device), attention_mask=mask.to(device)).logits
            probabilities = logits.float().softmax(-1).cpu()
            for (row, window, begin, end), own in zip(batch, probabilities, strict=True):
                parts[row].append(own[window.position(begin) : window.position(end)])
        return [torch.cat(some) for some in parts]


def _of_text(text: str, units: list[Unit], labels: list[str], scores: list[float]) -> dict:
    """Return the entities of a text, and their scores."""
    entities = []
    means = []
    for first, last, label in entities_of([labels[unit.token] for unit in units]):
        start = units[first].start
        end = units[last - 1].end
        entities.append({"start": start, "end": end, "label": label, "text": text[start:end]})
        members = [scores[unit.token] for unit in units[first:last]]
        means.append(sum(members) / len(members))
    return {"prediction": entities, "scores": means}


def _of_words(
    words: list[tuple[int, int]], units: list[Unit], labels: list[str], scores: list[float]
) -> dict:
    """Return the label of each word, and its probability."""
    tokens = {unit.start: unit.token for unit in units}
    firsts = [tokens.get(start) if end > start else None for start, end in words]
    return {
        "prediction": [None if token is None else labels[token] for token in firsts],
        "scores": [None if token is None else scores[token] for token in firsts],
    }
