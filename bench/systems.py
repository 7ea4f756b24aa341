"""The systems under comparison. Each method runs in a fresh process, or in several at once."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from processes import Recorder
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

SEED, LEARNING_RATE, MAX_LENGTH = 42, 1e-3, 48
GLOBAL_BATCH_SIZE = 8  # examples in a step
EPOCHS, STEPS_PER_EPOCH, SAVED_STEP = 2, 6, 9
STOCK: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Fit:
    """A run of EPOCHS epochs that saves after SAVED_STEP steps, or its continuation.

    Attributes:
        folder: For its checkpoints and records.
        phase: Names its records.
        batch_size: Examples in a forward pass of one process.
        accumulation: Forward passes in a step.
        last_pass: The forward pass before which it is killed, if any.
        resume: Whether to go on from the checkpoint in `folder`.
    """

    folder: Path
    phase: str
    batch_size: int
    accumulation: int
    last_pass: int | None = None
    resume: bool = False


class Examples(torch.utils.data.Dataset):
    """The first examples of a data set; blocks of text are cut to differing lengths.

    Has what the template's loop asks of a data set, and numbers each example for the others.
    """

    def __init__(self, dataset: Any, count: int, cut: bool = False, numbered: bool = False):
        count = min(count, len(dataset))
        self.examples = [dataset[index] for index in range(count)]
        self.lengths = np.asarray(dataset.lengths[:count])
        self.num_items = np.asarray(dataset.num_items[:count])
        if cut:
            self.lengths = np.random.default_rng(SEED).integers(4, MAX_LENGTH, count)
            self.num_items = self.lengths - 1
            self.examples = [
                {key: value[:length] for key, value in example.items()}
                for example, length in zip(self.examples, self.lengths, strict=True)
            ]
        self._collate, self._numbered = dataset.collate, numbered

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.examples[index], "ids": torch.tensor(index)}

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = self._collate(examples)
        if self._numbered:
            batch["ids"] = torch.stack([example["ids"] for example in examples])
        return batch


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """All tensors in one vector, in the order of their names."""
    return np.concatenate([tensors[name].detach().numpy().ravel() for name in sorted(tensors)])


def gradient(model: torch.nn.Module) -> np.ndarray:
    return flat({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


class System:
    """A way to train on the sample of a task.

    Args:
        project: The project rendered for the task; all systems read their data by its code.
        sample: Holds train.jsonl, valid.jsonl and the base model, without and with dropout.
    """

    name: str

    def __init__(self, task: str, project: Path, sample: Path):
        self.task, self.project, self.sample = task, project, sample

    def dataset(self, part: str) -> Any:
        """Read a file of the sample by the project's own code."""
        if str(self.project) not in sys.path:
            sys.path.insert(0, str(self.project))
        from model.dataset import generate_dataset

        tokenizer = AutoTokenizer.from_pretrained(self.sample / "tiny")
        return generate_dataset(self.sample / f"{part}.jsonl", tokenizer, MAX_LENGTH)

    def examples(self, part: str, count: int, numbered: bool = False) -> Examples:
        return Examples(self.dataset(part), count, self.task == "causal_lm", numbered)


class Ours(System):
    """A project as it was rendered."""

    name = "hf-template"

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        from model.configuration import ModelConfig
        from model.modeling import Model

        set_seed(SEED)
        return Model(ModelConfig(str(self.sample / base), **dataset.schema))

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        examples, model = (
            self.examples("train", GLOBAL_BATCH_SIZE),
            self.model(self.dataset("train")),
        )
        from train import train_step
        from training.batches import Batches

        accelerator = Accelerator()
        prepared = accelerator.prepare(model)
        batches = Batches(examples, accelerator, batch_size, GLOBAL_BATCH_SIZE, seed=SEED)
        train_step(accelerator, prepared, batches.epoch())
        return gradient(model)

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        examples, model = self.examples("valid", count), self.model(self.dataset("train"))
        from train import valid
        from training.batches import Batches

        accelerator = Accelerator()
        model = accelerator.prepare(model)
        return [
            valid(accelerator, model, Batches(examples, accelerator, size), 0)["loss"]
            for size in batch_sizes
        ]

    def fit(self, fit: Fit) -> np.ndarray:
        self.dataset("train")
        import train

        record, train_step = Recorder(fit.folder, fit.phase, fit.last_pass), train.train_step

        def recording(accelerator: Any, model: Any, micro_batches: Iterator) -> Any:
            def noted() -> Iterator:
                for inputs, micro in micro_batches:
                    record(micro.indices if micro.weight else [])
                    yield inputs, micro

            return train_step(accelerator, model, noted())

        train.train_step = recording
        if fit.resume:
            train.main(["--restore_dir", str(fit.folder / "last")])
        else:
            options = {
                "train_input": self.sample / "train.jsonl",
                "valid_input": self.sample / "valid.jsonl",
                "model_id": self.sample / "tiny-dropout",
                "max_len": MAX_LENGTH,
                "outdir": fit.folder,
                "epochs": EPOCHS,
                "save_steps": SAVED_STEP,
                "batch_size": fit.batch_size,
                "accumulation": fit.accumulation,
                "lr": LEARNING_RATE,
                "seed": SEED,
                "num_workers": 0,
            }
            train.main(
                [text for key, value in options.items() for text in (f"--{key}", str(value))]
            )
        return flat(load_file(fit.folder / "last" / "model.safetensors"))


