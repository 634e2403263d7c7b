"""Plot skeletons, first part: lost things, boats, bread, truth, quarrels, fears and races."""

from __future__ import annotations

from story_types import Plot

_WARM = "spring summer autumn"

LOST = Plot(
    theme="asking for help",
    things="any",
    titles=("{a} and the {t}", "the lost {t}", "how {a} lost the {t}", "the {a.kind} and the {t}"),
    seasons=_WARM,
    paragraphs=(
        "{a} had {t.a} that <origin>. [{a.He} took it everywhere|{a.He} looked after it carefully"
        "|{a.He} would not have traded it for anything|It was {a.his} dearest treasure].",
        "<day>, {a} took {t.the} {q.to}. [|<sense>] <cause> [{a} cried out, but it was too late."
        '|"Oh no, my {t}!" cried {a}.|It all happened in a moment.]',
        "<block> [{a} tried once, twice, three times, but it was no use.|However hard {a} tried,"
        " {a.he} could not get it back.|{a} did everything {a.he} could think of, but nothing"
        " worked.] <sad>",
        "[Just then|At that moment|After a while], {b.intro} came [by|along|past]. <why_sad>"
        ' <tell> "[Please, could you help me|Can you help me|Would you help me]?" {a.he} asked.',
        '"[Of course|Certainly|Let me try|Leave it to me|That is just the thing for me]," said {b}.'
        " <solve> [A moment later|Soon], {b} put {t.the} into {a}'s {a.hands}.",
        "<glad> <thanks> <welcome>",
        "<feast> <friends> <lesson>",
    ),
    rules={
        "origin": (
            "[was a present from {a.his} grandmother|{a.his} father had made|had been in the family"
            " for many years|{a.he} had won at the fair|{a.he} had got for {a.his} birthday"
            "|{a.he} had bought with {a.his} own money]"
        ),
    },
)

_SPOTS: dict[str, tuple[dict[str, str], ...]] = {
    "high": (
        {
            "cause": "A [cheeky|greedy|bold] magpie swooped down, snatched {t.the} and dropped it"
            " at the top of a tall [oak|pine|poplar].",
            "block": "The [trunk was smooth|lowest branch was far too high], and {a} could not reach"
            " it.",
            "solve": "{b.He} {b.up} up to the [highest|thinnest] branch, took {t.the} and came back"
            " [down|safely].",
        },
        {
            "cause": "While {a} was playing, {t.the} flew [through the air|up high] and landed on"
            " the roof of an old [barn|tower|hut].",
            "block": "The walls were steep, and there was no ladder anywhere.",
            "solve": "{b.He} {b.up} up to the roof, [found|picked up] {t.the} behind the chimney and"
            " brought it down.",
        },
    ),
    "swim": (
        {
            "cause": "{a} slipped on a [wet|mossy] stone, and {t.the} fell into [the water|a deep"
            " pool] and sank.",
            "block": "The water was [deep and cold|dark and deep], and {a} could not see the bottom.",
            "solve": "{b.He} dived down [to the bottom|between the weeds] and came up again with"
            " {t.the}.",
        },
        {
            "cause": "When {a} crossed a small bridge, {t.the} slipped out of {a.his} {a.hands} and"
            " the stream carried it to a rock in the middle.",
            "block": "The current was [strong|fast], and {a} did not dare to wade in.",
            "solve": "{b.He} swam across [the current|to the rock], took {t.the} and swam back.",
        },
    ),
    "dig": (
        {
            "cause": "{t.The} slipped out of {a}'s {a.hands} and fell down a narrow hole in the ground.",
            "block": "The hole was [deep and dark|too narrow], and {a} could not reach the bottom.",
            "solve": "{b.He} dug and dug until the earth flew, and at last {b.he} reached {t.the}.",
        },
        {
            "cause": "{a} put {t.the} down for a moment, and a piece of the bank slid down and"
            " buried it.",
            "block": "The earth was heavy and full of stones.",
            "solve": "{b.He} dug a [neat|deep] hole in just the right spot and pulled {t.the} out.",
        },
    ),
    "strong": (
        {
            "cause": "{a} put {t.the} down to rest. Then there was a loud crack, and an old tree fell over, right across {t.the}.",
            "block": "The trunk was as heavy as a wagon, and it did not move at all.",
            "solve": "{b.He} leaned against the trunk and pushed until it rolled aside, and"
            " there was {t.the}, without a scratch.",
        },
        {
            "cause": "{t.The} slipped into a crack between the rocks, and a great stone slid down in front of it.",
            "block": "{a} pushed with all {a.his} strength, but the stone did not move.",
            "solve": "{b.He} took a deep breath, lifted the stone and pulled out {t.the}.",
        },
    ),
    "sniff": (
        {
            "cause": "{a} sat down to rest and fell asleep, and when {a.he} woke up, {t.the} was"
            " gone.",
            "block": "{a} looked behind every bush and under every leaf.",
            "solve": "{b.He} put {b.his} nose to the ground and sniffed. The trail led to a"
            " [hollow log|thorn bush|pile of leaves], and there lay {t.the}.",
        },
        {
            "cause": "A thick fog came up, and {a} dropped {t.the} somewhere along the way.",
            "block": "{a} could hardly see {a.his} own {a.hands}.",
            "solve": "{b.He} sniffed to the left and sniffed to the right, and then {b.he} walked"
            " straight through the fog to {t.the}.",
        },
    ),
}

