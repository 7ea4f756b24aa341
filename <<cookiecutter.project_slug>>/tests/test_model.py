"""The model of this task: its loss, its data set, and saving and loading."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model


@pytest.fixture(scope="module")
def dataset(sample, tokenizer):
    return generate_dataset(sample / "train.jsonl", tokenizer, 48)


@pytest.fixture(scope="module")
def model(dataset, sample):
    torch.manual_seed(0)
    return Model(ModelConfig(str(sample / "tiny"), **dataset.schema)).eval()


def test_loss_is_a_scalar_with_gradients_for_all_parameters(dataset, model):
    batch = dataset.collate([dataset[0], dataset[1], dataset[2]])
    outputs = model(**batch)
    assert outputs.loss.ndim == 0
    assert outputs.logits is None or outputs.logits.shape[0] == 3
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.zero_grad()


def test_loss_is_divided_by_num_items_in_batch(dataset, model):
    indices = [0, 1, 2]
    batch = dataset.collate([dataset[i] for i in indices])
    items = dataset.num_items[indices].sum().item()
    mean, share = model(**batch).loss, model(**batch, num_items_in_batch=10 * items).loss
    torch.testing.assert_close(share, mean / 10)


def test_padding_does_not_change_the_loss(dataset, model):
    indices = list(range(len(dataset)))
    together = model(**dataset.collate([dataset[i] for i in indices]), num_items_in_batch=1).loss
    alone = sum(model(**dataset.collate([dataset[i]]), num_items_in_batch=1).loss for i in indices)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_data_set_has_a_length_and_target_items_for_each_example(dataset):
    assert len(dataset.lengths) == len(dataset.num_items) == len(dataset)
    for example, length in zip(dataset, dataset.lengths, strict=True):
        assert length >= len(example["input_ids"])


def test_saved_model_is_loaded_bit_identically(dataset, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    batch = dataset.collate([dataset[0]])
    assert torch.equal(model(**batch).loss, loaded.eval()(**batch).loss)
    text = "Do you see it?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_new_model_has_the_weights_of_its_base_model(model, tmp_path, dataset, tokenizer):
    base = next(iter(model.children()))
    base.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = next(iter(Model(ModelConfig(str(tmp_path), **dataset.schema)).children()))
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_data_set_works_with_a_plain_data_loader(sample, tokenizer, model):
    loader = DataLoader(generate_dataset(sample / "valid.jsonl", tokenizer))
    outputs = model(**next(iter(loader)))
    outputs.loss.backward()
    model.zero_grad()
