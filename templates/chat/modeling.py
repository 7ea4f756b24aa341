"""The model: a decoder."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .base import Wrapper
from .comparison import check_documents, evaluating
from .configuration import ModelConfig
from .generation import WrapperGenerationMixin
from .loss import LinearHead, cross_entropy, num_targets


class Model(Wrapper, WrapperGenerationMixin):
    """A wrapper of any `AutoModelForCausalLM` (GPT-2, Llama, Qwen, SmolLM, ...)."""

    config_class = ModelConfig
    auto_class = AutoModelForCausalLM
    base_model_prefix = "lm"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.lm = self.load_base(config)
        self.post_init()
        self.stop_at(config.end_ids)
        self.on_weights_loaded()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict each token from those before it.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: Token ids of the answers, -100 elsewhere, shape (batch, length).
                `forward` shifts the labels by one position, so the first column is never a target.
            num_items_in_batch: Divisor of the summed loss: the number of targets in the global
                batch. Default: this number in the given batch.
            return_logits: Whether to return the logits even if `labels` are given.

        Returns:
            `loss`, a scalar (None without `labels`); `logits`, shape (batch, length, vocabulary);
            and the other outputs of the base model. If `labels` are given, `return_logits` is False
            and the head is a `LinearHead`, only `loss`, `hidden_states` and `attentions` are
            returned: the logits of all tokens might not fit in memory.
        """
        kwargs.update(input_ids=input_ids, attention_mask=attention_mask)
        if labels is None:
            return self.lm(**kwargs)
        kwargs.setdefault("use_cache", False)  # with a cache, attention would cross conversations
        smoothing = self.config.label_smoothing if self.training else 0.0
        head = self.lm.get_output_embeddings()
        if isinstance(head, LinearHead) and not return_logits:
            outputs = self.lm.base_model(**kwargs)
            loss = head(outputs.last_hidden_state, labels, num_items_in_batch, smoothing)
            hidden_states = outputs.get("hidden_states")
            attentions = outputs.get("attentions")
            return CausalLMOutputWithPast(
                loss=loss, hidden_states=hidden_states, attentions=attentions
            )
        outputs = self.lm(**kwargs)
        outputs.loss = cross_entropy(outputs.logits, labels, num_items_in_batch, smoothing)
        if outputs.get("aux_loss") is not None:  # load-balancing loss of a mixture of experts
            here = num_targets(labels)
            share = 1 if num_items_in_batch is None else here / num_items_in_batch
            outputs.loss += self.lm.config.router_aux_loss_coef * share * outputs.aux_loss
        return outputs

    def stop_at(self, end_ids: list[int]) -> None:
        """Add end-of-turn tokens to the tokens at which generation stops."""
        settings = self.lm.generation_config
        if not end_ids or settings is None:
            return
        own = settings.eos_token_id
        own = own if isinstance(own, list) else [own]
        ends = [*end_ids, *(end for end in own if end is not None and end not in end_ids)]
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]

    def on_weights_loaded(self) -> None:
        """Replace a linear head with `LinearHead`, which does not keep all logits in memory.

        If `config.packing` is set, first call `check_documents`.
        """
        if self.device.type == "meta":
            return
        if getattr(self.config, "packing", False):  # from ModelConfig(**dataset.schema)
            self.check_documents()
        head = self.lm.get_output_embeddings()
        if not self._has_linear_head():
            return
        with torch.device("meta"):
            linear = LinearHead(head.in_features, head.out_features, head.bias is not None)
        linear.weight = head.weight
        linear.bias = head.bias
        name = next(name for name, module in self.lm.named_modules() if module is head)
        self.lm.set_submodule(name, linear.train(head.training))

    def _has_linear_head(self) -> bool:
        """Return whether the logits equal head(last_hidden_state), and there is no router loss."""
        head = self.lm.get_output_embeddings()
        if type(head) is not nn.Linear or getattr(self.lm.config, "output_router_logits", False):
            return False
        ids = torch.tensor([[1, 2]], device=self.device)
        with evaluating(self.lm):
            hidden = getattr(self.lm.base_model(input_ids=ids), "last_hidden_state", None)
            # Compare bit for bit, since a soft cap changes small logits only slightly.
            return (
                hidden is not None
                and hidden.shape[-1] == head.in_features
                and torch.equal(self.lm(input_ids=ids).logits, head(hidden))
            )

    def check_documents(self) -> None:
        """Check that attention does not cross conversations; see `comparison.check_documents`."""
        check_documents(self.lm, "packing")


Model.register_for_auto_class("AutoModelForCausalLM")