LOST_PLOTS = tuple(LOST._replace(helper=skill, variants=_SPOTS[skill]) for skill in _SPOTS)

BOAT = Plot(
    theme="kindness",
    things="boat",
    titles=("{a} and the {t}", "the storm", "{a} and the broken {t}", "the {t} of {a}"),
    seasons=_WARM,
    third="animal",
    paragraphs=(
        "{a} owned {t.a}, and {a.he} was very proud of it. [Every spring {a.he} painted it fresh"
        "|{a.He} had built it with {a.his} own {a.hands}|It had belonged to {a.his} grandfather].",
        "<day>, {a} met {b.intro} at the landing. {b} [was hungry and had nothing to eat|was cold and"
        " wet from the rain|had hurt {b.his} foot and could not walk far]. {a} did not think twice."
        " {a.He} [shared {a.his} lunch with {b.him}|wrapped {b.him} in a warm blanket and made {b.him}"
        ' some soup|took {b.him} across the water for nothing]. "I will not forget that," said {b}.',
        "[Some weeks later|One night|A month later], a [great|wild|terrible] storm came over the water."
        " The wind howled and the waves [crashed against the shore|grew as high as houses]. In the"
        " morning, {a} ran down to the landing. {t.The} lay [on the stones|half under water], with a"
        " [big hole in its side|broken mast and a torn bottom|crack from one end to the other].",
        '<sad> "[Without my {t}, I cannot do my work|I can never mend this alone|Now everything is'
        ' lost]," {a.he} said. {c.intro} looked at the damage and shook {c.his} head. "[That cannot'
        ' be mended|It is only good for firewood now]," said {c}.',
        "But {b} had heard about the storm. {b.He} came [that same day|before noon] with [boards and"
        ' nails|a bag of tools and a pot of tar|rope, wood and a hammer]. "You helped me when I was in'
        ' need," said {b}. "Now I will help you."',
        "They worked [from morning until evening|for three days]. {b} [sawed the boards|held the"
        " planks], {a} [hammered in the nails|spread the tar], and in the end even {c} came back and"
        " [carried wood|brought them something to drink]. [At last|Finally] {t.the} was as good as"
        " new.",
        "<glad> <thanks> Together they pushed {t.the} into the water, and it [floated like a duck"
        "|did not leak a single drop]. <friends> <lesson>",
    ),
)

