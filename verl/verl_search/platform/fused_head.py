"""verl's fused kernels for models whose last layer has weights of its own; imported through `model.external_lib`."""

from verl_search.platform.upstream import keep_fused_head_in_root_unit

keep_fused_head_in_root_unit()
