"""The other systems: transformers.Trainer, and the training loop of Accelerate's documentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from processes import Recorder
from systems import (
    ACCUMULATION,
    EPOCHS,
    GLOBAL_BATCH_SIZE,
    LEARNING_RATE,
    SAVED_STEP,
    SEED,
    STEPS_PER_EPOCH,
    Examples,
    Fit,
    Ours,
    System,
    flat,
    gradient_of,
)
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

STOCK: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
}


class Peer(System):
    """A system that trains the stock model with the configuration of the base model."""

    def model(self, dataset: Any, base: str = "tiny") -> PreTrainedModel:
        labels = dataset.schema.get("labels")
        sizes = {"num_labels": len(labels)} if labels else {}
        config = AutoConfig.from_pretrained(self.sample / base, **sizes)
        set_seed(SEED)
        return STOCK[self.task].from_config(config)

    def build(self, record: Callable | None = None) -> PreTrainedModel:
        """Build the model; with `record`, use the base model with dropout.

        Args:
            record: Function to call before each forward pass in training, with the indices of the
                examples.
        """
        model = self.model(self.dataset("train"), "tiny-dropout" if record else "tiny")

        def take_ids(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            ids = kwargs.pop("ids")
            if record and module.training:
                record(ids.tolist())
            return args, kwargs

        model.register_forward_pre_hook(take_ids, with_kwargs=True)
        return model

    def run_examples(self) -> Examples:
        return Examples(self.dataset("train"), STEPS_PER_EPOCH * GLOBAL_BATCH_SIZE, cut=False)


class KeepGradient(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradient = gradient_of(kwargs["model"])


class TrainerPeer(Peer):
    """transformers.Trainer with its defaults, except for the learning rate and clipping."""

    name = "Trainer"

    def trainer(self, examples: Examples, model: Any, folder: Path, **options: Any) -> Trainer:
        options.setdefault("save_strategy", "no")
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            learning_rate=LEARNING_RATE,
            seed=SEED,
            remove_unused_columns=False,
            **options,
        )
        return Trainer(
            model,
            arguments,
            data_collator=examples.numbered,
            train_dataset=examples,
            eval_dataset=examples,
        )

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        examples, model = self.examples("train", GLOBAL_BATCH_SIZE), self.build()
        trainer = self.trainer(
            examples,
            model,
            self.sample / "trainer",
            max_steps=1,
            max_grad_norm=0.0,  # no clipping
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        kept = KeepGradient()
        trainer.add_callback(kept)
        trainer.train()
        return kept.gradient

    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        examples, model = self.examples("valid", count), self.build()
        folder = self.sample / "trainer"
        trainers = [
            self.trainer(examples, model, folder, per_device_eval_batch_size=size)
            for size in batch_sizes
        ]
        return [trainer.evaluate()["eval_loss"] for trainer in trainers]

    def fit(self, fit: Fit) -> np.ndarray:
        record = Recorder(fit.folder, fit.phase, fit.last_pass)
        examples, model = self.run_examples(), self.build(record)
        trainer = self.trainer(
            examples,
            model,
            fit.folder,
            num_train_epochs=EPOCHS,
            save_strategy="steps",
            save_steps=SAVED_STEP,
            per_device_train_batch_size=fit.batch_size,
            gradient_accumulation_steps=ACCUMULATION,
        )
        checkpoint = str(fit.folder / f"checkpoint-{SAVED_STEP}")
        trainer.train(resume_from_checkpoint=checkpoint if fit.resume else None)
        return flat(model.state_dict())


class OurModelInTrainer(TrainerPeer):
    """The rendered project's model, trained with transformers.Trainer."""

    name = "our Model in Trainer"
    model = Ours.model


class AcceleratePeer(Peer):
    """The training loop of Accelerate's documentation.

    `accumulate` and the order of calls are taken from Accelerate's guide to gradient accumulation;
    saving, loading and skipping are taken from its examples/complete_nlp_example.py; the validation
    loss is taken from run_clm_no_trainer.py of transformers.
    """

    name = "Accelerate's recipe"

    def gradient(self, batch_size: int, accumulation: int) -> np.ndarray:
        accelerator = Accelerator(gradient_accumulation_steps=accumulation)
        examples, original = self.examples("train", GLOBAL_BATCH_SIZE), self.build()
        loader = DataLoader(examples, batch_size, shuffle=True, collate_fn=examples.numbered)
        model, loader = accelerator.prepare(original, loader)
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
        return gradient_of(original)

    @torch.no_grad()
    def valid_losses(self, batch_sizes: list[int], count: int) -> list[float]:
        accelerator = Accelerator()
        examples, model = self.examples("valid", count), self.build()
        model, means = accelerator.prepare(model), []
        model.eval()
        for size in batch_sizes:
            loader = accelerator.prepare(DataLoader(examples, size, collate_fn=examples.numbered))
            losses = [
                accelerator.gather_for_metrics(model(**batch).loss.repeat(size)) for batch in loader
            ]
            means.append(torch.cat(losses).mean().item())
        return means

    def fit(self, fit: Fit) -> np.ndarray:
        accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATION)
        record = Recorder(fit.folder, fit.phase, fit.last_pass)
        examples, original = self.run_examples(), self.build(record)
        loader = DataLoader(examples, fit.batch_size, shuffle=True, collate_fn=examples.numbered)
        optimizer = torch.optim.AdamW(original.parameters(), lr=LEARNING_RATE)
        # Before `prepare`, the length of the loader is the number of batches of all processes
        # together. At each optimizer step, the prepared scheduler advances once per process.
        training_steps = EPOCHS * len(loader) // ACCUMULATION
        scheduler = get_linear_schedule_with_warmup(optimizer, 0, training_steps)
        model, optimizer, loader, scheduler = accelerator.prepare(
            original, optimizer, loader, scheduler
        )
        checkpoint_steps = SAVED_STEP * ACCUMULATION  # the recipe counts forward passes
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
