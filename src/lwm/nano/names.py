"""Cities, first names and made-up names for planted facts, with those that training never sees.

A model that had only met these cities would remember them. Nearly all names it meets are therefore made up, each on the
spot and never again, so that it can only copy and compare.
"""

import numpy as np

from lwm.infer.prompts import NEEDLE_CITIES

CITIES = (
    "Aarhus", "Aberdeen", "Abidjan", "Adelaide", "Albany", "Aleppo", "Alicante", "Almaty", "Antalya", "Antwerp",
    "Arequipa", "Asheville", "Astana", "Asuncion", "Augusta", "Austin", "Bamako", "Bandung", "Barranquilla", "Basel",
    "Baton Rouge", "Belfast", "Bergen", "Bilbao", "Boise", "Bologna", "Bordeaux", "Bradford", "Braga", "Bremen",
    "Brighton", "Bristol", "Brno", "Buffalo", "Bursa", "Busan", "Calgary", "Cali", "Canberra", "Cardiff", "Catania",
    "Cebu City", "Chengdu", "Cincinnati", "Cologne", "Columbus", "Cork", "Curitiba", "Cusco", "Daegu", "Dakar",
    "Dalian", "Darwin", "Davao", "Debrecen", "Detroit", "Dijon", "Dortmund", "Dresden", "Durban", "Edmonton", "El Paso",
    "Essen", "Fez", "Florence", "Fortaleza", "Fresno", "Fukuoka", "Galway", "Gdansk", "Ghent", "Glasgow", "Gothenburg",
    "Granada", "Graz", "Grenoble", "Guadalajara", "Halifax", "Hamilton", "Harbin", "Hobart", "Incheon", "Indore",
    "Innsbruck", "Irkutsk", "Izmir", "Jaipur", "Kampala", "Kansas City", "Kathmandu", "Kazan", "Kobe", "Krakow",
    "Kumasi", "Lahore", "Lausanne", "Leeds", "Leipzig", "Lille", "Linz", "Liverpool", "Ljubljana", "Luanda", "Lucknow",
    "Lusaka", "Lviv", "Malaga", "Malmo", "Maputo", "Marseille", "Medan", "Memphis", "Merida", "Monterrey", "Multan",
    "Nagoya", "Nantes", "Naples", "Nashville", "Natal", "Newcastle", "Nuremberg", "Oakland", "Odessa", "Omaha", "Oran",
    "Orlando", "Osaka", "Ottawa", "Oulu", "Palermo", "Perth", "Peshawar", "Pittsburgh", "Plovdiv", "Porto", "Puebla",
    "Pune", "Quebec City", "Raleigh", "Recife", "Reno", "Richmond", "Riga", "Rosario", "Rotterdam", "Sacramento",
    "Salvador", "Salzburg", "San Antonio", "San Jose", "Sapporo", "Seville", "Sheffield", "Sofia", "Spokane", "Split",
    "Stuttgart", "Surat", "Tampa", "Tampere", "Tangier", "Tbilisi", "Tijuana", "Toledo", "Toulouse", "Trieste",
    "Tucson", "Tulsa", "Turin", "Utrecht", "Valencia", "Varna", "Verona", "Vilnius", "Winnipeg", "Wroclaw", "Wuhan",
    "Xiamen", "Yerevan", "York", "Zagreb", "Zaragoza",
)  # fmt: skip
#: the needle test's
HELD_OUT_CITIES = NEEDLE_CITIES

PEOPLE = (
    "Adam", "Agnes", "Amir", "Anna", "Boris", "Carla", "Chen", "Clara", "Diego", "Dora", "Edith", "Emil", "Erik", "Eva",
    "Felix", "Frida", "Greta", "Hanna", "Hugo", "Igor", "Ingrid", "Jonas", "Julia", "Kenji", "Lara", "Leo", "Lucia",
    "Magda", "Marco", "Mei", "Mila", "Nadia", "Nils", "Olga", "Omar", "Oscar", "Paula", "Pedro", "Rosa", "Samir",
    "Sara", "Simon", "Tara", "Tomas", "Vera", "Viktor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
HELD_OUT_PEOPLE = ("Alice", "Bob", "Charlotte", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jack", "Laura")

WORDS = (
    "amber", "anchor", "apple", "basil", "beacon", "birch", "blossom", "bramble", "bronze", "candle", "canyon", "cedar",
    "cherry", "cinnamon", "clover", "cobalt", "comet", "copper", "coral", "cotton", "cricket", "crimson", "dahlia",
    "dolphin", "ember", "falcon", "feather", "fern", "flint", "forest", "garnet", "ginger", "glacier", "granite",
    "harbor", "hazel", "heron", "honey", "indigo", "ivory", "jasmine", "juniper", "lantern", "laurel", "lavender",
    "lemon", "lilac", "magnet", "maple", "marble", "meadow", "mint", "nutmeg", "olive", "onyx", "orchid", "otter",
    "panther", "pepper", "pine", "plum", "quartz", "raven", "river", "saffron", "sage", "scarlet", "silver", "sparrow",
    "thistle", "thunder", "topaz", "tulip", "turquoise", "velvet", "violet", "walnut", "willow", "winter", "zephyr",
)  # fmt: skip
HELD_OUT_WORDS = ("acorn", "badger", "cactus", "daisy", "emerald", "fig", "hickory", "iris", "jade", "kestrel", "lotus")

_ONSETS = ("b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
_SYLLABLES = [onset + vowel for onset in _ONSETS for vowel in "aeiou"]
_ENDINGS = ("", "n", "l", "r", "s", "th", "ville", "burg", "ford", "stad")


def invent(rng: np.random.Generator) -> str:
    """A capitalised name that no map knows, such as `Bravilo` or, one in eight times, of two words: `Stemuth Kra`."""
    words = 2 if rng.random() < 1 / 8 else 1
    return " ".join(_word(rng) for _ in range(words))


def _word(rng: np.random.Generator) -> str:
    stem = (_SYLLABLES[which] for which in rng.integers(len(_SYLLABLES), size=rng.integers(2, 4)))
    return "".join([*stem, _ENDINGS[rng.integers(len(_ENDINGS))]]).capitalize()
