"""Train once with one system; measure its speed, its memory and the time to its first step.

python one_run.py SYSTEM SPEC.json      (run by speed.py, scale.py and lora.py; prints JSON)
"""

import json
import os
import resource
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

BEGAN = float(os.environ.get("BENCH_BEGAN", time.time()))  # when the command was started


class Memory(threading.Thread):
    """Measures the peak memory of this process, without memory-mapped files.

    Pages of mapped files are excluded, because the system can reclaim them at any time.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0  # in bytes
        self.start()

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.02)


class Meter:
    """Records the start time and the number of tokens of each forward pass in training.

    Args:
        has_targets: Whether labels are the tokens of target texts; if so, they are also counted.
    """

    def __init__(self, has_targets: bool) -> None:
        self.has_targets = has_targets
        self.times: list[float] = []
        self.tokens: list[tuple[int, int]] = []
        self.memory = Memory()
        self.is_attached = False

    def attach(self, model: Any) -> Any:
        self.is_attached = True
        model.register_forward_pre_hook(self._note, with_kwargs=True)
        return model

    def _note(self, module: Any, args: tuple, kwargs: dict) -> None:
        if not module.training:
            return
        ids, mask, labels = (kwargs.get(k) for k in ("input_ids", "attention_mask", "labels"))
        real = int(mask.sum()) if mask is not None else ids.numel()
        computed = ids.numel()
        if self.has_targets:
            real += int((labels != -100).sum())
            computed += labels.numel()
        if ids.is_cuda:
            import torch

            torch.cuda.synchronize()
        self.times.append(time.time())
        self.tokens.append((real, computed))

    def report(self, warmup: int) -> dict[str, float]:
        """Return the measurements.

        Rates and numbers of tokens cover the forward passes after the warm-up, except the last one.
        The first step ends when the second forward pass starts.
        """
        import torch

        real, computed = (sum(part) for part in zip(*self.tokens[warmup:-1], strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        return {
            "tokens_per_second": real / (self.times[-1] - self.times[warmup]),
            "computed_tokens": computed,
            "padding": 1 - real / computed,
            "peak_bytes": peak,
            "own_bytes": self.memory.peak,
            "first_step_seconds": self.times[1] - BEGAN,
            "passes": len(self.times),
        }


def ours(spec: dict, meter: Meter) -> None:
    """Run the train.py of the rendered project."""
    sys.path.insert(0, spec["project"])
    import train

    train_step = train.train_step

    def measured(run: Any, step: Any) -> Any:
        if not meter.is_attached:  # exclude the checks before the first step
            meter.attach(run.accelerator.unwrap_model(run.model, keep_torch_compile=False))
        return train_step(run, step)

    train.train_step = measured
    train.main(our_arguments(spec))


def our_arguments(spec: dict) -> list[str]:
    names = ("train_input", "valid_input", "batch_size", "max_len", "lr", "seed", "max_steps")
    arguments = [f"--{name}={spec[name]}" for name in names]
    return [*arguments, f"--model_id={spec['base']}", f"--outdir={spec['outdir']}", *spec["flags"]]


def limit(spec: dict, meter: Meter) -> None:
    """Run a bare loop (forward, backward, fused optimizer step) on the batches of `ours`.

    The batches are prepared before the loop.
    """
    sys.path.insert(0, spec["project"])
    import torch
    from accelerate import Accelerator
    from accelerate.utils import send_to_device

    from training.arguments import read_config
    from training.batches import Batches
    from training.contract import Task, model_inputs
    from training.loading import build_config, build_model, load_tokenizer, set_up

    task = Task()
    config, _ = read_config(task, our_arguments(spec))
    tokenizer = load_tokenizer(config.model_id)
    examples = task.read(config.train_input, tokenizer, config.max_len, **config.data_options)
    accelerator = Accelerator()
    batches = Batches(examples, accelerator, config.batch_size, seed=config.seed)
    arguments = {**examples.schema, **config.model_options}
    made = build_config(task, config.model_id, arguments, tokenizer)
    model, _ = build_model(task.model_class, made, config.model_id)
    model.to(accelerator.device)
    set_up(model, config)
    ready = []
    for step in islice(batches.steps(), config.max_steps):
        for micro in step.micro_batches:
            inputs = send_to_device(model_inputs(micro.batch), accelerator.device)
            ready.append((inputs, step.num_items, micro.is_last))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    meter.attach(model).train()
    for inputs, num_items, is_last in ready:
        model(**inputs, num_items_in_batch=num_items).loss.backward()
        if is_last:
            optimizer.step()
            optimizer.zero_grad()


def trainer(spec: dict, meter: Meter, **options: Any) -> None:
    """Run transformers.Trainer without saves; `options` override its other arguments."""
    import transformers as hf
    from stock import Stock

    peer = Stock(spec)
    data = peer.data(spec["train_input"])
    model = peer.model()
    arguments = hf.TrainingArguments(
        output_dir=spec["outdir"],
        per_device_train_batch_size=spec["batch_size"],
        max_steps=spec["max_steps"],
        learning_rate=spec["lr"],
        seed=spec["seed"],
        save_strategy="no",
        report_to="none",
        **options,
    )
    meter.attach(model)
    hf.Trainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=peer.collator(model),
        processing_class=peer.tokenizer,
    ).train()


def tuned_trainer(spec: dict, meter: Meter) -> None:
    """Run transformers.Trainer with fused AdamW, the sampling in `spec`, and loader processes."""
    trainer(
        spec,
        meter,
        optim="adamw_torch_fused",
        train_sampling_strategy=spec["sampling"],
        dataloader_num_workers=spec["workers"],
        dataloader_persistent_workers=spec["workers"] > 0,
    )


def accelerate_example(spec: dict, meter: Meter) -> None:
    """Run the training loop of Accelerate's examples/complete_nlp_example.py."""
    import torch
    from accelerate import Accelerator
    from stock import Stock
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    accelerator = Accelerator()
    peer = Stock(spec)
    data = peer.data(spec["train_input"])
    model = peer.model().to(accelerator.device)
    collate = peer.collator(model)
    loader = DataLoader(data, shuffle=True, collate_fn=collate, batch_size=spec["batch_size"])
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=spec["lr"])
    schedule = get_linear_schedule_with_warmup(
        optimizer=optimizer, num_warmup_steps=0, num_training_steps=len(loader)
    )
    meter.attach(model)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()
    for step, batch in enumerate(loader):
        if step == spec["max_steps"]:
            break
        batch.to(accelerator.device) if hasattr(batch, "to") else None
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


SYSTEMS = {
    "hf-template": ours,
    "Trainer": trainer,
    "Trainer, tuned": tuned_trainer,
    "Accelerate's example": accelerate_example,
    "limit": limit,
}


def main() -> None:
    system, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    meter = Meter(spec["has_targets"])
    SYSTEMS[system](spec, meter)
    print(json.dumps(meter.report(spec["warmup"])))


if __name__ == "__main__":
    main()
