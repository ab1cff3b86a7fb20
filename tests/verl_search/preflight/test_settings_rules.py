"""Settings that are out of range or do not fit together; the numbers of each message are worked out beside it."""

import pytest

from flashrag.preflight import Severity, examine
from tests.verl_search.composing import composed
from verl_search.preflight.settings_rules import CHOICES, ESTIMATORS, GROUP_METRICS, LOGGERS, SETTINGS_RULES

ACTOR, ROLLOUT, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))
LOSS, CORRECTION, GAE = f"{ACTOR}.policy_loss", "algorithm.rollout_correction", "algorithm.adv_estimator=gae"
LLDS = [f"{LOSS}.loss_mode=llds", f"{ACTOR}.ppo_mini_batch_size=128"]  # two updates in a step
STATIC = [f"{ACTOR}.use_dynamic_bsz=false", f"{ACTOR}.ppo_micro_batch_size_per_gpu=4"]  # micro-batches of 4 episodes


@pytest.mark.parametrize("name", ["research", "cpu", "demo"])
def test_the_shipped_configs_have_no_finding(name: str) -> None:
    assert examine(SETTINGS_RULES, composed(name)) == []


def findings(*overrides: str, config: str = "research") -> list[tuple[str, Severity, str]]:
    found = examine(SETTINGS_RULES, composed(config, *overrides))
    return [(finding.rule, finding.severity, finding.message) for finding in found]


