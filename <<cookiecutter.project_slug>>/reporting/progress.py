"""The bar that moves while a run goes on."""

from accelerate import Accelerator
from tqdm import tqdm


def progress_bar(
    accelerator: Accelerator, epoch: int, phase: str, total: int, initial: int = 0
) -> tqdm:
    """`[Epoch 0] [TRAIN]:  12%|█▏        | 520/4387 [02:31<20:56,  3.08it/s, loss=2.56]`"""
    return tqdm(
        total=total,
        initial=initial,
        desc=f"[Epoch {epoch}] [{phase}]",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
