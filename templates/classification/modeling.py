"""The model: a sequence classifier with the pooling and the head of its architecture."""

import copy

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .base import Wrapper
from .configuration import ModelConfig
from .loss import compute_loss
from .revision import split_revision


class Model(Wrapper):
    """Any `AutoModelForSequenceClassification` (BERT, RoBERTa, ModernBERT, GPT-2, Llama, ...)."""

    config_class = ModelConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "classifier"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if hasattr(config, "classifier_dropout"):
            raise ValueError(
                "saved by an earlier version, whose model used mean pooling; expected "
                "model/modeling.py of the recipe `pooling` of the template"
            )
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.classifier = self._load_classifier(config)
        else:
            self.classifier = self.load_base(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        class_weights: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify a batch of texts.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: See `compute_loss`.
            num_items_in_batch: Divisor of the summed loss: the number of labels in the global
                batch, or the sum of their weights. Default: that of this batch.
            class_weights: Weight of each label in the loss, shape (labels,). Default: 1.

        Returns:
            `loss`, a scalar if `labels` were given, and `logits`, shape (batch, labels), with the
            other outputs of the base model.
        """
        outputs = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            outputs.loss = compute_loss(
                self.config.problem_type,
                outputs.logits,
                labels,
                num_items_in_batch,
                class_weights,
                self.config.label_smoothing if self.training else 0.0,
            )
        return outputs

    def _load_classifier(self, config: ModelConfig):
        """Load the base model; keep its head if it was trained for the same labels.

        If the order differs, reorder the rows of the head as in `config.labels`.
        """
        place, hub = split_revision(str(config.base_model_id))
        saved = AutoConfig.from_pretrained(place, trust_remote_code=False, **hub)
        names = [saved.id2label[index] for index in range(saved.num_labels)]
        if not any("SequenceClassification" in name for name in saved.architectures or []):
            return self.load_base(config)
        if _fits(saved, names, config):
            base = self.load_base(config)
            if names != config.labels and len(names) > 1:
                order = torch.tensor([names.index(name) for name in config.labels])
                for name, dim in _label_dims(config).items():
                    tensor = base.get_parameter(name)
                    tensor.data = tensor.data.index_select(dim, order)
                self.notes.append("the rows of the base model's head are reordered as the labels")
            return base
        self.notes.append(f"new head: the base model has other labels ({', '.join(names[:8])})")
        loaded = AutoModelForSequenceClassification.from_pretrained(
            place, config=saved, dtype=torch.float32, trust_remote_code=False, **hub
        )
        head = _label_dims(config)
        body = {name: t for name, t in loaded.state_dict().items() if name not in head}
        base, self.loading_info = type(loaded).from_pretrained(
            None,
            config=config.base_config,
            state_dict=body,
            dtype=torch.float32,
            output_loading_info=True,
        )
        return self._adopt(base, config)


def _fits(saved: PreTrainedConfig, names: list[str], config: ModelConfig) -> bool:
    """Return whether a head was trained for the labels of `config`."""
    one_value = "regression" if saved.num_labels == 1 else "single_label_classification"
    if (saved.problem_type or one_value) != config.problem_type:
        return False
    return config.problem_type == "regression" or sorted(names) == sorted(config.labels)


def _label_dims(config: ModelConfig) -> dict[str, int]:
    """Return the tensors that have a row for each label, and the dimension of these rows."""
    sizes = []
    for count in (config.num_labels, config.num_labels + 1):
        other = copy.deepcopy(config.base_config)
        other.num_labels = count
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(other, trust_remote_code=False)
        sizes.append({name: tensor.shape for name, tensor in model.named_parameters()})
    found = {}
    for name, shape in sizes[0].items():
        differs = [a != b for a, b in zip(shape, sizes[1][name], strict=True)]
        if any(differs):
            found[name] = differs.index(True)
    return found


Model.register_for_auto_class("AutoModelForSequenceClassification")