SHARE = Plot(
    theme="sharing",
    things="food",
    titles=("{a} and the {t}", "the {t}", "the hungry guest", "enough for two"),
    seasons="autumn winter",
    paragraphs=(
        '<day>, {a} had {t.a}. [{a.He} had waited for it all week.|It smelled wonderful.] "[I will eat'
        ' it all by myself|This is just for me|Nobody else shall have a bite]," thought {a}, and'
        " {a.he} [took it {q.to}|went {q.to}], where nobody would see {a.him}.",
        "{a} had just sat down when {b.intro} came [out from behind a bush|slowly down the path|around"
        ' the corner]. {b} looked [thin and tired|cold and hungry|pale]. "[I have walked all day|I have'
        ' not eaten since yesterday|My cupboard is empty]," said {b}. "[Could you spare a little of'
        ' your food|May I have a small piece]?"',
        "{a} looked at {t.the}, and then {a.he} looked at {b}. [It was not very big.|For a while"
        ' {a.he} said nothing.] [{a.His} stomach growled.|] "If I share it, I will have less,"'
        " thought {a}. But then {a.he} saw how {b.his} {b.hands} [trembled|shook].",
        '"[Come and sit with me|Sit down|Here, take half]," said {a} at last. "There is enough for both'
        ' of us." They ate together, and {b} told {a} [a funny tale about a king who lost his shoes'
        "|about all the places {b.he} had seen|how {b.he} had lost {b.his} way in the hills]. {a}"
        " laughed so much that {a.he} forgot to be hungry.",
        '[Before {b} left, {b.he} said|When the last crumb was gone, {b} stood up and said]: "[One day'
        ' I will share with you|I will remember your kindness]." Then {b.he} went on {b.his} way.',
        "That winter was long and [hard|bitter]. Snow covered [the fields|the roads], and one morning"
        " {a} had nothing left to eat. <sad> Then there was a knock at the door. Outside stood {b} with"
        ' a [sled|basket|sack] full of food. "[You shared with me when you had little|Now it is my'
        ' turn]," said {b}. "[Now I have plenty|My cupboard is full now], and half of it is yours."',
        "<glad> They [lit the stove|made a fire] and cooked a big supper. <friends> <lesson>",
    ),
)

TRUTH = Plot(
    theme="honesty",
    things="solid",
    titles=("the broken {t}", "{a} tells the truth", "{a} and the {t}", "a hard thing to say"),
    paragraphs=(
        "{a} had a friend, {b.intro}. {b} owned {t.a} that stood [on a shelf|by the window|on a small"
        " table] in {b.his} home. [It had come from far away|It was very old|{b} was very fond of it]."
        ' "You may look at it," {b} always said, "but please do not touch it."',
        "<day>, {a} came to visit while {b} was [in the garden|at the market|asleep]. [{t.The} gleamed"
        " in the light|{a} wanted to see {t.the} from close up]. {a.He} picked it up, just for a"
        " moment. But it slipped out of {a.his} {a.hands}, fell to the floor and broke in [two|three].",
        "{a} [turned pale|held {a.his} breath]. {a.He} listened. [Nobody came.|The house was still.]"
        " Quickly {a.he} [pushed the pieces under the rug|hid the pieces in a drawer|put the pieces"
        " behind the curtain] and ran home.",
        "[That evening, {a} could not eat.|That night, {a} could not sleep.] [Each time {a.he} closed"
        " {a.his} eyes, {a.he} saw the broken {t}.|{a.His} stomach felt as if {a.he} had swallowed a"
        " stone.] The next day {a} heard that {b} was blaming {c.intro}, who had [been there that"
        ' morning|brought the milk|come to visit too]. "But I did not do it," said {c}, and nobody'
        " believed {c.him}.",
        '{a} could not bear it any longer. {a.He} went to {b} and said: "[It was not {c}. It was me|I'
        ' have to tell you something. I broke your {t}]. I am [very|so|truly] sorry." {a.His} voice'
        " [shook|was very small].",
        '{b} was silent for a [moment|while]. "[I am sad about it|I was very fond of it]," {b.he} said,'
        ' "but [I am glad that you told me|it was brave of you to tell me the truth]." Then they both'
        " went to {c} and said that they were sorry.",
        "[All afternoon|Until evening], the three of them [sat at the table|worked] with a pot of glue."
        " When they had finished, {t.the} stood in its place again. [There was a thin line where it had"
        ' been broken.|One could still see the crack.] "[I like it even better now|That line will'
        ' remind us of today]," said {b}. <friends> <lesson>',
    ),
)

