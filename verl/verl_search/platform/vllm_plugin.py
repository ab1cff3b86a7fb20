"""The `vllm.general_plugins` entry point: vLLM calls `register` in each of its processes before it loads a model."""


def register() -> None:
    """On CPU, keep the engine's weights in the layout in which the trainer syncs them."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from verl_search.platform.upstream import keep_plain_vllm_weights

        keep_plain_vllm_weights()
