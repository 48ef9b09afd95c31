"""The world of the stories: its people, its things, how stories begin and end, and the list of their plots.

The plots are in plots_of_people.py and plots_of_tasks.py. make_corpus.py explains the notation.
"""

from plots_of_people import CONTEST, LESSON, MISTAKE, PROMISE, SECRET, STRANGER, TRADE, VISIT
from plots_of_tasks import BRIDGE, GARDEN, JOURNEY, LIGHT, LOST, REPAIR, STORM

NAMES = {
    "he him his himself": [
        "Aldo", "Bruno", "Cedric", "Davi", "Emil", "Felix", "Gregor", "Hugo", "Ivo", "Jonas", "Karel", "Leo", "Milo",
        "Nico", "Oskar", "Pavel", "Rufus", "Stefan", "Timo", "Viktor", "Wim", "Yannis",
    ],
    "she her her herself": [
        "Ada", "Bettina", "Clara", "Dora", "Elsa", "Fatima", "Greta", "Hanna", "Ines", "Judith", "Kira", "Lena", "Mara",
        "Nadia", "Olga", "Petra", "Rosa", "Silvia", "Tessa", "Vera", "Wanda", "Zora",
    ],
}  # fmt: skip

ELDERS = [
    ("old Matthias", "he him his himself"),
    ("old Tobias", "he him his himself"),
    ("Uncle Anton", "he him his himself"),
    ("Grandfather Emeric", "he him his himself"),
    ("the old miller", "he him his himself"),
    ("the ferryman", "he him his himself"),
    ("Grandmother Sophie", "she her her herself"),
    ("Aunt Miriam", "she her her herself"),
    ("old Hedwig", "she her her herself"),
    ("the old teacher", "she her her herself"),
    ("the baker's wife", "she her her herself"),
    ("the doctor", "she her her herself"),
]

THINGS = {
    "town": ["Alderbay", "Brackenford", "Coldwell", "Dunmere", "Eastholm", "Fernhollow", "Graywater", "Harrowgate",
             "Larkhill", "Marshend", "Oakridge", "Stonebridge", "Thornby", "Willowdale"],
    "home": ["cottage", "farmhouse", "small house", "house by the river", "house at the edge of the wood",
             "room above the bakery"],
    "spot": ["garden", "orchard", "barn", "kitchen", "meadow behind the school", "yard", "old mill"],
    "wild": ["forest", "marsh", "hills", "valley", "mountains", "moor"],
    "weather": ["bright", "cold", "windy", "rainy", "foggy", "warm", "gray", "frosty"],
    "season": ["spring", "summer", "autumn", "winter"],
    "treasure": ["silver ring", "brass key", "wooden flute", "red scarf", "glass marble", "pocket watch", "blue kite",
                 "leather bag", "carved whistle", "gold coin", "music box", "painted cup"],
    "tool": ["hammer", "ladder", "rope", "shovel", "lantern", "basket", "saw", "bucket", "old map", "sharp knife"],
    "food": ["bread", "apple cake", "honey cake", "nut bread", "plum cake", "cheese pie", "pear pie", "cherry cake"],
    "animal": ["dog", "cat", "goat", "donkey", "goose", "crow", "fox", "pony", "lamb", "owl"],
    "plant": ["roses", "beans", "sunflowers", "carrots", "pumpkins", "tulips", "apple trees", "onions"],
    "machine": ["clock", "cart", "boat", "pump", "bicycle", "mill wheel", "stove", "church bell"],
    "vehicle": ["cart", "bicycle", "wagon", "sled"],
    "part": ["spring", "wheel", "chain", "screw", "gear", "handle", "bolt"],
    "craft": ["music", "carving", "painting", "weaving", "baking", "dancing", "fishing", "juggling"],
    "feast": ["harvest feast", "midsummer fair", "spring market", "winter fair", "lantern festival"],
}  # fmt: skip

OPENINGS = [
    "On {a weather} morning in {season}, {hero} woke up early in {his} {home} in {town}.",
    "In {town}, where everybody knew everybody, there lived a child called {hero}.",
    "{hero} lived in a {home} in {town}, not far from the {wild}.",
    "It was {a weather} day in {town}, and {hero} was [sitting|standing|waiting] in the {spot}.",
    "[Long ago|Many years ago|Not so long ago], in the town of {town}, {hero} lived next door to {friend}.",
    "One {weather} evening in {season}, {hero} sat by the fire with {elder}.",
    "Every {season}, {hero} went to {town} to stay with {elder}.",
    "{hero} and {friend} had been friends [since they could walk|for as long as they could remember|for three years].",
    "There was nothing that {hero} liked more than {a weather} day in {season}.",
    "The people of {town} still tell the story of {hero} and {friend}.",
]

CLOSINGS = [
    "And from that day on, {hero} and {friend} were [the best of friends|never apart for long|friends for life].",
    "That night {hero} slept [well|deeply|without a single dream], and in the morning the sun was shining.",
    '"[Tomorrow|Next time|Next year]," said {hero}, "[we will do it again|we will do it better|you tell it]."',
    "{Elder} [smiled|nodded|laughed softly] and said nothing, and that was the best answer of all.",
    "{hero} never forgot that day, and neither did {friend}.",
    "Since then, whenever it is {weather} in {town}, somebody tells this story.",
    '"[Some things|The best things|Good things] take time," said {elder}, and {hero} [knew|saw] that it was true.',
    "They walked home together, [tired but happy|singing all the way|slowly, because the evening was so beautiful].",
    "And if you go to {town} today, you can still [hear about it|see the place|ask {friend} about it].",
    "{hero} [wrote it all down in a little book|told it to everybody at school|kept it a secret for many years].",
    "In the end there was {food} for everybody, and [nobody went home hungry|even the {animal} got a piece].",
]

# The order decides which numbers choose which plot, and so it decides the text.
PLOTS = {
    "lost and found": LOST,
    "a promise": PROMISE,
    "a storm": STORM,
    "a trade": TRADE,
    "a contest": CONTEST,
    "a repair": REPAIR,
    "a journey": JOURNEY,
    "a secret": SECRET,
    "a mistake": MISTAKE,
    "a visit": VISIT,
    "a garden": GARDEN,
    "a stranger": STRANGER,
    "a lesson": LESSON,
    "a bridge": BRIDGE,
    "a light": LIGHT,
}