QUARREL = Plot(
    theme="friendship",
    things="any",
    titles=("the quarrel", "{a}, {b} and the {t}", "two friends and {t.a}", "who gets the {t}"),
    paragraphs=(
        "{a}'s best friend was {b.intro}. [They did everything together|They met every day|You never"
        " saw one without the other]. They [shared their secrets|built huts|told each other stories]"
        " and had never had a quarrel.",
        "<day>, they walked {q.to}. [|<sense>] Something [shone|lay] [in the grass|between two stones"
        '|beside the path]. It was {t.a}! "I saw it first!" cried {a}. "No, I saw it first!" cried {b}.'
        ' "It is mine!"',
        "{a} pulled at one end, and {b} pulled at the other. [Neither of them let go.|They pulled harder"
        " and harder.] Then there was a [crack|loud snap], and {t.the} broke in two. [For a moment"
        ' everything was quiet.|They both fell over backward.] "Now look what you have done!" {b}'
        " shouted. They turned their backs on each other and went home [without a word|in anger].",
        "{a} tried to [play|work|read] alone, but it was [no fun|dull]. [The hours crept by|The house was"
        ' too quiet]. {a.He} looked at {a.his} half of {t.the}. "[What good is half of it|What can I do'
        ' with half]?" {a.he} thought. "I miss {b}."',
        "On the way to {b}'s home, {a} met {c.intro}. <c_asks> {a} told {c.him} about the quarrel. {c}"
        ' [nodded|thought for a moment]. "[A thing can be mended quickly|Things come and go], but [a'
        ' friendship needs one good word|a friend is hard to find]," {c.he} said. "Which of you will'
        ' say it first?"',
        "[At the next corner|Halfway there|By the old well], {a} saw {b}, who was coming the other way."
        ' {b} held the other half in {b.his} {b.hands}. "I am sorry," they both said at the same time,'
        " and then they [had to laugh|both laughed].",
        "[Together they put the two halves back together with glue and string.|{c} helped them to join"
        " the two halves.] [{a} kept {t.the} for one week, and {b} kept it for the next|They put it"
        " in a place where both could see it]. They never fought over it again. <lesson>",
    ),
    rules={
        "c_asks": (
            '["Where are you going with such a sad face?" asked {c}.|{c} saw at once that something was'
            ' wrong.|"You are alone today," said {c}. "Where is {b}?"]'
        ),
    },
)

