"""Fine-tune on transcripts by upstream's SFT trainer: torchrun -m verl_search.warm_start --config-name warm_start_cpu …

One process for each device. The command for users is `training/warm_start.sh`, which makes the transcripts first.
"""

import hydra
from omegaconf import DictConfig

from verl_search.composition import register_with_hydra, settle
from verl_search.platform.kernels import complete_kernels


@hydra.main(config_path="config", config_name="warm_start", version_base=None)
def train(config: DictConfig) -> None:
    settle(config)
    from verl_search.platform import upstream

    upstream.check_plugin_loaded()
    upstream.check_contract(upstream.required_names("warm_start"))
    complete_kernels(config.model)
    from verl.trainer.sft_trainer import run_sft

    run_sft(config)


if __name__ == "__main__":
    register_with_hydra()
    train()
