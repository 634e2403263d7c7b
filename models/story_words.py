"""Word lists of the story generator: names, kinds of characters, things and places."""

from __future__ import annotations

import re
from typing import NamedTuple


def _bars(text: str) -> list[str]:
    return text.split("|")


def _spaces(text: str) -> list[str]:
    return text.split()


SHE_NAMES = _spaces(
    "Mila Nora Tilly Hazel Wren Ivy Poppy Juno Ada Bella Clara Daisy Edith Flora Greta Hana Iris "
    "Josie Kira Lena Maya Nell Olive Pearl Quilla Rosa Sasha Tess Una Vera Willa Yara Zoe Amber "
    "Bess Cora Dot Elsie Fern Ginny Heidi Ingrid Joan Kitty Lottie Marta Nina Opal Petra Ruby "
    "Stella Thea Ursa Violet Wanda Anya Bonnie Celia Dora Emmy Freya Gwen Holly Isla Luna Mabel "
    "Maple Mina Molly Penny Pia Rhea Sylvie Tansy Trudy Winnie Zara Leila Amina Sofia Noor Mei"
)

HE_NAMES = _spaces(
    "Pip Bram Oscar Finn Toby Jasper Leo Milo Hugo Arlo Basil Caleb Digby Elliot Felix Gus Henry "
    "Igor Jonas Kit Lars Max Ned Otto Perry Quentin Rufus Sam Theo Ulric Victor Walter Xander Yuri "
    "Zeke Alfie Benno Cosmo Dexter Ezra Fritz George Harvey Ivan Jack Karl Louis Monty Nico Omar "
    "Pablo Ralph Silas Tom Umar Vince Wilbur Andre Boris Clive Duncan Emil Fergus Gilbert Hector "
    "Ivor Jem Kofi Linus Magnus Nils Olaf Percy Robin Stanley Tariq Ravi Mateo Hiro Amir Chen"
)


class Kind(NamedTuple):
    """What a character is: its noun, hands, home, skill and grammatical gender."""

    noun: str
    hand: str
    home: str
    skill: str
    gender: str = "any"


_ANIMALS = """
fox|paw|a den under the roots of an oak|sniff
dog|paw|a kennel beside the barn|sniff
hound|paw|a basket by the kitchen stove|sniff
wolf|paw|a cave behind the waterfall|sniff
pig|trotter|a warm sty full of straw|sniff
hedgehog|paw|a nest of dry leaves|sniff
rabbit|paw|a burrow under the hill|dig
mole|paw|a tunnel under the meadow|dig
badger|paw|a sett in the hillside|dig
hare|paw|a hollow in the long grass|dig
otter|paw|a den in the river bank|swim
beaver|paw|a lodge of sticks and mud|swim
duck|wing|a nest among the reeds|swim
goose|wing|a nest on the river island|swim
frog|foot|a mossy stone beside the pond|swim
seal|flipper|a flat rock by the sea|swim
turtle|flipper|a quiet pool under the willows|swim
owl|wing|a hollow in an old elm|fly
crow|wing|a nest in the church tower|fly
sparrow|wing|a nest under the roof|fly
robin|wing|a nest in the hedge|fly
swallow|wing|a nest of clay in the barn|fly
heron|wing|a tall nest beside the lake|fly
gull|wing|a ledge on the sea cliff|fly
dragon|claw|a cave high on the mountain|fly
squirrel|paw|a nest high in a pine|climb
cat|paw|an attic above the bakery|climb
kitten|paw|a basket under the stairs|climb
monkey|hand|a house of branches in a fig tree|climb
mouse|paw|a hole in the wall of the mill|climb
goat|hoof|a shed on the steep hill|climb
lizard|foot|a crack in the garden wall|climb
bear|paw|a cave at the edge of the wood|strong
horse|hoof|a stable behind the inn|strong
donkey|hoof|a little stable with a blue door|strong
ox|hoof|a barn on the hill farm|strong
moose|hoof|a clearing among the birches|strong
pony|hoof|a paddock beside the lane|strong
cow|hoof|a red barn with a crooked roof|strong|she
lion|paw|a cave in the red rocks|strong
tiger|paw|a thicket beside the river|strong
elephant|foot|a clearing under the great trees|strong
panda|paw|a quiet place among the bamboo|strong
camel|hoof|a tent on the edge of the desert|strong
penguin|flipper|a nest of stones on the shore|swim
dolphin|flipper|a calm blue bay|swim
parrot|wing|a nest in a palm tree|fly
eagle|wing|a nest on a high rock|fly
bat|wing|a dark corner of the church tower|fly
raccoon|paw|a hollow tree behind the school|climb
koala|paw|a fork in a tall tree|climb
sheep|hoof|a fold on the green hill|none
hen|wing|a henhouse behind the farm|none|she
kangaroo|paw|a shady spot under a gum tree|none
"""

