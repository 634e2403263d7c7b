"""Plot skeletons: lost things, boats and bread."""

from __future__ import annotations

from models.story_types import Plot

LOST = Plot(
    theme="asking for help",
    things="any",
    titles=(
        "{a} and the {t}",
        "the lost {t}",
        "how {a} lost the {t}",
        "the {a.kind} and the {t}",
    ),
    paragraphs=(
        "{a} had {t.a} that <origin>. [{a.He} took it everywhere|{a.He} looked after it"
        " carefully|{a.He} would not have traded it for anything|It was {a.his} dearest treasure].",
        "<day>, {a} took {t.the} {q.to}. [|<sense>] <cause> [{a} cried out, but it was too"
        ' late.|"Oh no, my {t}!" cried {a}.|It all happened in a moment.]',
        "<block> [{a} tried once, twice, three times, but it was no use.|However hard {a} tried,"
        " {a.he} could not get it back.|{a} did everything {a.he} could think of, but nothing"
        " worked.] <sad>",
        "[Just then|At that moment|After a while], {b.intro} came [by|along|past]. <why_sad>"
        ' <tell> "[Please, could you help me|Can you help me|Would you help me]?" {a.he} asked.',
        '"[Of course|Certainly|Let me try|Leave it to me|That is just the thing for me]," said'
        " {b}. <solve> [A moment later|Soon], {b} put {t.the} into {a}'s {a.hands}.",
        "<glad> <thanks> <welcome>",
        "<feast> <friends> <lesson>",
    ),
    rules={
        "origin": (
            "[was a present from {a.his} grandmother|{a.his} father had made|had been in the"
            " family for many years|{a.he} had won at the fair|{a.he} had got for {a.his}"
            " birthday|{a.he} had bought with {a.his} own money]"
        ),
    },
    seasons="spring summer autumn",
)

_SPOTS: dict[str, tuple[dict[str, str], ...]] = {
    "high": (
        {
            "cause": (
                "A [cheeky|greedy|bold] magpie swooped down, snatched {t.the} and dropped it at"
                " the top of a tall [oak|pine|poplar]."
            ),
            "block": ("The [trunk was smooth|lowest branch was far too high], and {a} could not reach it."),
            "solve": (
                "{b.He} {b.up} up to the [highest|thinnest] branch, took {t.the} and came back [down|safely]."
            ),
        },
        {
            "cause": (
                "While {a} was playing, {t.the} flew [through the air|up high] and landed on the"
                " roof of an old [barn|tower|hut]."
            ),
            "block": "The walls were steep, and there was no ladder anywhere.",
            "solve": (
                "{b.He} {b.up} up to the roof, [found|picked up] {t.the} behind the chimney and"
                " brought it down."
            ),
        },
    ),
    "swim": (
        {
            "cause": (
                "{a} slipped on a [wet|mossy] stone, and {t.the} fell into [the water|a deep pool] and sank."
            ),
            "block": ("The water was [deep and cold|dark and deep], and {a} could not see the bottom."),
            "solve": ("{b.He} dived down [to the bottom|between the weeds] and came up again with {t.the}."),
        },
        {
            "cause": (
                "When {a} crossed a small bridge, {t.the} slipped out of {a.his} {a.hands} and the"
                " stream carried it to a rock in the middle."
            ),
            "block": "The current was [strong|fast], and {a} did not dare to wade in.",
            "solve": "{b.He} swam across [the current|to the rock], took {t.the} and swam back.",
        },
    ),
    "dig": (
        {
            "cause": ("{t.The} slipped out of {a}'s {a.hands} and fell down a narrow hole in the ground."),
            "block": "The hole was [deep and dark|too narrow], and {a} could not reach the bottom.",
            "solve": "{b.He} dug and dug until the earth flew, and at last {b.he} reached {t.the}.",
        },
        {
            "cause": ("{a} put {t.the} down for a moment, and a piece of the bank slid down and buried it."),
            "block": "The earth was heavy and full of stones.",
            "solve": "{b.He} dug a [neat|deep] hole in just the right spot and pulled {t.the} out.",
        },
    ),
    "strong": (
        {
            "cause": (
                "{a} put {t.the} down to rest. Then there was a loud crack, and an old tree fell"
                " over, right across {t.the}."
            ),
            "block": "The trunk was as heavy as a wagon, and it did not move at all.",
            "solve": (
                "{b.He} leaned against the trunk and pushed until it rolled aside, and there was"
                " {t.the}, without a scratch."
            ),
        },
        {
            "cause": (
                "{t.The} slipped into a crack between the rocks, and a great stone slid down in front of it."
            ),
            "block": "{a} pushed with all {a.his} strength, but the stone did not move.",
            "solve": "{b.He} took a deep breath, lifted the stone and pulled out {t.the}.",
        },
    ),
    "sniff": (
        {
            "cause": ("{a} sat down to rest and fell asleep, and when {a.he} woke up, {t.the} was gone."),
            "block": "{a} looked behind every bush and under every leaf.",
            "solve": (
                "{b.He} put {b.his} nose to the ground and sniffed. The trail led to a [hollow"
                " log|thorn bush|pile of leaves], and there lay {t.the}."
            ),
        },
        {
            "cause": "A thick fog came up, and {a} dropped {t.the} somewhere along the way.",
            "block": "{a} could hardly see {a.his} own {a.hands}.",
            "solve": (
                "{b.He} sniffed to the left and sniffed to the right, and then {b.he} walked"
                " straight through the fog to {t.the}."
            ),
        },
    ),
}

