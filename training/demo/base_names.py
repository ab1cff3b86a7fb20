"""The invented names that the demo's world and the worlds of pretraining draw from.

base_names.yaml holds the words. First and last names and band names are ordinary words, so that a sentence encoder's
tokenizer keeps them apart. Cities, countries and rivers are put together from parts; each city stem is used twice, with
different endings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml


class Names(NamedTuple):
    """The names of a world, by what they name."""

    first_names: Sequence[str]
    last_names: Sequence[str]
    cities: Sequence[str]
    bands: Sequence[str]
    countries: Sequence[str]
    rivers: Sequence[str]


_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_WORDS = {kind: tuple(text.split()) for kind, text in _TEXTS.items()}
_ENDINGS = _WORDS["city_endings"]

FIRST_NAMES, LAST_NAMES, BANDS = _WORDS["first_names"], _WORDS["last_names"], _WORDS["bands"]
CITIES = tuple(
    stem + _ENDINGS[(3 * i + shift) % len(_ENDINGS)] for i, stem in enumerate(_WORDS["city_stems"]) for shift in (0, 5)
)
COUNTRIES = tuple(stem + ending for stem in _WORDS["country_stems"] for ending in _WORDS["country_endings"])
RIVERS = tuple(stem + ending for stem in _WORDS["river_stems"] for ending in _WORDS["river_endings"])
JOBS = _WORDS["jobs"]

NAMES = Names(FIRST_NAMES, LAST_NAMES, CITIES, BANDS, COUNTRIES, RIVERS)
ALL_NAMES = FIRST_NAMES + LAST_NAMES + BANDS + CITIES + COUNTRIES + RIVERS