_PEOPLE = """
girl|hand|a small house with a green door|climb|she
boy|hand|a small house with a red roof|climb|he
chimney sweep|hand|a tall narrow house|climb|any
shepherd|hand|a stone hut on the hill|climb|any
sailor|hand|a cottage by the harbor|swim|any
fisher|hand|a cottage on the shore|swim|any
ferry keeper|hand|a wooden house on the river|swim|any
gardener|hand|a cottage full of flowers|dig|any
farmer|hand|a farmhouse among the fields|dig|any
potter|hand|a workshop beside the clay pit|dig|any
blacksmith|hand|a house behind the forge|strong|any
woodcutter|hand|a log cabin in the wood|strong|any
miller|hand|a windmill on the hill|strong|any
giant|hand|a huge house behind the mountain|strong|any
baker|hand|a warm room above the bakery|none|any
tailor|hand|a room above the shop|none|any
carpenter|hand|a workshop that smelled of wood|none|any
clockmaker|hand|a shop full of ticking clocks|none|any
painter|hand|an attic with a wide window|none|any
beekeeper|hand|a cottage among the hives|none|any
lighthouse keeper|hand|the old lighthouse|none|any
teacher|hand|a room beside the school|none|any
princess|hand|a tower of the old castle|none|she
prince|hand|a tower of the old castle|none|he
queen|hand|a castle with seven gardens|none|she
king|hand|a castle with seven gardens|none|he
old woman|hand|a cottage with a crooked chimney|none|she
old man|hand|a cottage with a crooked gate|none|he
robot|hand|a shed full of tools and springs|none|any
knight|hand|a room above the castle gate|strong|any
pirate|hand|a little ship with patched sails|swim|any
wizard|hand|a tower full of old books|none|he
witch|hand|a hut at the end of the lane|none|she
doctor|hand|a white house beside the square|none|any
cook|hand|a room behind the inn kitchen|none|any
"""


def _kinds(table: str) -> tuple[Kind, ...]:
    return tuple(Kind(*line.split("|")) for line in table.strip().splitlines())


ANIMALS = _kinds(_ANIMALS)
PEOPLE = _kinds(_PEOPLE)
CHILDREN = PEOPLE[:2]
KINDS = ANIMALS + PEOPLE

HERO_ADJ = _bars(
    "curious little|brave little|shy little|cheerful little|stubborn little|clever little|"
    "dreamy little|gentle little|lively little|thoughtful little|quiet little|busy little|"
    "small and hopeful|young and eager|kind little|merry little|careful little|bold little"
)
ADULT_ADJ = _bars("young|cheerful|kind|hard-working|quiet|lonely|good-hearted|proud|patient|poor")
HELPER_ADJ = _bars(
    "kind|wise|gentle|cheerful|clever|friendly|patient|quiet|busy|good-natured|helpful|sleepy|"
    "warm-hearted|strange|tall|lively|calm|funny"
)

LIGHT_THINGS = _bars(
    "kite|scarf|hat|ribbon|letter|map|feather|balloon|paper crown|handkerchief|cap|flag|"
    "paper bird|pinwheel|silk sash|drawing|song sheet|lace shawl|paper boat|cloak|glove|note|picture"
)
SOLID_THINGS = _bars(
    "key|bell|compass|button|spoon|ring|coin|whistle|mirror|music box|pocket watch|teapot|marble|"
    "seashell|necklace|drum|flute|ball|basket|book|cup|spyglass|toy horse|doll|spinning top|"
    "paintbrush|fiddle|jug|bracelet|clock|umbrella|bucket|box|locket|thimble|crown|brooch|medal|"
    "pot|telescope|puppet|lantern|toy boat|toy train|horn|bowl|sled|trumpet|pebble|"
    "vase|sword|boot|hammer|bottle|shield|wand|chest|pencil|toy|shoe|star"
)
COLORS = _bars("red|blue|green|yellow|purple|orange|white|little|old|pretty|bright|small|striped")
METALS = _bars("silver|golden|brass|copper|shiny|painted|polished|tiny|carved|round")
FOODS = _bars(
    "loaf of bread|apple pie|honey cake|basket of berries|pot of soup|wheel of cheese|plum tart|"
    "bag of nuts|cherry pie|gingerbread house|bowl of porridge|basket of pears|pumpkin pie|"
    "jar of honey|carrot cake|box of biscuits|basket of apples|nut cake|berry tart|lemon cake|cake|pie|"
    "sandwich|pumpkin|cookie|pancake|apple|bun"
)
BOATS = _bars("boat|rowing boat|sailing boat|raft|canoe|fishing boat|houseboat")
PLANTS = _bars(
    "sunflower|pumpkin|apple tree|rose bush|pear tree|cherry tree|plum tree|strawberry plant|"
    "melon|bean plant|tulip|lemon tree|fig tree|lily|blackberry bush|peach tree"
)
LAMPS = _bars("lantern|lamp|candle|torch")
GIFTS = _bars(
    "scarf|blanket|chair|bird house|pair of mittens|picture frame|cushion|basket|wooden spoon|"
    "toy boat|music box|necklace|quilt|flute|stool|bookshelf|kite|lantern|drum|hat"
)


