"""verl's FSDP2 engines for the CPU platform; imported through `model.external_lib`, and for a critic by critic.py."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from verl_search.platform import shared_prefix
from verl_search.platform.log_probs import log_probs_and_entropies
from verl_search.platform.shared_prefix import PackedRow, has_plain_attention, neighbours
from verl_search.platform.upstream import keep_fused_head_in_root_unit, micro_batches_by, offload_without_pinning

# What upstream can compute beside log-probabilities and entropy needs the logits of every position. Its fused kernels,
# which a recipe for GPUs may ask for, give no logits at all.
NOT_PACKED = ("calculate_sum_pi_squared", "distillation_use_topk", "distillation_only", "use_fused_kernels")


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CPUEngineWithLMHead(FSDPEngineWithLMHead):
    """Upstream's engine; FSDP1 cannot run on CPU, so only the fsdp2 backend is offered.

    With the attention `sdpa` a micro-batch is packed into one row instead of padded (shared_prefix.py), and sequences
    that begin alike, as those of a group do, come into one: its limit counts the tokens that are computed. What follows
    from the logits is computed in float32: in bfloat16 a log-probability has two digits, and the loss of a batch too.
    """

    def forward_backward_batch(self, data: TensorDict, loss_function: Callable, forward_only: bool = False) -> Any:
        if not (self._packs(data) and tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)):
            return super().forward_backward_batch(data, loss_function, forward_only)
        sequences = [ids.tolist() for ids in data["input_ids"].unbind()]
        batches = neighbours(sequences, int(data["max_token_len_per_gpu"]))
        with micro_batches_by(split_alike(batches, self.get_data_parallel_group())):
            return super().forward_backward_batch(data, loss_function, forward_only)

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._packs(micro_batch):
            return super().prepare_model_inputs(micro_batch)
        row = PackedRow.of(micro_batch["input_ids"], micro_batch["loss_mask"])
        needed, place = row.predicting.unique(return_inverse=True)
        inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, "attention_mask": shared_prefix.NO_MASK}
        return {**inputs, "packed_row": row, "logits_to_keep": needed}, {"packed_row": row, "place": place}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        row = output_args.get("packed_row")
        if row is None:
            if output.logits is not None:
                output.logits = output.logits.float()
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        with_entropy = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        asked = (output_args["place"], row.labels, _temperature(micro_batch, row), with_entropy)
        found = log_probs_and_entropies(output.logits[0], *asked)
        return {name: row.jagged(values) for name, values in found.items()}

    @cached_property
    def _attention_is_plain(self) -> bool:
        config = self.model_config.hf_config
        return config._attn_implementation == shared_prefix.ATTENTION and has_plain_attention(config.to_dict())

    def _packs(self, micro_batch: TensorDict) -> bool:
        unusual = (tu.get_non_tensor_data(data=micro_batch, key=key, default=False) for key in NOT_PACKED)
        return self._attention_is_plain and not any(unusual)


@EngineRegistry.register(model_type="value_model", backend="fsdp2", device="cpu")
class CPUEngineWithValueHead(FSDPEngineWithValueHead):
    """Upstream's engine of a critic, whose micro-batches are padded."""

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        output.logits = output.logits.float()
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)


def split_alike(batches: Sequence[list[int]], group: Any) -> list[list[int]]:
    """As many micro-batches as the process of the group with the most has: each joins the others in FSDP's exchange."""
    count, found = torch.tensor(len(batches)), [*batches]
    torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=group)
    while len(found) < count:
        largest = max(found, key=len)
        found.remove(largest)
        half = len(largest) // 2
        found += [largest[:half], largest[half:]]
    return found


def _temperature(micro_batch: TensorDict, row: PackedRow) -> float | torch.Tensor:
    """The temperature, which upstream gives for the batch or for each sequence: of each label, where they differ."""
    temperature = micro_batch["temperature"]
    if not isinstance(temperature, torch.Tensor):
        return float(temperature)
    if len(values := temperature.unique()) == 1:
        return float(values)
    of_position = temperature.float().repeat_interleave(row.offsets.diff())
    return of_position[row.flat]


offload_without_pinning()
keep_fused_head_in_root_unit()
