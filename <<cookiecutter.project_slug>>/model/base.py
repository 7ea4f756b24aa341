"""A wrapper around a model of transformers, and the forms of its checkpoints: see `Wrapper`."""

import copy
import hashlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .adapter import (
    BASE_CONFIG_FILE,
    CONFIG_FILE,
    adapter_config,
    add_adapter,
    find_adapter,
    has_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    task_type,
)
from .comparison import difference_to_base, evaluating
from .revision import join_revision, split_revision

# Name patterns of weight files of all formats. If a folder contains such a file, its model has
# pretrained weights.
WEIGHT_FILES = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt*", "*.h5", "*.msgpack"),
    *("*.gguf", "*.npz", "*.onnx", "*.index.json"),
)
# Keys that other tools read in config.json. `WrapperConfig` copies them from `base_config`.
SHARED = ("is_encoder_decoder", "id2label", "label2id", "problem_type")
# Attributes of `WrapperConfig` that are read from `base_config`.
DELEGATED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
    "decoder_start_token_id",
)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
LOSS_INPUTS = ("labels", "class_weights")  # arguments of `forward` for the loss
CODE_MARK = "# sha256 of the code beside this file: "


class WrapperConfig(PreTrainedConfig):
    """The configuration of a base model, and the source of its weights.

    Args:
        base_model_id: A Hub id, `NAME@REVISION`, or a local folder. If a folder contains a
            configuration but no weights, the weights are random. Not saved in config.json.
        base_config: The configuration of the base model. Default: read from `base_model_id`.
        load_options: Arguments of `from_pretrained` of the base model. Not saved in config.json.
    """

    sub_configs = {"base_config": AutoConfig}
    # Otherwise transformers < 5.20 would build a configuration with default values at each load.
    has_no_defaults_at_init = True
    default_base_model = ""
    _auto_class = "AutoConfig"  # the code of the class is saved with each custom checkpoint

    def __init_subclass__(cls, *args, **kwargs):
        # transformers makes each subclass a dataclass, with a new constructor unless the subclass
        # defines one. Therefore define the inherited constructor in the subclass.
        cls.__init__ = cls.__init__  # type: ignore[method-assign]
        super().__init_subclass__(*args, **kwargs)

    def __init__(
        self,
        base_model_id: str | None = None,
        base_config: PreTrainedConfig | dict | None = None,
        load_options: dict[str, Any] | None = None,
        **kwargs,
    ):
        if base_config is None:
            base_model_id = os.path.expanduser(base_model_id or self.default_base_model)
            name, hub = split_revision(base_model_id)
            base_config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        elif isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_model_id = base_model_id
        self.base_config: PreTrainedConfig = base_config
        self.load_options = load_options or {}
        super().__init__(**kwargs)
        for name in SHARED:
            setattr(self, name, getattr(base_config, name))

    def __getattr__(self, name: str):
        if name in DELEGATED:
            return getattr(self.base_config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def base_has_weights(self) -> bool:
        """True if `base_model_id` is a Hub id, or a folder that contains weights."""
        if self.base_model_id is None:
            return False
        folder = Path(self.base_model_id)
        return not folder.is_dir() or any(any(folder.glob(name)) for name in WEIGHT_FILES)

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        return self.base_config.get_text_config(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all values except those that may depend on this machine, such as paths."""
        values = super().to_dict()
        for name in ("base_model_id", "load_options", "_name_or_path"):
            values.pop(name, None)
        values["base_config"].pop("_name_or_path", None)
        return values


class Wrapper(PreTrainedModel):
    """A model that wraps a base model of transformers. Its checkpoints have one of three forms.

    The stock form is a checkpoint of the base model, which other tools can open. This form is used
    only if `choose_form` has shown that the base model alone computes the same logits. The custom
    form contains the weights and the code of this model; transformers opens such a checkpoint with
    `trust_remote_code=True`. After `add_lora`, checkpoints are PEFT adapters for the base model,
    until `merge_lora` is called.

    Subclasses set `auto_class`, and `base_model_prefix`, the name of the attribute that holds the
    base model.

    Attributes:
        notes: Lines about how the weights of the base model were loaded.
        loading_info: The loading info returned by `from_pretrained` of the base model; None if that
            method was not called.
        saves_stock: Whether `save_pretrained` writes the stock form if there is no adapter; None
            until the form is chosen, and after `merge_lora`.
    """

    auto_class: Any
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # makes transformers.Trainer pass `num_items_in_batch`
    _auto_class = "AutoModel"
    _supports_sdpa = True

    def __init__(self, config: WrapperConfig):
        super().__init__(config)
        self.notes: list[str] = []
        self.loading_info: dict | None = None
        self.saves_stock: bool | None = None

    def load_base(self, config: WrapperConfig, **options) -> PreTrainedModel:
        """Build the base model, with the weights of `config.base_model_id` if it has any.

        If the default device is meta, load no weights: `Wrapper.from_pretrained` builds the wrapper
        on the meta device, and then loads the weights of the checkpoint.
        """
        on_meta = torch.get_default_device().type == "meta"
        if on_meta or not config.base_has_weights:
            base = self.auto_class.from_config(
                config.base_config, dtype=torch.get_default_dtype(), trust_remote_code=False
            )
        else:
            name, hub = split_revision(str(config.base_model_id))
            options = {"dtype": torch.float32, **hub, **config.load_options, **options}
            base, self.loading_info = self.auto_class.from_pretrained(
                name,
                config=config.base_config,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
        if not on_meta and config.base_model_id is not None and not config.base_has_weights:
            self.notes.append(f"{config.base_model_id} has no weight file: training from scratch")
        return self.adopt(base, config)

    def adopt(self, base: PreTrainedModel, config: WrapperConfig) -> PreTrainedModel:
        """Freeze the tensors that `base` does not save; set `config.base_config`; return `base`."""
        # Do not train tensors that are not saved, such as the sinusoidal positions of Marian.
        for name in base._keys_to_ignore_on_save or ():
            base.get_parameter(name).requires_grad_(False)
        base.config._name_or_path = ""
        config.base_config = base.config  # `from_pretrained` has copied the configuration
        return base

    def add_lora(self, **options: Any) -> None:
        """Freeze the base model and add an adapter to it; see `add_adapter`.

        Args:
            options: Arguments of `peft.LoraConfig`.
        """
        new_weights = (self.loading_info or {}).get("missing_keys", ())
        options["task_type"] = task_type(self.auto_class.__name__)
        add_adapter(self.base_model, new_weights, **options)

    def merge_lora(self) -> None:
        """Merge the adapter into the base model; see `merge_adapter`."""
        merge_adapter(self.base_model)
        self.saves_stock = None

    def on_weights_loaded(self) -> None:
        """Set up the parts of the model that depend on the values of the weights, if there are any.

        Subclasses with such parts override this method. `from_pretrained` calls this method after
        the weights of a custom checkpoint are loaded.
        """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: PreTrainedConfig | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ):
        """Load a checkpoint in the stock form or the custom form, or an adapter.

        See `transformers.PreTrainedModel.from_pretrained`. For an adapter, the argument
        `base_model_id` replaces the saved path or Hub id of the base model.
        """
        path, revision = split_revision(os.path.expanduser(pretrained_model_name_or_path))
        kwargs = {**revision, **kwargs}
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if config is None and (adapter := find_adapter(path, **hub)) is not None:
            model, info = cls._from_adapter(adapter, kwargs)
            return (model, info) if output_loading_info else model
        if config is None:
            saved, _ = PreTrainedConfig.get_config_dict(path, **hub)
            if saved.get("model_type") != cls.config_class.model_type:
                model, info = cls._from_stock(path, hub, kwargs)
                return (model, info) if output_loading_info else model
        model, info = super().from_pretrained(
            path, *args, config=config, output_loading_info=True, **kwargs
        )
        model._recompute_buffers()
        model.on_weights_loaded()
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_adapter(cls, folder: Path, options: dict) -> tuple["Wrapper", dict]:
        # These arguments apply to the adapter, not to its base model.
        own = ("use_safetensors", "subfolder", "revision")
        options = {name: value for name, value in options.items() if name not in own}
        saved = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        base = options.pop("base_model_id", None) or join_revision(
            saved["base_model_name_or_path"], saved.get("revision")
        )
        file = folder / BASE_CONFIG_FILE
        config = None
        if file.is_file():
            config = AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
        model, info = cls._from_stock(base, {}, options, config)
        load_adapter(model.base_model, folder)
        name, hub = split_revision(base)
        adapter_config(model.base_model).base_model_name_or_path = name
        adapter_config(model.base_model).revision = hub.get("revision")
        return model, info

    @classmethod
    def _from_stock(
        cls, path: str, hub: dict, options: dict, base_config: PreTrainedConfig | None = None
    ) -> tuple["Wrapper", dict]:
        if base_config is None:
            name, revision = split_revision(path)
            hub = {**revision, **hub}
            base_config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        # A stock checkpoint has none of the fields of `config_class`; arguments may supply them.
        fields = inspect.signature(cls.config_class.__init__).parameters.keys() & options.keys()
        own = {name: options[name] for name in fields}
        options = {"dtype": "auto", **{k: v for k, v in options.items() if k not in fields}}
        model = cls(cls.config_class(path, base_config=base_config, load_options=options, **own))
        model.config.load_options = {}
        model.eval()
        if model.loading_info is None:
            raise OSError(f"{path} has no weight file")
        return model, model.loading_info

    def _recompute_buffers(self) -> None:
        """Recompute the buffers of this model that are not saved in a checkpoint.

        `from_pretrained` builds the model on the meta device, so these buffers have no values.
        """
        prefix = f"{self.base_model_prefix}."
        saved = self.state_dict()
        buffers = {name: b for name, b in self.named_buffers() if name not in saved}
        if all(name.startswith(prefix) for name in buffers):
            return  # transformers recomputes the buffers of its own models
        with torch.random.fork_rng(), torch.device("cpu"):
            computed = dict(type(self)(copy.deepcopy(self.config)).named_buffers())
        for name, buffer in buffers.items():
            buffer.copy_(computed[name])

    def save_pretrained(
        self,
        save_directory: str | Path,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the adapter if there is one, otherwise a checkpoint in the chosen form.

        If no form has been chosen, call `choose_form` first.
        """
        prefix = f"{self.base_model_prefix}."
        if has_adapter(self.base_model):
            if state_dict is not None:
                state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}
            return save_adapter(self.base_model, Path(save_directory), state_dict)
        if self.saves_stock is None:
            self.choose_form()
        tensors = self.state_dict() if state_dict is None else state_dict
        if not self.saves_stock:
            code = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            self.config.auto_map = {**getattr(self.config, "auto_map", {}), "AutoModel": code}
            super().save_pretrained(save_directory, state_dict=tensors, **kwargs)
            return self._mark_code(Path(save_directory))
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return self.base_model.save_pretrained(save_directory, state_dict=tensors, **kwargs)

    def _mark_code(self, folder: Path) -> None:
        """Append the hash of all code in the folder to the file of the configuration class.

        transformers looks up the model class by the configuration class, and treats configuration
        classes with the same code as one class. Without the hash, two checkpoints with the same
        configuration code but different model code would both run the model that was loaded first.
        """
        codes = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))]
        digest = hashlib.sha256("\0".join(codes).encode()).hexdigest()
        file = folder / f"{type(self.config).__module__.split('.')[-1]}.py"
        lines = file.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith(CODE_MARK)]
        file.write_text("\n".join([*lines, CODE_MARK + digest, ""]), encoding="utf-8")

    def choose_form(self, batch: dict[str, Tensor] | None = None) -> str:
        """Choose the form of later saves.

        The form is stock if the base model alone has the same tensors and computes the same logits,
        otherwise custom. Call this method before the weights are sharded.

        Args:
            batch: Batch of the data, for the comparison. Default: a few token ids.

        Returns:
            One line with the form and the reason.
        """
        name = type(self.base_model).__name__
        try:
            with evaluating(self):
                reason = difference_to_base(self, self._dummy_batch() if batch is None else batch)
        except Exception as error:  # the user's `forward` fails, or returns no logits
            why = (str(error).strip().splitlines() or [""])[0]
            reason = (
                f"the outputs of Model cannot be compared with those of {name} "
                f"({type(error).__name__}: {why})"
            )
        self.saves_stock = reason is None
        if reason is not None:
            return f"checkpoints hold the code of model/: {reason}"
        form = f"stock {name}"
        if has_adapter(self.base_model):
            form = f"adapters for {adapter_config(self.base_model).base_model_name_or_path}"
        return f"checkpoints are {form}: their logits equal those of Model, bit for bit"

    def without_labels(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch without `LOSS_INPUTS`, as input for the comparison of logits.

        For an encoder-decoder that generates text, the labels become the decoder's inputs.
        """
        inputs = {name: value for name, value in batch.items() if name not in LOSS_INPUTS}
        if self.config.is_encoder_decoder and self.can_generate():
            inputs["decoder_input_ids"] = batch["labels"].clamp(min=0)
        return inputs

    def _dummy_batch(self) -> dict[str, Tensor]:
        eos = self.config.eos_token_id
        last = eos if isinstance(eos, int) and eos < self.config.vocab_size else 2
        ids = torch.tensor([[1, 2, 3, last]], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    # Packages such as transformers and PEFT use the members below. Each member delegates to the
    # member of the same name of the base model.

    @property
    def generation_config(self):
        base = self.base_model
        return None if base is self else getattr(base, "generation_config", None)

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        if self.base_model is not self:  # PreTrainedModel sets this before there is a base model
            self.base_model.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.base_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.base_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        return self.base_model.resize_token_embeddings(*args, **kwargs)
