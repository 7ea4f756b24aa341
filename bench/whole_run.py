"""Time the phases of one run of one system: reading, training, validation, saving and others.

python whole_run.py SYSTEM SPEC.json      (run by endtoend.py; prints one line of JSON)
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phases import Phases

FIRST_STEP = "first step"
BEGAN = float(os.environ.get("BENCH_BEGAN", time.time()))  # when the command was started


def ours(spec: dict, phases: Phases) -> None:
    """Run the train.py of the rendered project."""
    sys.path.insert(0, spec["project"])
    os.chdir(spec["project"])
    import train
    from reporting.report import Report
    from training.checkpoint import Checkpointer
    from training.opening import _Opening

    phases.enter("other")
    for owner, name, phase in (
        (_Opening, "read_data", "reading"),
        (_Opening, "build_model", "building"),
        (_Opening, "check", "checks"),
        (_Opening, "unused_parameters", "checks"),
        (Checkpointer, "save", "saving"),
        (Checkpointer, "join", "saving"),
        (Report, "describe", "pictures"),
        (Report, "after_validation", "pictures"),
        (Report, "start", "pictures"),
        (Report, "finish", "pictures"),
        (train, "train_until_validation", "training"),
        (train, "validate", "validation"),
    ):
        phases.wrap(owner, name, phase)
    phases.wrap(train, "train_step", "training", FIRST_STEP)
    count_flops(phases)
    time_generation(phases)
    names = ("train_input", "valid_input", "batch_size", "max_len", "lr", "seed", "max_steps")
    arguments = [f"--{name}={spec[name]}" for name in names if spec[name]]
    if spec["max_new_tokens"]:
        arguments.append(f"--max_new_tokens={spec['max_new_tokens']}")
    arguments += ["--epochs=1", f"--model_id={spec['base']}", f"--outdir={spec['outdir']}"]
    train.main(arguments)


def count_flops(phases: Phases) -> None:
    """Record the FLOPs of the training steps, or 0 if flops.py has no formula for the model."""
    from training.throughput import Throughput

    since_restart = Throughput.since_restart

    def noting(self: Any, group: Any) -> dict[str, float]:
        phases.marks["flops"] = self._since_restart.flops
        return since_restart(self, group)

    Throughput.since_restart = noting


def time_generation(phases: Phases) -> None:
    from transformers import GenerationMixin

    phases.wrap(GenerationMixin, "generate", "generation")


def score(spec: dict, peer: Any, predictions: Any, labels: Any) -> dict[str, float]:
    """Compute the main scores of the template, with sklearn and sacrebleu."""
    if spec["task"] == "classification":
        from sklearn.metrics import accuracy_score, f1_score

        chosen = predictions.argmax(-1)
        return {
            "accuracy": accuracy_score(labels, chosen),
            "f1": f1_score(labels, chosen, average="macro"),
        }
    import numpy as np
    import sacrebleu

    pad = peer.tokenizer.pad_token_id
    texts, references = (
        peer.tokenizer.batch_decode(np.where(ids == -100, pad, ids), skip_special_tokens=True)
        for ids in (predictions, labels)
    )
    return {
        "bleu": sacrebleu.corpus_bleu(texts, [references], force=True).score,
        "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
    }


def tuned_trainer(spec: dict, phases: Phases) -> None:
    """Run transformers.Trainer with fused AdamW, the sampling in `spec`, and a loader process."""
    import transformers as hf
    from stock import Stock

    phases.enter("other")
    with phases.of("reading"):
        peer = Stock(spec)
        data = {name: peer.data(spec[f"{name}_input"]) for name in ("train", "valid")}
    with phases.of("building"):
        model = peer.model()
    generates = spec["task"] == "seq2seq"
    arguments_class, trainer_class, options = hf.TrainingArguments, hf.Trainer, {}
    if generates:
        arguments_class, trainer_class = hf.Seq2SeqTrainingArguments, hf.Seq2SeqTrainer
        options = {
            "predict_with_generate": True,
            "generation_max_length": spec["max_new_tokens"] + 1,
            "generation_num_beams": 1,
        }
    arguments = arguments_class(
        output_dir=spec["outdir"],
        per_device_train_batch_size=spec["batch_size"],
        per_device_eval_batch_size=spec["batch_size"],
        num_train_epochs=1,
        max_steps=spec["max_steps"] or -1,
        learning_rate=spec["lr"],
        seed=spec["seed"],
        save_strategy="epoch",
        eval_strategy="epoch",  # at the end of the epoch, or after `max_steps`
        load_best_model_at_end=True,
        prediction_loss_only=spec["task"] == "causal_lm",
        report_to="none",
        optim="adamw_torch_fused",
        train_sampling_strategy=spec["sampling"],
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        **options,
    )
    scores = None
    if spec["task"] != "causal_lm":

        def scores(prediction: Any) -> dict[str, float]:
            return score(spec, peer, prediction.predictions, prediction.label_ids)

    trainer = trainer_class(
        model,
        arguments,
        train_dataset=data["train"],
        eval_dataset=data["valid"],
        data_collator=peer.collator(model),
        processing_class=peer.tokenizer,
        compute_metrics=scores,
    )
    phases.wrap(trainer, "training_step", "training", FIRST_STEP)
    phases.wrap(trainer, "evaluate", "validation")
    phases.wrap(trainer, "_save_checkpoint", "saving")
    phases.wrap(trainer, "_load_best_model", "saving")
    time_generation(phases)
    with phases.of("training"):
        trainer.train()
    with phases.of("saving"):
        trainer.save_model(f"{spec['outdir']}/best")


def accelerate_example(spec: dict, phases: Phases) -> None:
    """Run the training loop of Accelerate's examples/complete_nlp_example.py."""
    import torch
    from accelerate import Accelerator
    from stock import Stock
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    phases.enter("other")
    accelerator = Accelerator()
    with phases.of("reading"):
        peer = Stock(spec)
        data = {name: peer.data(spec[f"{name}_input"]) for name in ("train", "valid")}
    with phases.of("building"):
        model = peer.model().to(accelerator.device)
    options = {"collate_fn": peer.collator(model), "batch_size": spec["batch_size"]}
    loader = DataLoader(data["train"], shuffle=True, **options)
    valid_loader = DataLoader(data["valid"], **options)
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=spec["lr"])
    schedule = get_linear_schedule_with_warmup(
        optimizer=optimizer, num_warmup_steps=0, num_training_steps=len(loader)
    )
    model, optimizer, loader, valid_loader, schedule = accelerator.prepare(
        model, optimizer, loader, valid_loader, schedule
    )
    time_generation(phases)
    with phases.of("training"):
        model.train()
        for number, batch in enumerate(loader):
            if spec["max_steps"] and number == spec["max_steps"]:
                break
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            phases.marks.setdefault(FIRST_STEP, time.time() - phases.start)
    with phases.of("validation"), torch.no_grad():
        model.eval()
        evaluate_by_hand(spec, peer, accelerator, model, valid_loader)
    with phases.of("saving"):
        accelerator.save_state(f"{spec['outdir']}/state")
        bare = accelerator.unwrap_model(model)
        bare.save_pretrained(f"{spec['outdir']}/best")
        peer.tokenizer.save_pretrained(f"{spec['outdir']}/best")


