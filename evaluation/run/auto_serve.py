"""`--auto_serve CHECKPOINT`: exports a training checkpoint and serves the model for one evaluation.

It replaces scripts/export_checkpoint.sh and scripts/serve_model.sh. A merged model, or a plain Hugging Face folder, is
served in place; a sharded checkpoint is merged once into a folder beside its ranks, which the next run uses again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluation.command_line import CommandLine, load_settings
from evaluation.settings import EvalSettings
from flashrag.errors import UserError
from flashrag.generator import check_model_folder, read_model_facts
from flashrag.system.engine import PUBLISHED_CONTEXT_TOKENS, ModelServerOptions
from flashrag.system.model_server import ModelServerFacts, model_server
from flashrag.system.processes import guarded_processes
from verl_search.trainer.export import export, find_checkpoint

# A placeholder for the address, which is unknown until a server is started; no request goes to it.
LATER = "http://127.0.0.1:1"
_OWN_KEYS = ("sgl_remote_url", "generator_model")
EXPORTED = "exported"


def check_auto_serve(command_line: CommandLine) -> EvalSettings:
    """The settings of the run, before anything is exported or served. Raises `UserError`."""
    for key in _OWN_KEYS:
        if key in command_line.overrides:
            raise UserError(
                f"--auto_serve and --{key} were both given; --auto_serve sets {key} itself, remove one of them"
            )
    assert command_line.auto_serve is not None, "asked for"
    model = {"generator_model": str(planned_model(command_line.auto_serve)), "sgl_remote_url": LATER}
    return load_settings(command_line._replace(overrides={**command_line.overrides, **model}))


@contextmanager
def served(checkpoint: Path, settings: EvalSettings, command_line: CommandLine) -> Iterator[EvalSettings]:
    """Serve the model of the settings that `check_auto_serve` gave; yields them with its address."""
    model = exported_model(checkpoint)
    with guarded_processes(), model_server(server_options(model, settings, command_line)) as (url, _):
        yield settings.model_copy(update={"sgl_remote_url": url})


def server_options(model: Path, settings: EvalSettings, command_line: CommandLine) -> ModelServerOptions:
    """Of a server whose context is the evaluation's, or the model's where that is shorter."""
    assert command_line.auto_serve is not None, "asked for"
    return ModelServerOptions(
        model,
        command_line.engine,
        dtype=command_line.dtype,
        context_length=min(settings.generator_max_input_len, served_tokens(command_line.auto_serve)),
        log_path=settings.save_dir / "model_server.log",
    )


def served_precision(settings: EvalSettings, command_line: CommandLine) -> str | None:
    """That of the model that `served` serves; None where another server is asked, which does not tell."""
    if command_line.auto_serve is None:
        return None
    return ModelServerFacts(server_options(Path(settings.generator_model), settings, command_line)).dtype


def is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def planned_model(path: Path) -> Path:
    """The folder that will be served. Raises `UserError` if `path` is neither a checkpoint nor a model."""
    if is_model(path):
        check_model_folder(path, "--auto_serve")
        return path
    checkpoint = find_checkpoint(path)
    return checkpoint.huggingface if checkpoint.is_merged else checkpoint.actor / EXPORTED


def source_folder(path: Path) -> Path:
    """The folder with the configuration and the tokenizer of the model that will be served, before any merging."""
    planned = planned_model(path)
    return planned if is_model(planned) else find_checkpoint(path).huggingface


def served_tokens(path: Path) -> int:
    """The longest context with which the model can be served; the published one where its files do not tell."""
    return read_model_facts(source_folder(path), "--auto_serve").positions or PUBLISHED_CONTEXT_TOKENS


def exported_model(path: Path) -> Path:
    """The folder to serve, after merging a sharded checkpoint. Raises `ExportFailed`."""
    model = planned_model(path)
    if not is_model(model):
        export(find_checkpoint(path), model)
    return model
