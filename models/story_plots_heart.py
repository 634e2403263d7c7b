"""Plot skeletons: truth, quarrels, fears, races and gardens."""

from __future__ import annotations

from models.story_types import Plot

TRUTH = Plot(
    theme="honesty",
    things="solid",
    titles=(
        "the broken {t}",
        "{a} tells the truth",
        "{a} and the {t}",
        "a hard thing to say",
    ),
    paragraphs=(
        "{a} had a friend, {b.intro}. {b} owned {t.a} that stood [on a shelf|by the window|on a"
        " small table] in {b.his} home. [It had come from far away|It was very old|{b} was very"
        ' fond of it]. "You may look at it," {b} always said, "but please do not touch it."',
        "<day>, {a} came to visit while {b} was [in the garden|at the market|asleep]. [{t.The}"
        " gleamed in the light|{a} wanted to see {t.the} from close up]. {a.He} picked it up, just"
        " for a moment. But it slipped out of {a.his} {a.hands}, fell to the floor and broke in"
        " [two|three].",
        "{a} [turned pale|held {a.his} breath]. {a.He} listened. [Nobody came.|The house was"
        " still.] Quickly {a.he} [pushed the pieces under the rug|hid the pieces in a drawer|put"
        " the pieces behind the curtain] and ran home.",
        "[That evening, {a} could not eat.|That night, {a} could not sleep.] [Each time {a.he}"
        " closed {a.his} eyes, {a.he} saw the broken {t}.|{a.His} stomach felt as if {a.he} had"
        " swallowed a stone.] The next day {a} heard that {b} was blaming {c.intro}, who had [been"
        ' there that morning|brought the milk|come to visit too]. "But I did not do it," said {c},'
        " and nobody believed {c.him}.",
        '{a} could not bear it any longer. {a.He} went to {b} and said: "[It was not {c}. It was'
        ' me|I have to tell you something. I broke your {t}]. I am [very|so|truly] sorry." {a.His}'
        " voice [shook|was very small].",
        '{b} was silent for a [moment|while]. "[I am sad about it|I was very fond of it]," {b.he}'
        ' said, "but [I am glad that you told me|it was brave of you to tell me the truth]." Then'
        " they both went to {c} and said that they were sorry.",
        "[All afternoon|Until evening], the three of them [sat at the table|worked] with a pot of"
        " glue. When they had finished, {t.the} stood in its place again. [There was a thin line"
        ' where it had been broken.|One could still see the crack.] "[I like it even better'
        ' now|That line will remind us of today]," said {b}. <friends> <lesson>',
    ),
)

QUARREL = Plot(
    theme="friendship",
    things="any",
    titles=(
        "the quarrel",
        "{a}, {b} and the {t}",
        "two friends and {t.a}",
        "who gets the {t}",
    ),
    paragraphs=(
        "{a}'s best friend was {b.intro}. [They did everything together|They met every day|You"
        " never saw one without the other]. They [shared their secrets|built huts|told each other"
        " stories] and had never had a quarrel.",
        "<day>, they walked {q.to}. [|<sense>] Something [shone|lay] [in the grass|between two"
        ' stones|beside the path]. It was {t.a}! "I saw it first!" cried {a}. "No, I saw it'
        ' first!" cried {b}. "It is mine!"',
        "{a} pulled at one end, and {b} pulled at the other. [Neither of them let go.|They pulled"
        " harder and harder.] Then there was a [crack|loud snap], and {t.the} broke in two. [For a"
        ' moment everything was quiet.|They both fell over backward.] "Now look what you have'
        ' done!" {b} shouted. They turned their backs on each other and went home [without a'
        " word|in anger].",
        "{a} tried to [play|work|read] alone, but it was [no fun|dull]. [The hours crept by|The"
        ' house was too quiet]. {a.He} looked at {a.his} half of {t.the}. "[What good is half of'
        ' it|What can I do with half]?" {a.he} thought. "I miss {b}."',
        "On the way to {b}'s home, {a} met {c.intro}. <c_asks> {a} told {c.him} about the quarrel."
        ' {c} [nodded|thought for a moment]. "[A thing can be mended quickly|Things come and go],'
        ' but [a friendship needs one good word|a friend is hard to find]," {c.he} said. "Which of'
        ' you will say it first?"',
        "[At the next corner|Halfway there|By the old well], {a} saw {b}, who was coming the other"
        ' way. {b} held the other half in {b.his} {b.hands}. "I am sorry," they both said at the'
        " same time, and then they [had to laugh|both laughed].",
        "[Together they put the two halves back together with glue and string.|{c} helped them to"
        " join the two halves.] [{a} kept {t.the} for one week, and {b} kept it for the next|They"
        " put it in a place where both could see it]. They never fought over it again. <lesson>",
    ),
    rules={
        "c_asks": (
            '["Where are you going with such a sad face?" asked {c}.|{c} saw at once that'
            ' something was wrong.|"You are alone today," said {c}. "Where is {b}?"]'
        ),
    },
)