# One plot for each skill of the helper, who must suit the place where the thing went.
LOST_PLOTS = tuple(LOST._replace(helper=skill, variants=_SPOTS[skill]) for skill in _SPOTS)

BOAT = Plot(
    theme="kindness",
    things="boat",
    titles=(
        "{a} and the {t}",
        "the storm",
        "{a} and the broken {t}",
        "the {t} of {a}",
    ),
    paragraphs=(
        "{a} owned {t.a}, and {a.he} was very proud of it. [Every spring {a.he} painted it"
        " fresh|{a.He} had built it with {a.his} own {a.hands}|It had belonged to {a.his}"
        " grandfather].",
        "<day>, {a} met {b.intro} at the landing. {b} [was hungry and had nothing to eat|was cold"
        " and wet from the rain|had hurt {b.his} foot and could not walk far]. {a} did not think"
        " twice. {a.He} [shared {a.his} lunch with {b.him}|wrapped {b.him} in a warm blanket and"
        ' made {b.him} some soup|took {b.him} across the water for nothing]. "I will not forget'
        ' that," said {b}.',
        "[Some weeks later|One night|A month later], a [great|wild|terrible] storm came over the"
        " water. The wind howled and the waves [crashed against the shore|grew as high as houses]."
        " In the morning, {a} ran down to the landing. {t.The} lay [on the stones|half under"
        " water], with a [big hole in its side|broken bow and a torn bottom|crack from one end to"
        " the other].",
        '<sad> "[Without my {t}, I cannot do my work|I can never mend this alone|Now everything is'
        ' lost]," {a.he} said. {c.intro} looked at the damage and shook {c.his} head. "[That'
        ' cannot be mended|It is only good for firewood now]," said {c}.',
        "But {b} had heard about the storm. {b.He} came [that same day|before noon] with [boards"
        ' and nails|a bag of tools and a pot of tar|rope, wood and a hammer]. "You helped me when'
        ' I was in need," said {b}. "Now I will help you."',
        "They worked [from morning until evening|for three days]. {b} [sawed the boards|held the"
        " planks], {a} [hammered in the nails|spread the tar], and in the end even {c} came back"
        " and [carried wood|brought them something to drink]. [At last|Finally] {t.the} was as"
        " good as new.",
        "<glad> <thanks> Together they pushed {t.the} into the water, and it [floated like a"
        " duck|did not leak a single drop]. <friends> <lesson>",
    ),
    third="animal",
    seasons="spring summer autumn",
)

SHARE = Plot(
    theme="sharing",
    things="food",
    titles=(
        "{a} and the {t}",
        "the {t}",
        "the hungry guest",
        "enough for two",
    ),
    paragraphs=(
        '<day>, {a} had {t.a}. [{a.He} had waited for it all week.|It smelled wonderful.] "[I will'
        ' eat it all by myself|This is just for me|Nobody else shall have a bite]," thought {a},'
        " and {a.he} [took it {q.to}|went {q.to}], where nobody would see {a.him}.",
        "{a} had just sat down when {b.intro} came [out from behind a bush|slowly down the"
        ' path|around the corner]. {b} looked [thin and tired|cold and hungry|pale]. "[I have'
        ' walked all day|I have not eaten since yesterday|My cupboard is empty]," said {b}.'
        ' "[Could you spare a little of your food|May I have a small piece]?"',
        "{a} looked at {t.the}, and then {a.he} looked at {b}. [It was not very big.|For a while"
        ' {a.he} said nothing.] [{a.His} stomach growled.|] "If I share it, I will have less,"'
        " thought {a}. But then {a.he} saw how {b.his} {b.hands} [trembled|shook].",
        '"[Come and sit with me|Sit down|Here, take half]," said {a} at last. "There is enough for'
        ' both of us." They ate together, and {b} told {a} [a funny tale about a king who lost his'
        " shoes|about all the places {b.he} had seen|how {b.he} had lost {b.his} way in the"
        " hills]. {a} laughed so much that {a.he} forgot to be hungry.",
        '[Before {b} left, {b.he} said|When the last crumb was gone, {b} stood up and said]: "[One'
        ' day I will share with you|I will remember your kindness]." Then {b.he} went on {b.his}'
        " way.",
        "That winter was long and [hard|bitter]. Snow covered [the fields|the roads], and one"
        " morning {a} had nothing left to eat. <sad> Then there was a knock at the door. Outside"
        ' stood {b} with a [sled|basket|sack] full of food. "[You shared with me when you had'
        ' little|Now it is my turn]," said {b}. "[Now I have plenty|My cupboard is full now], and'
        ' half of it is yours."',
        "<glad> They [lit the stove|made a fire] and cooked a big supper. <friends> <lesson>",
    ),
    seasons="autumn winter",
)

PLOTS = (*LOST_PLOTS, BOAT, SHARE)