# The published config: 8 processes, engines of 2 GPUs, 256 questions x 5 answers in a step, in one update.
@pytest.mark.parametrize(
    ("rule", "overrides", "message"),
    [
        ("counts", ["data.train_batch_size=0"], "data.train_batch_size=0: expected a whole number from 1 on"),
        ("counts", ["trainer.nnodes=null"], "trainer.nnodes=None: expected a whole number from 1 on"),
        ("counts", ["trainer.total_epochs=1.5"], "trainer.total_epochs=1.5: expected a whole number from 1 on"),
        ("counts", [f"{ROLLOUT}.max_model_len=-1"], "max_model_len=-1: expected a whole number from 1 on, or null"),
        (
            "counts",
            ["trainer.total_training_steps=0"],
            "total_training_steps=0: expected a whole number from 1 on, or null",
        ),
        ("counts", ["data.dataloader_num_workers=-1"], "dataloader_num_workers=-1: expected a whole number from 0 on"),
        ("ranges", [f"{ROLLOUT}.temperature=0"], "temperature=0: expected a number above 0: GRPO compares samples"),
        ("ranges", [f"{ROLLOUT}.gpu_memory_utilization=1.2"], "1.2: expected a share of the memory above 0, up to 1"),
        ("ranges", [f"{ROLLOUT}.gpu_memory_utilization=0"], "0: expected a share of the memory above 0, up to 1"),
        ("ranges", [f"{ROLLOUT}.top_p=0"], "top_p=0: expected a number above 0, up to 1"),
        ("ranges", [f"{ROLLOUT}.top_k=-2"], "top_k=-2: expected a whole number from 1 on, or -1 for no limit"),
        (
            "ranges",
            [f"{ROLLOUT}.val_kwargs.temperature=-1"],
            "temperature=-1: expected a number from 0 on; 0 is greedy",
        ),
        ("ranges", [*LLDS, f"{LOSS}.llds_coef=-1"], "llds_coef=-1: expected a number from 0 on"),
        ("ranges", ["algorithm.adv_estimator=gae", "algorithm.lam=1.5"], "lam=1.5: expected a number from 0 to 1"),
        ("ranges", ["algorithm.adv_estimator=gae", "algorithm.gamma=0"], "gamma=0: expected a number above 0, up to 1"),
        ("ranges", [f"{ACTOR}.optim.lr=0"], "lr=0: expected a number above 0"),
        ("ranges", [f"{ACTOR}.optim.lr=null"], "lr=None: expected a number above 0"),
        ("choices", [f"{ACTOR}.kl_loss_type=full"], "kl_loss_type=full: expected one of kl, k1, abs, mse, k2,"),
        ("choices", [f"{ACTOR}.policy_loss.loss_mode=ppo"], "loss_mode=ppo: expected one of vanilla, dppo_tv"),
        ("choices", [*LLDS, f"{LOSS}.llds_base=llds"], "llds_base=llds: expected one of vanilla, dppo_tv"),
        ("choices", ["algorithm.adv_estimator=remax"], "adv_estimator=remax: expected one of grpo, grpo_vectorized,"),
        ("choices", ["algorithm.adv_estimator=search_grpo"], "adv_estimator=search_grpo: expected one of grpo,"),
        ("choices", [f"{ACTOR}.optim.lr_scheduler_type=linear"], "linear: expected one of constant, cosine"),
        ("choices", ["algorithm.rollout_correction.rollout_is=seq"], "rollout_is=seq: expected one of None, token"),
        ("choices", ["trainer.logger=[file, mlfow]"], "mlfow is not one of console, file, tensorboard"),
        ("counts", ["trainer.save_freq=null"], "save_freq=None: expected the steps between two saves, or -1 for none"),
        ("counts", ["trainer.test_freq=2.5"], "test_freq=2.5: expected the steps between two validations"),
        ("counts", ["data.seed=abc"], "data.seed=abc: expected a whole number, or null"),
        (
            "frequencies",
            ["trainer.val_only=true", "trainer.val_before_train=false"],
            "would train; set the latter to true",
        ),
        ("groups", [f"{ROLLOUT}.n=1"], "n=1: grpo compares the answers to one question with each other, so a single"),
        (
            "groups",
            [f"{ROLLOUT}.n=1", "algorithm.adv_estimator=rloo"],
            "n=1: rloo compares the answers to one question",
        ),
        (
            "results",
            ["search.mask_results=false", f"{CORRECTION}.bypass_mode=true"],
            "bypass_mode=True needs; add algorithm.rollout_correction.bypass_mode=false",
        ),
        (
            "results",
            ["search.mask_results=false", f"{CORRECTION}.rollout_is=token"],
            "rollout_is=token needs; add algorithm.rollout_correction.rollout_is=null",
        ),
        ("stops", [f"{ROLLOUT}.name=sglang"], "set actor_rollout_ref.rollout.skip_tokenizer_init=false"),
        ("losses", [f"{LOSS}.loss_mode=dro"], "policy_loss.dro_beta=None: the loss dro needs a number above 0"),
        ("losses", [f"{LOSS}.loss_mode=bypass_mode"], "add algorithm.rollout_correction.bypass_mode=true"),
        (
            "losses",
            [f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token"],
            "leaves rollout_is and rollout_rs to the policy loss, and only one reads them",
        ),
        # With a critic: 256 x 5 episodes in its update, or 100 x 5 / 8.
        ("critic", [GAE, "critic.ppo_mini_batch_size=320"], "an update of the critic takes more questions than a step"),
        ("critic", [GAE, "critic.ppo_mini_batch_size=100"], "makes 500 episodes, which 8 training processes cannot"),
        ("critic", [GAE, "critic.ppo_infer_max_token_len_per_gpu=8703"], "no room for one episode's 8704 tokens"),
        (
            "without-effect",
            [GAE, "critic.use_dynamic_bsz=false"],
            "fills a critic's micro-batches by tokens in any case",
        ),
        ("without-effect", [GAE, "critic.enable=false"], "critic.enable=False: the estimator gae has a critic"),
        (
            "groups",
            ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"],
            "algorithm.filter_groups.metric=acc: expected one of reward, em, f1,",
        ),
        # 64 questions, but an update of 256.
        ("batches", ["data.train_batch_size=64"], "lower the latter (--ppo_mini_batch_size 64)"),
        ("batches", ["data.gen_batch_size=100"], "100 does not divide data.train_batch_size=256"),
        ("batches", ["data.train_max_samples=100"], "data.train_max_samples=100 are less than a step's questions"),
        (
            "batches",
            [f"{ACTOR}.ulysses_sequence_parallel_size=3"],
            "ulysses_sequence_parallel_size=3 does not divide the 8 GPUs",
        ),
        # 3 x 5 = 15 episodes among 8 processes; with sequences over 2 GPUs, among 8 / 2 = 4.
        (
            "batches",
            ["data.train_batch_size=3", f"{ACTOR}.ppo_mini_batch_size=3"],
            "makes 15 episodes, which 8 training processes cannot share evenly; give a multiple of 8, such as "
            "--ppo_mini_batch_size 8 --train_batch_size 8",
        ),
        # 256 x 5 = 1280 episodes among 6 processes, of which the 5 answers make no multiple: 252 = 42 x 6 questions.
        (
            "batches",
            ["trainer.n_gpus_per_node=6"],
            "1280 episodes, which 6 training processes cannot share evenly; give a multiple of 6, such as "
            "--ppo_mini_batch_size 252 --train_batch_size 252",
        ),
        # 10 processes and 5 answers: each 2 questions make 10 episodes.
        (
            "batches",
            ["trainer.n_gpus_per_node=10", "data.train_batch_size=513", f"{ACTOR}.ppo_mini_batch_size=171"],
            "give a multiple of 2, such as --ppo_mini_batch_size 170 --train_batch_size 510",
        ),
        (
            "batches",
            ["data.train_batch_size=6", f"{ACTOR}.ppo_mini_batch_size=6", f"{ACTOR}.ulysses_sequence_parallel_size=2"],
            "makes 30 episodes, which 4 training processes cannot share evenly; give a multiple of 4, such as "
            "--ppo_mini_batch_size 4 --train_batch_size 4",
        ),
        # 256 x 5 / 8 = 160 episodes for each process: 160 / 4 = 40 micro-batches, but 160 / 3 is no whole number.
        ("batches", [*STATIC, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=3"], "=3: expected a divisor of 160"),
        ("batches", STATIC, "log_prob_micro_batch_size_per_gpu=None: expected a divisor of 160, the episodes of one"),
        (
            "engines",
            [f"{ROLLOUT}.tensor_model_parallel_size=3"],
            "makes 3 GPUs for an engine, which does not divide the 8 of a node (--n_gpus_per_node), nor takes "
            "whole nodes; give actor_rollout_ref.rollout.tensor_model_parallel_size=2",
        ),
        (
            "engines",
            ["trainer.n_gpus_per_node=1"],
            "makes 2 GPUs for an engine, which does not divide the 1 of a node (--n_gpus_per_node), nor takes whole "
            "nodes; give actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        ),
        # 10 GPUs in all, which 2 divides, but one engine would have a GPU of either node.
        ("engines", ["trainer.nnodes=2", "trainer.n_gpus_per_node=5"], "divide the 5 of a node"),
        ("engines", ["trainer.nnodes=2", f"{ROLLOUT}.tensor_model_parallel_size=12"], "divide the 8 of a node"),
        (
            "counts",
            ["transfer_queue.backend.SimpleStorage.num_data_storage_units=0"],
            "num_data_storage_units=0: expected a whole number from 1 on",
        ),
        ("counts", ["ray_kwargs.ray_init.num_cpus=many"], "num_cpus=many: expected a whole number from 1 on, or null"),
        ("engines", [f"{ROLLOUT}.pipeline_model_parallel_size=2"], "verl's engines take 1 only"),
        # 512 + 8192 = 8704 tokens in an episode.
        ("lengths", [f"{ROLLOUT}.max_model_len=8703"], "max_model_len=8703 has no room for the 8704 tokens of"),
        ("lengths", [f"{ACTOR}.ppo_max_token_len_per_gpu=8000"], "ppo_max_token_len_per_gpu=8000 has no room for one"),
        ("lengths", [f"{REF}.log_prob_max_token_len_per_gpu=8000"], "no room for one episode's 8704 tokens of"),
        (
            "lengths",
            [f"{ROLLOUT}.response_length=100"],
            "response_length=100 differs from data.max_response_length=8192",
        ),
        (
            "probabilities",
            [f"{ROLLOUT}.calculate_log_probs=false", "algorithm.rollout_correction.rollout_is=token"],
            "algorithm.rollout_correction needs actor_rollout_ref.rollout.calculate_log_probs=true",
        ),
        (
            "micro-batching",
            [f"{ROLLOUT}.log_prob_use_dynamic_bsz=false"],
            "differs from actor_rollout_ref.actor.use_dynamic",
        ),
        ("determinism", [f"{ROLLOUT}.full_determinism=true"], "they are all the same; give search.seed a number"),
        ("resuming", ["trainer.resume_mode=always"], "resume_mode=always: expected auto, disable or resume_path"),
        ("resuming", ["trainer.resume_mode=resume_path"], "resume_from_path=None: expected the folder of a checkpoint"),
        ("resuming", ["trainer.resume_from_path=a/global_step_3"], "is not read; add trainer.resume_mode=resume_path"),
        (
            "question-files",
            ["data.train_files=train.pq"],
            "train.pq: verl reads only files whose name ends in .parquet",
        ),
        ("question-files", ["data.val_files=[a.parquet, b.json]"], "data.val_files=b.json: verl reads only"),
        ("prompts", ["data.apply_chat=true"], "data.apply_chat=True differs from search.apply_chat=False"),
        ("without-effect", ["trainer.use_v1=false"], "verl's former trainer knows nothing of search rollouts"),
    ],
)
def test_what_cannot_be_trained_is_an_error(rule: str, overrides: list[str], message: str) -> None:
    ((found, severity, text),) = findings(*overrides)
    assert (found, severity) == (f"settings.{rule}", Severity.ERROR)
    assert message in text


@pytest.mark.parametrize(
    ("rule", "overrides", "message"),
    [
        ("frequencies", ["trainer.save_freq=-1"], "trainer.save_freq=-1: no checkpoint is saved, not even at the end"),
        ("batches", [f"{ACTOR}.ppo_mini_batch_size=96"], "the last update of each step is filled up with padding"),
        (
            "groups",
            [f"{ROLLOUT}.val_kwargs.n=4"],
            "val_kwargs.n=4 with val_kwargs.temperature=0 asks for the same answer",
        ),
        (
            "losses",
            [f"{LOSS}.loss_mode=llds"],
            "protects what an update of the same step has changed, and a step has one",
        ),
        (
            "losses",
            [f"{LOSS}.llds_coef=0.1"],
            "llds_coef=0.1 has no effect without actor_rollout_ref.actor.policy_loss.lo",
        ),
        ("probabilities", [f"{ROLLOUT}.calculate_log_probs=false"], "the alarm likelihood_drop sees none"),
        ("lengths", ["search.max_result_tokens=8192"], "one result take all of data.max_response_length=8192"),
        ("added", ["+trainer.total_epoch=3"], "did you mean 'trainer.total_epochs'?; it has an effect only where"),
        ("metrics-file", ["trainer.logger=[console]"], "trainer.logger=['console'] lacks file"),
        (
            "search-deadline",
            ["search.search_timeout_s=60"],
            "search_timeout_s=60 ends a search before the first of its 8",
        ),
    ],
)
def test_what_is_hardly_meant_is_a_warning(rule: str, overrides: list[str], message: str) -> None:
    ((found, severity, text),) = findings(*overrides)
    assert (found, severity) == (f"settings.{rule}", Severity.WARNING)
    assert message in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.n_gpus_per_node=2"],  # one engine of 2 GPUs; 1280 episodes among 2
        ["data.train_batch_size=512"],  # two updates
        [*STATIC, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=8"],  # 160 / 4 and 160 / 8
        [f"{ROLLOUT}.max_model_len=8704"],
        [f"{ACTOR}.ppo_max_token_len_per_gpu=8704"],
        [f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{ACTOR}.ppo_max_token_len_per_gpu=4352"],  # 2 x 4352 = 8704
        ["search.max_result_tokens=8191"],
        [f"{ROLLOUT}.n=1", "trainer.val_only=true"],
        [f"{ROLLOUT}.n=1", "algorithm.adv_estimator=reinforce_plus_plus", "algorithm.gamma=0.9"],
        [f"{ROLLOUT}.n=1", GAE, "algorithm.lam=0.95", "trainer.critic_warmup=5", "critic.optim.lr=1e-6"],
        [GAE, "critic.ppo_infer_max_token_len_per_gpu=4352", "critic.fsdp.ulysses_sequence_parallel_size=2"],
        [*LLDS, f"{LOSS}.llds_coef=0.1"],
        [f"{LOSS}.loss_mode=llds", f"{ACTOR}.ppo_epochs=2", f"{LOSS}.llds_base=gspo"],
        [f"{CORRECTION}.bypass_mode=true"],
        [
            *(f"{LOSS}.loss_mode=llds", f"{LOSS}.llds_base=bypass_mode", f"{CORRECTION}.bypass_mode=true"),
            f"{CORRECTION}.loss_type=reinforce",
        ],
        [
            f"{CORRECTION}.rollout_is=sequence",
            f"{CORRECTION}.rollout_rs=token_k1",
            f"{CORRECTION}.rollout_rs_threshold=2",
        ],
        [
            *(f"{LOSS}.loss_mode=bypass_mode", f"{CORRECTION}.bypass_mode=true"),
            *(f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.loss_type=reinforce"),
        ],
        [f"{ROLLOUT}.val_kwargs.n=4", f"{ROLLOUT}.val_kwargs.temperature=1.0"],
        ["trainer.resume_mode=resume_path", "trainer.resume_from_path=run/best_checkpoint/global_step_7"],
        ["trainer.logger=file"],
        [f"{ACTOR}.kl_loss_type=k3+", f"{ACTOR}.policy_loss.loss_mode=gspo"],
        [f"+{ROLLOUT}.engine_kwargs.vllm.block_size=16", "+alarms.mine.metric=actor/lr"],
        ["search.search_timeout_s=61"],
        [f"{ROLLOUT}.full_determinism=true", "search.seed=0"],
    ],
)
def test_what_fits_has_no_finding(overrides: list[str]) -> None:
    assert findings(*overrides) == []


def test_the_choices_are_verls() -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.tracking import Tracking

    import verl_search.trainer.policy_loss  # noqa: F401  # registers LLDS

    # This trainer of verl does not hand on what the others need: greedy rewards, sums of squared probabilities, and
    # rewards by their parts.
    refused = {"remax", "optimal_token_baseline", "tir_optimal_token_baseline", "gdpo"}
    assert set(ESTIMATORS) == set(ADV_ESTIMATOR_REGISTRY) - refused
    assert set(CHOICES[f"{ACTOR}.policy_loss.loss_mode"]) == set(POLICY_LOSS_REGISTRY)
    assert set(LOGGERS) == set(Tracking.supported_backend)


def test_a_cpu_takes_one_kind_of_fsdp() -> None:
    ((rule, _, text),) = findings(f"{ACTOR}.strategy=fsdp", config="cpu")
    assert (rule, text) == ("settings.engines", f"{ACTOR}.strategy=fsdp: only fsdp2 runs on a CPU")
    assert findings(f"{ACTOR}.strategy=fsdp") == []


def test_a_critic_on_a_cpu_has_the_same_kind() -> None:
    ((rule, _, text),) = findings(GAE, "critic.strategy=fsdp", config="cpu")
    assert (rule, text) == ("settings.critic", "critic.strategy=fsdp: only fsdp2 runs on a CPU")
    assert findings(GAE, "critic.strategy=fsdp") == []


def test_a_group_is_judged_by_what_its_episodes_are_measured_by() -> None:
    from tests.verl_search.trainer.test_sampler import rollout

    assert set(GROUP_METRICS) <= {*rollout(), "reward"}