FEAR = Plot(
    theme="courage",
    things="lamp",
    titles=(
        "{a} is brave",
        "{a} and the {t}",
        "the dark night",
        "a light for {b}",
    ),
    paragraphs=(
        "There was just one thing that {a} did not like: <fear>. [{a.He} had never told anyone"
        " about it|Everyone teased {a.him} a little because of it|{a.He} was ashamed of it]. Only"
        ' {b.intro} knew about it. "[Everybody is afraid of something|You will be brave when it'
        ' matters]," {b} [always|often] said.',
        'One evening in {season}, {c.intro} came running to {a}\'s door. "[Help|Come quickly]!"'
        ' cried {c}. "{b} <trouble>, and I [cannot help {b.him} alone|am too weak to help'
        ' {b.him}]!"',
        '{a} looked out. <scene> {a.His} knees shook. "[I cannot do it|I am too afraid]," {a.he}'
        " whispered. But then {a.he} thought of {b}, alone out there. {a.He} took {t.a}, lit it"
        " and [held it tightly|stepped outside].",
        "{a} and {c} went {q.to}. <sense> <steps> At every step, {a}'s heart beat [like a"
        " drum|faster], but {a.he} kept [walking|going]. [{t.The} made a small circle of light"
        ' around them.|"One step, and then one more," {a.he} said to {a.himself}.]',
        'At last they heard a [faint|small] voice. "[I am here|Over here]!" called {b}. {a} held'
        " up {t.the}. <rescue>",
        '"You came, although you were afraid," said {b}. "[I was very afraid|My knees were'
        ' shaking]," said {a}, "but [I was more afraid of losing you|you needed me]." {c} laughed.'
        ' "[Then you are the bravest one of us all|That is what being brave means]," {c.he} said.',
        "They walked home in the light of {t.the}. From then on, {a} [was not so afraid any"
        " more|still did not like <fear>, but {a.he} knew what to do]. <lesson>",
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
            "rescue": (
                "There was {b}, wet to the skin. They put {b.his} arms around their shoulders and"
                " led {b.him} away."
            ),
        },
        {
            "fear": "being alone in a strange place",
            "trouble": "[has not come home|went out at noon and has not come back]",
            "scene": "The street was empty, and a cold wind blew.",
            "steps": (
                "[They came to a fork, and each of them had to search one path alone|A twig"
                " snapped behind them]."
            ),
            "rescue": ("{b} was sitting under a tree with a twisted foot. {a} and {c} helped {b.him} up."),
        },
    ),
)

