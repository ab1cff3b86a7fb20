"""verl, Ray and vLLM warn while they are imported: they are imported here once, outside of the tests' rule that
warnings are errors."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import verl.experimental.agent_loop.agent_loop
    import verl.trainer.main_ppo
    import verl.trainer.ppo.v1.replay_buffer  # noqa: F401
    import vllm.model_executor.layers.utils  # noqa: F401
