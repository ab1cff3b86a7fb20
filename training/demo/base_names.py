"""The invented names that the demo's world and the worlds of pretraining draw from.

First and last names and band names are ordinary words, so that a sentence encoder's tokenizer keeps them apart.
Cities, countries and rivers are put together from parts; each city stem is used twice, with different endings.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Names(NamedTuple):
    """The names of a world, by what they name."""

    first_names: Sequence[str]
    last_names: Sequence[str]
    cities: Sequence[str]
    bands: Sequence[str]
    countries: Sequence[str]
    rivers: Sequence[str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """Adam Alice Anton Bella Boris Carla Cedric Clara Daniel Diana Edgar Elena Felix Flora Gavin Greta Hector Helen
    Igor Irene Jacob Julia Kevin Laura Leon Linda Marcus Maria Nadia Nathan Olga Oscar Paula Peter Ralph Rosa Samuel
    Sofia Thomas Tina Ulrich Ursula Victor Vera Walter Wanda Xavier Yvonne"""
)

LAST_NAMES = _words(
    """Abbott Archer Baker Barlow Becker Bishop Bowen Brandt Butler Carver Castro Chapman Clayton Collins Cooper Cortez
    Crane Dalton Dawson Decker Dixon Draper Duncan Ellis Farrell Fischer Fleming Foster Fowler Franco Garrett Gibson
    Glover Graham Greene Hansen Harper Hayes Holmes Hopkins Hudson Hunter Ingram Jansen Jensen Kaplan Keller Kendall
    Klein Lambert Larsen Lawson Lloyd Logan Lopez Mason Maxwell Mercer Meyer Miller Moreno Morgan Murphy Newton Nolan
    Norris Novak Osborne Palmer Parker Patel Perkins Porter Powell Quinn Ramsey Reyes Riley Romero Russo Sanders
    Schmidt Sharma Shelby Silva Sinclair Slater Spencer Sutton Tanaka Taylor Thorne Tucker Vargas Vaughn Wagner Walsh
    Watson Weber Wright"""
)

BANDS = _words(
    """Acrobats Anchors Antlers Apricots Arrows Badgers Balloons Bandits Beacons Bicycles Blankets Blossoms Boulders
    Bridges Buffalo Buttons Cactus Candles Cannons Canyons Captains Caravan Cellars Chariots Cherries Chimneys Circus
    Clouds Cobras Comets Compass Copper Corals Coyotes Crickets Crystals Curtains Daggers Daisies Deserts Diamonds
    Dolphins Dragons Drums Eagles Echoes Embers Engines Falcons Feathers Ferries Flames Forests Foxes Galaxies Gardens
    Ghosts Giants Glaciers Gorillas Hammers Hawks Helmets Hermits Hornets Icebergs Islands Jackals Jaguars Jewels
    Jugglers Kettles Kites Knights Ladders Lanterns Lemons Leopards Lizards Lobsters Magnets Mammoths Marbles Meadows
    Meteors Mirrors Monkeys Mustangs Needles Nomads Oceans Olives Orchids Otters Owls Oysters Paddles Panthers Parrots
    Peacocks Pebbles Penguins Pilgrims Pilots Pirates Planets Prophets Puppets Pyramids Rabbits Rackets Ravens Ribbons
    Riddles Robots Rockets Sailors Saints Shadows Sharks Spiders"""
)

_CITY_STEMS = _words(
    """Amber Apple Ash Bay Bear Birch Black Blue Bramble Brook Cedar Chester Clay Cliff Corn Crow Deer Eagle East Elm
    Ever Fair Fern Fish Flint Frost Glen Gold Grand Green Hazel Honey Horse Iron Ivy Kings Lake Lamb Lime Lion Long
    Maple Marsh Mill Moon Moss North Oak Old Orange Oxen Pearl Pine Plum Queens Red Rich River Rock Rose Salt Sand
    Silver Snow South Spring Star Stone Storm Summer Swan Thunder Timber Velvet Water West White Wild Wind Wolf"""
)
_CITY_ENDINGS = ("field", "ford", "ton", "wood", "port", "bury", "dale", "haven", "mouth", "ville")
CITIES = tuple(
    stem + _CITY_ENDINGS[(3 * i + shift) % len(_CITY_ENDINGS)] for i, stem in enumerate(_CITY_STEMS) for shift in (0, 5)
)

_COUNTRY_STEMS = _words(
    """Ald Arv Bel Bor Cal Cor Dal Dor Est Fal Gar Gol Hal Jur Kal Kor Lav Lor Mal Mor Nar Nor Or Par Pol Quel Rav Ros
    Sar Sel Tal Tor Ul Val Var Ver Wal Yar Zan Zel"""
)
COUNTRIES = tuple(stem + ending for stem in _COUNTRY_STEMS for ending in ("onia", "istan"))

_RIVER_STEMS = _words(
    """Ab Am Bar Bur Dan Del Don Em Fen Gam Gan Hon Jor Kem Lam Lin Mar Men Mur Nem Ob Pan Pem Ram Rim Sab Sam Sin Tam
    Tan Tem Tib Ur Vam Vol Wen Yam Yen Zam Zim"""
)
RIVERS = tuple(stem + ending for stem in _RIVER_STEMS for ending in ("ara", "ello"))

JOBS = ("painter", "poet", "engineer", "singer", "actor", "farmer", "lawyer", "doctor")

NAMES = Names(FIRST_NAMES, LAST_NAMES, CITIES, BANDS, COUNTRIES, RIVERS)
ALL_NAMES = FIRST_NAMES + LAST_NAMES + BANDS + CITIES + COUNTRIES + RIVERS
