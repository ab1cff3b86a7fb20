"""verl's FSDP2 language-model engine for the CPU platform; imported through `model.external_lib`."""

from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_search.platform.upstream import offload_without_pinning


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CPUEngineWithLMHead(FSDPEngineWithLMHead):
    """Upstream's engine unchanged; FSDP1 cannot run on CPU, so only the fsdp2 backend is offered."""


offload_without_pinning()