def evaluate_by_hand(spec: dict, peer: Any, accelerator: Any, model: Any, loader: Any) -> None:
    """Evaluate in batches, as transformers' `no_trainer` examples do; print loss and scores."""
    import torch

    losses, predictions, labels = [], [], []
    for batch in loader:
        outputs = model(**batch)
        losses.append(accelerator.gather_for_metrics(outputs.loss.repeat(len(batch["labels"]))))
        if spec["task"] == "causal_lm":
            continue
        found = outputs.logits
        if spec["task"] == "seq2seq":
            found = accelerator.unwrap_model(model).generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=spec["max_new_tokens"],
            )
            found = accelerator.pad_across_processes(found, dim=1, pad_index=-100)
        predictions += accelerator.gather_for_metrics(found).tolist()
        labels += accelerator.gather_for_metrics(batch["labels"]).tolist()
    print("loss", torch.cat(losses).mean().item(), file=sys.stderr)
    if predictions:
        print(score(spec, peer, padded(predictions), padded(labels)), file=sys.stderr)


def padded(rows: list) -> Any:
    """Pad rows of different lengths with -100, and return them as one array."""
    import numpy as np

    if not isinstance(rows[0], list):
        return np.array(rows)
    size = max(map(len, rows))
    return np.array([row + [-100] * (size - len(row)) for row in rows])


SYSTEMS: dict[str, Callable[[dict, Phases], None]] = {
    "hf-template": ours,
    "Trainer, tuned": tuned_trainer,
    "Accelerate's example": accelerate_example,
}


def main() -> None:
    system, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    phases = Phases(BEGAN, "imports")
    SYSTEMS[system](spec, phases)
    print(json.dumps(phases.report()))


if __name__ == "__main__":
    main()