FEAR = Plot(
    theme="courage",
    things="lamp",
    titles=("{a} is brave", "{a} and the {t}", "the dark night", "a light for {b}"),
    paragraphs=(
        "There was just one thing that {a} did not like: <fear>. [{a.He} had never told anyone about"
        " it|Everyone teased {a.him} a little because of it|{a.He} was ashamed of it]. Only {b.intro}"
        ' knew about it. "[Everybody is afraid of something|You will be brave when it matters]," {b}'
        " [always|often] said.",
        'One evening in {season}, {c.intro} came running to {a}\'s door. "[Help|Come quickly]!" cried'
        ' {c}. "{b} <trouble>, and I [cannot help {b.him} alone|am too weak to help {b.him}]!"',
        '{a} looked out. <scene> {a.His} knees shook. "[I cannot do it|I am too afraid]," {a.he}'
        " whispered. But then {a.he} thought of {b}, alone out there. {a.He} took {t.a}, lit it and"
        " [held it tightly|stepped outside].",
        "{a} and {c} went {q.to}. <sense> <steps> At every step, {a}'s heart beat [like a drum|faster],"
        ' but {a.he} kept [walking|going]. [{t.The} made a small circle of light around them.|"One step,'
        ' and then one more," {a.he} said to {a.himself}.]',
        'At last they heard a [faint|small] voice. "[I am here|Over here]!" called {b}. {a} held up'
        " {t.the}. <rescue>",
        '"You came, although you were afraid," said {b}. "[I was very afraid|My knees were shaking],"'
        ' said {a}, "but [I was more afraid of losing you|you needed me]." {c} laughed. "[Then you are'
        ' the bravest one of us all|That is what being brave means]," {c.he} said.',
        "They walked home in the light of {t.the}. From then on, {a} [was not so afraid any more|still"
        " did not like <fear>, but {a.he} knew what to do]. <lesson>",
    ),
    variants=(
        {
            "fear": "the dark",
            "trouble": "[has fallen into a ditch|has lost the way|is stuck in the mud]",
            "scene": "There was no moon, and it was as dark as [a cellar|ink].",
            "steps": "Shadows moved [left and right|behind every tree].",
            "rescue": "In its light they saw {b}, and together they pulled {b.him} out.",
        },
        {
            "fear": "thunder",
            "trouble": "[is caught under a fallen branch|has hurt {b.his} leg|is stuck in the mud]",
            "scene": "Black clouds hung low, and thunder rolled over the roofs.",
            "steps": "Lightning flashed, and the thunder [cracked|rumbled] above them.",
            "rescue": "There was {b}, wet to the skin. They put {b.his} arms around their shoulders and"
            " led {b.him} away.",
        },
        {
            "fear": "being alone in a strange place",
            "trouble": "[has not come home|went out at noon and has not come back]",
            "scene": "The street was empty, and a cold wind blew.",
            "steps": "[They came to a fork, and each of them had to search one path alone|A twig snapped"
            " behind them].",
            "rescue": "{b} was sitting under a tree with a twisted foot. {a} and {c} helped {b.him} up.",
        },
    ),
)

RACE = Plot(
    theme="patience",
    things="solid",
    titles=("the race", "{a} and the great race", "slow and steady", "the race for the {t}"),
    third="animal",
    paragraphs=(
        "Every year there was a race in {town}, and the prize was {t.a}. {c.intro} [had won it three times"
        '|was the fastest runner for miles]. "[Nobody can beat me|I could win this race in my sleep],"'
        " {c} [boasted|said loudly]. {a} was not fast, but {a.he} wanted to try.",
        'Everyone laughed at that. Only {b.intro} did not laugh. "[Do not run as fast as you can|Do not'
        ' look at the others]," {b} told {a}. "[Run only as fast as you can keep going|Look only at the'
        ' path in front of you]." So {a} practiced [every morning|day after day], a little farther each'
        " time.",
        "On the day of the race, the path led {q.to} and back again. A whistle blew. {c} shot away and was"
        " soon [out of sight|far ahead]. {a} ran [calmly|steadily], step by step. <sense>",
        'Halfway, {c} looked back and saw nobody. "[I have plenty of time|I can take a rest]," said {c}.'
        " {c.He} [lay down in the shade and closed {c.his} eyes|stopped to tell some children how"
        " fast {c.he} was|sat down to eat a big lunch]. {a} came by, quiet and steady, and {c} did not"
        " even notice.",
        "When {c} thought of the race again at last, the sun was [low|much lower]. {c.He} jumped up and ran as"
        ' fast as the wind. But {a} was already near the finish. "[Go on|Keep going], {a}!" shouted {b}.'
        " [By the length of one step|By a nose|Just in time], {a} crossed the line first.",
        "<glad> The [oldest teacher|mayor] gave {a.him} {t.the}, and everybody clapped. {c} came up, out of"
        ' breath. "[You have earned it|You ran a good race]," said {c}. "[I was too sure of myself'
        '|I laughed at you, and I am sorry]." "[Let us practice together|Next year we can run side by'
        ' side]," said {a}, and {c} [smiled|nodded].',
        "<thanks> <lesson>",
    ),
)

PLOTS_ONE = (*LOST_PLOTS, BOAT, SHARE, TRUTH, QUARREL, FEAR, RACE)