class Peer(System):
    """A peer: it trains the stock model with the base model's configuration, on the same data."""

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        labels = dataset.schema.get("labels")
        sizes = {"num_labels": len(labels)} if labels else {}
        config = AutoConfig.from_pretrained(self.sample / base, **sizes)
        set_seed(SEED)
        return STOCK[self.task].from_config(config)

    def prepared(
        self, part: str, count: int, record: Callable[[list[int]], None] | None = None
    ) -> tuple[Examples, PreTrainedModel]:
        """The examples, and a model that notes which of them it has been trained on."""
        dataset, examples = self.dataset("train"), self.examples(part, count, numbered=True)
        if record:  # a run; the data are those of the template, uncut
            examples = Examples(dataset, count, numbered=True)
        model = self.model(dataset, "tiny-dropout" if record else "tiny")

        def take_ids(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            ids = kwargs.pop("ids")
            if record and module.training:
                record(ids.tolist())
            return args, kwargs

        model.register_forward_pre_hook(take_ids, with_kwargs=True)
        return examples, model


class KeepGradient(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradient = gradient(kwargs["model"])


class TrainerPeer(Peer):
    """transformers.Trainer with its defaults."""

    name = "Trainer"

    def trainer(self, examples: Examples, model: Any, folder: Path, **options: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            learning_rate=LEARNING_RATE,
            seed=SEED,
            remove_unused_columns=False,
            **{"save_strategy": "no", "logging_strategy": "no", "report_to": "none", **options},
        )
        return Trainer(
            model,
            arguments,
            data_collator=examples.collate,
            train_dataset=examples,
            eval_dataset=examples,
        )

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        examples, model = self.prepared("train", GLOBAL_BATCH_SIZE)
        trainer = self.trainer(
            examples,
            model,
            self.sample / "trainer",
            max_steps=1,
            max_grad_norm=0.0,  # not clipped
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        kept = KeepGradient()
        trainer.add_callback(kept)
        trainer.train()
        return kept.gradient

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        examples, model = self.prepared("valid", count)
        folder = self.sample / "trainer"
        return [
            self.trainer(examples, model, folder, per_device_eval_batch_size=size).evaluate()[
                "eval_loss"
            ]
            for size in batch_sizes
        ]

    def fit(self, fit: Fit) -> np.ndarray:
        record = Recorder(fit.folder, fit.phase, fit.last_pass)
        examples, model = self.prepared("train", STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE, record)
        trainer = self.trainer(
            examples,
            model,
            fit.folder,
            num_train_epochs=EPOCHS,
            save_strategy="steps",
            save_steps=SAVED_STEP,
            per_device_train_batch_size=fit.batch_size,
            gradient_accumulation_steps=fit.accumulation,
        )
        checkpoint = str(fit.folder / f"checkpoint-{SAVED_STEP}")
        trainer.train(resume_from_checkpoint=checkpoint if fit.resume else None)
        return flat(model.state_dict())


class OurModelInTrainer(TrainerPeer):
    """The rendered project's model under transformers.Trainer."""

    name = "our Model in Trainer"
    model = Ours.model


class AcceleratePeer(Peer):
    """The loop that Accelerate documents.

    `accumulate` and the order of calls are those of its guide to gradient accumulation; saving,
    restoring and skipping those of examples/complete_nlp_example.py; the validation loss that of
    the run_*_no_trainer.py examples of transformers.
    """

    name = "Accelerate's recipe"

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        accelerator = Accelerator(gradient_accumulation_steps=accumulation)
        examples, original = self.prepared("train", GLOBAL_BATCH_SIZE)
        loader = DataLoader(examples, batch_size, shuffle=True, collate_fn=examples.collate)
        model, loader = accelerator.prepare(original, loader)
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
        return gradient(original)

    @torch.no_grad()
    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        accelerator = Accelerator()
        examples, model = self.prepared("valid", count)
        model, means = accelerator.prepare(model), []
        model.eval()
        for size in batch_sizes:
            loader = accelerator.prepare(DataLoader(examples, size, collate_fn=examples.collate))
            losses = [
                accelerator.gather_for_metrics(model(**batch).loss.repeat(size)) for batch in loader
            ]
            means.append(torch.cat(losses).mean().item())
        return means

    def fit(self, fit: Fit) -> np.ndarray:
        accelerator = Accelerator(gradient_accumulation_steps=fit.accumulation)
        record = Recorder(fit.folder, fit.phase, fit.last_pass)
        examples, original = self.prepared("train", STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE, record)
        loader = DataLoader(examples, fit.batch_size, shuffle=True, collate_fn=examples.collate)
        optimizer = torch.optim.AdamW(original.parameters(), lr=LEARNING_RATE)
        scheduler = get_linear_schedule_with_warmup(optimizer, 0, EPOCHS * STEPS_PER_EPOCH)
        model, optimizer, loader, scheduler = accelerator.prepare(
            original, optimizer, loader, scheduler
        )
        checkpoint_steps = SAVED_STEP * fit.accumulation  # the recipe counts forward passes
        checkpoint = fit.folder / f"step_{checkpoint_steps}"
        starting_epoch, overall_step, resume_step = 0, 0, 0
        if fit.resume:
            accelerator.load_state(str(checkpoint))
            overall_step = checkpoint_steps
            starting_epoch, resume_step = divmod(overall_step, len(loader))
        for epoch in range(starting_epoch, EPOCHS):
            model.train()
            active_loader = loader
            if fit.resume and epoch == starting_epoch:
                active_loader = accelerator.skip_first_batches(loader, resume_step)
            for batch in active_loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch).loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                overall_step += 1
                if overall_step == checkpoint_steps:
                    accelerator.save_state(str(checkpoint))
        return flat(original.state_dict())
