"""The settings of `--optimizer`. This module does not import torch, so that `--help` is fast."""

from dataclasses import dataclass, fields
from typing import Any

from errors import RunError

from .packages import require


@dataclass(frozen=True)
class Kind:
    """An optimizer.

    Attributes:
        options: Arguments of train.py that apply to this optimizer, but not to all optimizers.
        state_tensors: Maximum number of float32 tensors in the state of a parameter, each of the
            shape of the parameter.
        package: Name of an optional package that the optimizer requires, and the extra of
            pyproject.toml that installs the package.
        for_matrices: Whether the optimizer trains only the matrices of hidden layers. AdamW then
            trains the other parameters.
        needs_full_matrices: Whether the result would be different on shards of a matrix.
        averages: Whether the optimizer averages the weights instead of decaying the learning rate.
    """

    options: tuple[str, ...]
    state_tensors: int = 2
    package: tuple[str, str] | None = None
    for_matrices: bool = False
    needs_full_matrices: bool = False
    averages: bool = False


ADAM = ("beta1", "beta2", "eps")
OPTIMIZERS = {
    "adamw": Kind(ADAM),
    "adamw_8bit": Kind(
        ADAM, package=("bitsandbytes", "8bit"), for_matrices=True, needs_full_matrices=True
    ),
    "muon": Kind((*ADAM, "momentum"), for_matrices=True, needs_full_matrices=True),
    "schedule_free": Kind(ADAM, package=("schedulefree", "schedulefree"), averages=True),
    "sgd": Kind(("momentum",), state_tensors=1),
}


@dataclass(frozen=True)
class OptimizerOptions:
    """Arguments of train.py. Each field has the name of its argument.

    None means the default of the optimizer.
    """

    optimizer: str = "adamw"
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    layer_decay: float = 1.0
    head_lr_factor: float = 1.0

    @property
    def adam(self) -> dict[str, Any]:
        """Keyword arguments `betas` and `eps` of AdamW."""
        beta1 = 0.9 if self.beta1 is None else self.beta1
        beta2 = 0.999 if self.beta2 is None else self.beta2
        return {"betas": (beta1, beta2), "eps": 1e-8 if self.eps is None else self.eps}

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from the default."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in values.items() if v != getattr(OptimizerOptions, k)}

    def check(self) -> None:
        """Check that each value is valid for the optimizer.

        Raises:
            RunError: A value is out of range, an argument does not apply to the optimizer, or the
                package of the optimizer is missing.
        """
        kind = OPTIMIZERS[self.optimizer]
        for name in ("beta1", "beta2", "eps", "momentum"):
            value = getattr(self, name)
            if value is not None and name not in kind.options:
                raise RunError(
                    f"--{name} {value}: --optimizer {self.optimizer} has no such setting; expected "
                    f"one of {', '.join(kind.options)}"
                )
            if value is not None and name != "eps" and value >= 1:
                raise RunError(f"--{name} {value}: expected less than 1")
        for name in ("layer_decay", "head_lr_factor"):
            if getattr(self, name) == 0:
                raise RunError(f"--{name} 0: expected a positive number")
        if kind.package is not None:
            require(*kind.package, f"--optimizer {self.optimizer}")

    def check_sharding(self) -> None:
        """Check that the optimizer can be used with FSDP2.

        Raises:
            RunError: The optimizer needs full matrices.
        """
        if OPTIMIZERS[self.optimizer].needs_full_matrices:
            raise RunError(
                f"--optimizer {self.optimizer}: needs full matrices, but FSDP2 shards them; "
                "expected DDP or another optimizer"
            )