class Place(NamedTuple):
    """A place with its prepositions and three things one notices there."""

    noun: str
    at: str
    to: str
    senses: tuple[str, ...]


_PLACES = """
pine wood|in|into
  The pines stood tall and smelled of resin.
  Needles lay soft on the path.
  A woodpecker knocked somewhere far away.
beach|on|down to
  The waves rolled in and out.
  Gulls cried over the wet sand.
  The sand was full of tiny shells.
meadow|in|out to
  The grass was high and full of crickets.
  Bees hummed from flower to flower.
  Poppies nodded in the breeze.
hill|on|up
  The wind was always a little stronger there.
  From the top the houses looked like toys.
  Sheep stood about like small clouds.
river bank|on|down to
  The water chattered over the stones.
  Dragonflies flashed above the reeds.
  Willow branches touched the water.
old orchard|in|to
  The branches were heavy and crooked.
  Wasps buzzed around the fallen fruit.
  Long grass grew between the trees.
harbor|in|down to
  Ropes creaked and flags fluttered.
  It smelled of salt and fish and tar.
  The boats bumped softly against the wall.
valley|in|down into
  A thin mist hung over the stream.
  Bells rang from the far farms.
  The hills stood around it like a bowl.
castle garden|in|to
  Roses climbed over the gray walls.
  A fountain splashed in the middle.
  Peacocks walked slowly across the grass.
birch forest|in|into
  The white trunks shone between the leaves.
  Small birds rustled in the ferns.
  The light fell in green spots on the moss.
marsh|in|out to
  The reeds whispered all around.
  Frogs called to one another.
  The ground was soft and wet.
mountain path|on|up
  Little stones rolled away underfoot.
  Far below, the valley lay in the sun.
  An eagle circled in the clear air.
lake shore|on|down to
  The lake was as smooth as glass.
  Small waves licked the stones.
  A row of ducks went by.
mill pond|by|to
  The mill wheel turned with a splash.
  Water lilies floated in the shade.
  Tiny fish darted under the bridge.
cornfield|in|out to
  The corn stood higher than a horse.
  A scarecrow waved its empty sleeves.
  The leaves rubbed together with a dry sound.
bamboo grove|in|into
  The tall stems clicked in the breeze.
  It was cool and green inside.
  A small stream ran between the roots.
quarry|in|to
  Every sound came back as an echo.
  Puddles shone between the gray blocks.
  Swallows darted along the walls.
heath|on|out to
  The heather was purple as far as one could see.
  Larks sang high in the air.
  A sandy track led over the rise.
"""


def _place(line: str) -> Place:
    head, *senses = line.split("\n  ")
    noun, at, to = head.split("|")
    return Place(noun, at, to, tuple(senses))


PLACES = tuple(_place(line) for line in re.split(r"\n(?! )", _PLACES.strip()))

TOWN_HEADS = _bars(
    "Willow|Brook|Stone|Amber|Fern|Maple|Otter|Hazel|Thistle|Bramble|Clover|Heron|Moss|Silver|"
    "Winter|Apple|Raven|Honey|Copper|Swallow|Alder|Rowan|Lark|Pebble|Mist"
)
TOWN_TAILS = _bars("dale|ford|mere|wick|ham|field|bridge|ton|haven|stead|bury|mouth|cliff|well")
LANDS = _bars(
    "by the sea|at the edge of a great forest|between two green hills|beside a slow river|"
    "at the foot of a mountain|on a small island|near a deep blue lake|beyond the last windmill|"
    "in a narrow valley|on the sunny side of a hill|where two roads met|close to the marsh"
)

SEASONS: dict[str, str] = {
    "spring": "a fresh spring|a mild spring|a rainy spring|a bright spring|a breezy spring",
    "summer": "a hot summer|a sunny summer|a warm summer|a golden summer|a still summer",
    "autumn": "a misty autumn|a windy autumn|a cool autumn|a clear autumn|a gray autumn",
    "winter": "a cold winter|a frosty winter|a snowy winter|a pale winter|a crisp winter",
}
