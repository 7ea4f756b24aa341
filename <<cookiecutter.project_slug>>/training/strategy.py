"""Run a model on one device, or distribute it with DDP or FSDP2. For ZeRO, see zero.py."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from errors import RankError

from .optimizer_state import OptimizerState, gather, named_parameters, scatter


class Strategy:
    """Train on one device, with DDP or with FSDP2, as configured in Accelerate.

    Attributes:
        can_probe_memory: Whether a backward pass is possible before the first step.
    """

    can_probe_memory = True

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, may_leave_unused: bool
    ) -> tuple[nn.Module, Optimizer]:
        """Wrap or shard the model; return the model and the optimizer.

        The optimizer is returned without Accelerate's wrapper. In each step, this wrapper would
        search the disk for a package.

        Args:
            may_leave_unused: Whether a step may leave parameters without a gradient.
        """
        if may_leave_unused and self.accelerator.distributed_type != DistributedType.FSDP:
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=True
            )
        with _hidden_embeddings(model):
            prepared, wrapper = self.accelerator.prepare(model, optimizer)
        return prepared, wrapper.optimizer

    @contextmanager
    def gradient_sync(self, model: nn.Module, enabled: bool) -> Iterator[None]:
        """Reduce the gradients over the ranks in the backward pass inside the `with` block.

        If not `enabled`, each rank only accumulates its own gradients.

        Raises:
            RankError: A parameter lacks a gradient that DistributedDataParallel expected.
        """
        self.accelerator.sync_gradients = enabled
        with nullcontext() if enabled else self.accelerator.no_sync(model):
            yield
        if enabled and isinstance(model, DistributedDataParallel):
            _check_reduced(model)

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Gather all weights on the main rank; every rank has to call this method.

        A tied weight occurs once, under its first name.
        """
        bare = self.accelerator.unwrap_model(model)
        names = {name for name, _ in bare.named_parameters(remove_duplicate=False)}
        copies = names - {name for name, _ in bare.named_parameters()}
        weights = self.accelerator.get_state_dict(model) or {}  # with ZeRO-3, None on other ranks
        return {name: tensor for name, tensor in weights.items() if name not in copies}

    def trained_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Gather the trained weights on the main rank; every rank has to call this method."""
        reshard(model)
        weights = {}
        for name, parameter in named_parameters(model):
            if not parameter.requires_grad:
                continue
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if self.accelerator.is_main_process:
                weights[name] = full.detach().cpu()
        return weights

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> OptimizerState:
        """Gather the full state of the optimizer on the main rank.

        Every rank has to call this method.
        """
        return gather(model, optimizer, self.accelerator.is_main_process)

    def load_optimizer_state(
        self, model: nn.Module, optimizer: Optimizer, state: OptimizerState
    ) -> None:
        """Load a full state of the optimizer; each rank keeps its shard.

        Raises:
            KeyError: The state belongs to another model.
            RunError: The state has a different number of parameter groups.
        """
        scatter(model, optimizer, state)

    @contextmanager
    def full_parameters(self, model: nn.Module, is_needed: bool) -> Iterator[None]:
        """Gather all weights on each rank, if `is_needed`.

        The ranks can then generate independently of each other.
        """
        shards = [m for m in model.modules() if isinstance(m, FSDPModule)] if is_needed else []
        for shard in shards:
            shard.set_reshard_after_forward(False, recurse=False)
            shard.unshard()
        try:
            yield
        finally:
            for shard in shards:
                plugin = self.accelerator.state.fsdp_plugin
                reshard = plugin.reshard_after_forward and shard is not model
                shard.set_reshard_after_forward(reshard, recurse=False)
                shard.reshard()


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of FSDP2; each rank keeps its shards.

    By default, FSDP2 keeps the gathered weights of the outermost module after a forward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _check_reduced(model: DistributedDataParallel) -> None:
    """Check that the gradients of all parameters were reduced.

    torch itself reports a missing gradient only at the next forward pass. By then, the optimizer
    step has already used gradients that differ between the ranks.
    """
    try:
        model._check_reducer_finalized()
    except RuntimeError:
        parameters = model.module.named_parameters()
        names = [name for name, p in parameters if p.requires_grad and p.grad is None]
        which = names[0] if names else "a parameter"
        raise RankError(
            f"model/modeling.py: {which} gets no gradient in this step, but got one in the check "
            "at the start; expected `leaves_parameters_unused = True` in Model"
        ) from None


@contextmanager
def _hidden_embeddings(model: nn.Module) -> Iterator[None]:
    """Hide the methods by which Accelerate finds the embeddings.

    Otherwise Accelerate would shard the embeddings separately. torch rejects separate sharding if
    more than two modules share a weight, as in BART, and Accelerate fails for a model that does not
    implement these methods. With the methods hidden, the embeddings are sharded together with the
    rest of the model.
    """
    model.get_input_embeddings = lambda: None  # type: ignore[assignment]
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.get_input_embeddings
        del model.get_output_embeddings