RACE = Plot(
    theme="patience",
    things="solid",
    titles=(
        "the race",
        "{a} and the great race",
        "slow and steady",
        "the race for the {t}",
    ),
    paragraphs=(
        "Every year there was a race in {town}, and the prize was {t.a}. {c.intro} [had won it"
        ' three times|was the fastest runner for miles]. "[Nobody can beat me|I could win this'
        ' race in my sleep]," {c} [boasted|said loudly]. {a} was not fast, but {a.he} wanted to'
        " try.",
        'Everyone laughed at that. Only {b.intro} did not laugh. "[Do not run as fast as you'
        ' can|Do not look at the others]," {b} told {a}. "[Run only as fast as you can keep'
        ' going|Look only at the path in front of you]." So {a} practiced [every morning|day after'
        " day], a little farther each time.",
        "On the day of the race, the path led {q.to} and back again. A whistle blew. {c} shot away"
        " and was soon [out of sight|far ahead]. {a} ran [calmly|steadily], step by step. <sense>",
        'Halfway, {c} looked back and saw nobody. "[I have plenty of time|I can take a rest],"'
        " said {c}. {c.He} [lay down in the shade and closed {c.his} eyes|stopped to tell some"
        " children how fast {c.he} was|sat down to eat a big lunch]. {a} came by, quiet and"
        " steady, and {c} did not even notice.",
        "When {c} thought of the race again at last, the sun was [low|much lower]. {c.He} jumped"
        ' up and ran as fast as the wind. But {a} was already near the finish. "[Go on|Keep'
        ' going], {a}!" shouted {b}. [By the length of one step|By a nose|Just in time], {a}'
        " crossed the line first.",
        "<glad> The [oldest teacher|mayor] gave {a.him} {t.the}, and everybody clapped. {c} came"
        ' up, out of breath. "[You have earned it|You ran a good race]," said {c}. "[I was too'
        ' sure of myself|I laughed at you, and I am sorry]." "[Let us practice together|Next year'
        ' we can run side by side]," said {a}, and {c} [smiled|nodded].',
        "<thanks> <lesson>",
    ),
    third="animal",
)

GARDEN = Plot(
    theme="patience",
    things="plant",
    titles=(
        "{a} and the {t}",
        "the little seed",
        "{a}'s garden",
        "the {t}",
    ),
    paragraphs=(
        '<day>, {b.intro} gave {a} a small brown seed. "[Plant it and look after it|Put it into'
        ' the earth and wait]," said {b}. "[One day you will be surprised|Something fine will grow'
        ' from it]." {a} dug a hole [behind the house|in the sunniest spot], put in the seed and'
        " watered it.",
        "The next morning, {a} ran out to look. There was nothing. The day after, there was [still"
        ' nothing|only bare earth]. "[It will never grow|It must be a bad seed]," said {a}. "[Give'
        ' it time|Wait a little longer]," said {b}. "[A seed cannot be hurried|It is working where'
        ' you cannot see it]."',
        "So {a} waited and watered. [One rainy morning|After two weeks|At last], a tiny green tip"
        " [poked out of the ground|stood in the wet earth]. <glad> Day by day, {t.the} grew a"
        " little bigger.",
        "But then <danger> {a} [did not give up|knew what {a.he} had to do]. <care> {b} [came and"
        " helped|brought an extra pair of {b.hands}], and together they saved {t.the}.",
        "[Summer came|The weeks went by], and {t.the} grew tall and strong. {c.intro} stopped at"
        ' the fence. "I have never seen {t.a} as [fine|beautiful] as this one," said {c}. "[How'
        ' did you do that|What is your secret]?" {a} laughed. "[Water, sun and a lot of waiting|I'
        ' waited, and I did not give up]," {a.he} said.',
        "[In the end|That autumn], {a} gathered a handful of new seeds. {a.He} gave some to {b}"
        " and some to {c}, and kept the rest for [next spring|the year to come]. <thanks> <lesson>",
    ),
    variants=(
        {
            "danger": "the rain stopped for [many weeks|a whole month], and the leaves hung down.",
            "care": "Every morning and every evening, {a.he} carried water from the [well|stream].",
        },
        {
            "danger": "a hungry crowd of snails came in the night and nibbled the leaves.",
            "care": ("{a.He} picked up the snails one by one and carried them to the far end of the field."),
        },
        {
            "danger": "a late frost came, and the night was bitterly cold.",
            "care": "{a.He} wrapped the stem in straw and covered it with an old blanket.",
        },
        {
            "danger": "a strong wind bent the stem until it almost broke.",
            "care": ("{a.He} pushed a stick into the ground and tied the stem to it with soft string."),
        },
    ),
    seasons="spring",
)

PLOTS = (TRUTH, QUARREL, FEAR, RACE, GARDEN)
