"""Check that packing does not change the gradient of the task chat.

Also check that a base model that cannot mask attention between conversations is refused.
"""

import torch
from transformers import AutoConfig

from model.configuration import ModelConfig
from model.dataset import Dataset, generate_dataset, pack
from model.metrics import last_answers
from model.modeling import Model

MAX_LEN = 150


def gradient(dataset: Dataset) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Model(ModelConfig(**dataset.schema))
    items = int(dataset.num_items.sum())
    for begin in range(0, len(dataset), 16):
        rows = range(begin, min(begin + 16, len(dataset)))
        batch = dataset.collate([dataset[n] for n in rows])
        assert int((batch["labels"] != -100).sum()) == dataset.num_items[rows].sum()
        model(**batch, num_items_in_batch=items).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


alone = generate_dataset("data/valid.jsonl", max_len=MAX_LEN)
packed = generate_dataset("data/valid.jsonl", max_len=MAX_LEN, packing=True)
assert len(packed) < 0.6 * len(alone)
assert packed.lengths.max() <= MAX_LEN
assert packed.lengths.sum() == alone.lengths.sum()
assert packed.num_items.sum() == alone.num_items.sum()
expected = gradient(alone)
for name, found in gradient(packed).items():
    assert (found - expected[name]).norm() < 1e-5 * expected[name].norm(), name

# No conversation is split over rows.
found = [tuple(ids.tolist()) for row in packed for ids, _ in last_answers(row)]
single = [tuple(ids.tolist()) for row in alone for ids, _ in last_answers(row)]
assert sorted(found) == sorted(single)
for lengths, room in (([5, 5, 5], 10), ([1] * 7, 3), ([10, 1, 9, 2], 10), ([3], 3)):
    packs = pack(torch.tensor(lengths).numpy(), room)
    assert sorted(sum(packs, [])) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in one) <= room for one in packs)
assert len(pack(torch.tensor([6, 4, 5, 5]).numpy(), 10)) == 2

sizes = {"vocab_size": 1024, "hidden_size": 32, "n_layer": 1, "n_head": 1}
AutoConfig.for_model("bloom", **sizes).save_pretrained("bloom")
try:
    Model(ModelConfig("bloom", **packed.schema))
except ValueError as error:
    assert str(error) == "packing: BloomForCausalLM does not accept position_ids"
else:
    raise AssertionError("bloom cannot mask attention between conversations, but is not refused")
