"""Plot skeletons: bridges, errands and wishes."""

from __future__ import annotations

from models.story_types import Plot

BRIDGE = Plot(
    theme="working together",
    things="food",
    titles=(
        "the bridge",
        "the new bridge of {town}",
        "three friends build a bridge",
    ),
    paragraphs=(
        "Near {town} there was an old bridge over the river. <day>, after [three days of rain|a"
        " long night of rain], the water rose higher and higher, and [with a loud crash|in the"
        " middle of the night] the bridge was swept away. On the other side lay the"
        " [mill|school|market], and nobody could reach it.",
        '"[We have to wait until somebody builds a new one|There is nothing we can do]," people'
        " said. But {a} did not want to wait. {a.He} [dragged a plank to the river|carried a long"
        " board to the bank] and tried to lay it across. It was [far too short|much too short],"
        " and the river carried it away.",
        '{b.intro} saw it. "You cannot build a bridge alone," said {b}. "[But I am strong|But my'
        ' back is strong], and I can carry the heavy logs." Then {c.intro} came along. "[I cannot'
        " carry much|I am not strong], but I [can tie good knots|have a very long rope|know how to"
        ' measure]," said {c}.',
        '"And what can I do?" asked {a}. "[You had the idea|You were the first one to try]," said'
        ' {b}. "You can tell us where each piece should go." So {a} drew a plan [in the sand|on a'
        " flat stone] with a stick.",
        "{b} carried the logs, {c} tied them together, and {a} [ran from one to the other and"
        " helped|hammered in the pegs]. [It was hard work.|Twice a log rolled into the water, and"
        " they had to start again.] When they were hungry, they shared {t.a}, and then they went"
        " on.",
        "On the [third|fifth|fourth] day, the last plank was in place. {a} was the first to cross."
        " [The bridge did not even shake.|The wood creaked, but it held.] <glad> All of {town}"
        ' came running. "Who built this?" they asked. "[We did|All three of us]," said {a}.',
        "They hung a small sign on the bridge with three names on it: {a}, {b} and {c}. <feast> <lesson>",
    ),
    helper="strong",
    seasons="spring summer autumn",
)

ERRAND = Plot(
    theme="keeping a promise",
    things="solid",
    titles=(
        "the promise",
        "{a} keeps a promise",
        "a {t} for {b}",
        "the long way to {b}",
    ),
    paragraphs=(
        "{b.intro} lived on the far side of the {q.side}, and {a} was very fond of {b.him}. <day>,"
        ' a letter came. "[I am ill and must stay in bed|I have hurt my leg and cannot go out],"'
        ' wrote {b}. "I would feel better if I had my {t} with me. I left it in {town}." {a} wrote'
        ' back: "I promise that you will have it by [tonight|sunset|tomorrow night]."',
        '{a} packed {t.the} and set out at once. <walk> <obstacle> "[Maybe I should turn back|It'
        ' is too hard]," thought {a}. "But I gave my word."',
        "[Just then|At that moment], {c.intro} [looked out from behind a stone|came down the"
        ' path]. "[Where are you going in such a hurry|What brings you here]?" {c.he} asked. "I'
        ' promised to bring {t.the} to my friend," said {a}, "and I do not know how to go on."'
        " <way>",
        "{a} thanked {c} and walked on. [{a.His} feet hurt, and {a.his} stomach was empty.|The sun"
        " sank lower and lower.] {a.He} wanted to rest, but {a.he} thought of {b}, who was"
        ' waiting. ["Only a little farther," {a.he} told {a.himself}.|So {a.he} walked a little'
        " faster.]",
        "It was almost [dark|night] when {a} knocked at the door. {b} was [lying in bed|sitting by"
        ' the stove] with a pale face. But when {b.he} saw {t.the}, {b.he} smiled. "[You really'
        ' came|You kept your word]," said {b}. "[All that way, just for me|I knew that you would'
        ' come]."',
        "{a} made tea and stayed until {b} [felt better|was well again]. <thanked> [Soon {b} was"
        " on {b.his} feet again|After a few days {b} could laugh again]. <lesson>",
    ),
    variants=(
        {
            "obstacle": "Soon {a.he} came to a stream, and the stepping stones were under water.",
            "way": (
                '"There is a fallen tree a little way up," said {c}, and {c.he} led {a} to it. It'
                " was as good as a bridge."
            ),
        },
        {
            "obstacle": "Then a heavy rain began, and the path turned into mud.",
            "way": (
                '"I know a dry way under the rocks," said {c}, and {c.he} showed {a} a tunnel that'
                " led through the hill."
            ),
        },
        {
            "obstacle": "After an hour the path split in three, and there was no sign.",
            "way": ('"Take the path in the middle," said {c}. "The others lead you around in a circle."'),
        },
        {
            "obstacle": "A wall of thorns had grown across the way.",
            "way": (
                '"There is a small gap over here," said {c}, and {c.he} held the thorns aside'
                " until {a} had crept through."
            ),
        },
    ),
    rules={
        "thanked": '["Thank you, {a}," said {b}.|{b} thanked {a} with all {b.his} heart.]',
    },
    third="animal",
    seasons="spring summer autumn",
)

WISH = Plot(
    theme="being content",
    things="solid",
    titles=(
        "the wish",
        "{a} and the magic {t}",
        "the magic {t}",
        "three days of wishes",
    ),
    paragraphs=(
        "<day>, {a} found {t.a} {q.at}. [|<sense>] {a} rubbed the dirt off it, and [a tiny voice|a"
        ' silvery voice] spoke. "[I can grant you one wish|You may make one wish], and you may'
        ' take it back once," said the voice. "Choose well."',
        '{a} ran to {b.intro}. "What should I wish for?" asked {a}. "[Think about it for a'
        ' night|Wait until you know what you need]," said {b}. But {a} could not wait. "<wish>"'
        " cried {a}.",
        "There was a [flash|soft ringing sound], and the wish came true. <good> [At first it was"
        " wonderful.|For a whole day, {a} was delighted.]",
        'But then <bad> {c.intro} came to [visit|see {a}]. "[You do not look happy,"|What is the'
        ' matter with you?"] said {c}. "[I thought that I would be happy|I have what I wanted],'
        ' but [I am not|it is not what I thought]," said {a}. <sad>',
        '{b} came and sat down next to {a}. "[What did you have before that you miss now|What do'
        ' you miss the most]?" asked {b}. {a} thought about it. "<miss>" {a.he} said quietly.'
        ' "[Then you know what to wish for|Then take your wish back]."',
        "So {a} held {t.the} in {a.his} {a.hands} and took the wish back. [Everything was as it"
        " had been.|There was another flash, and all was as before.] {t.The} turned into [an"
        " ordinary stone|dust and blew away|a leaf].",
        "{a} was not sad about it at all. [{a.He} invited {b} and {c} for supper|{a.He} went"
        " outside and breathed in the fresh air], and nothing had ever been so good. <lesson>",
    ),
    variants=(
        {
            "wish": "I wish for a house as big as a castle!",
            "good": "Where {a}'s home had been stood a house with a hundred rooms.",
            "bad": "{a} walked from room to room, and {a.he} heard only {a.his} own steps.",
            "miss": "My own small home, where my friends could sit close together,",
        },
        {
            "wish": "I wish that it would never be night again!",
            "good": "The sun stood still, and {a} could play for as long as {a.he} liked.",
            "bad": "nobody could sleep, the flowers dried up, and everyone was tired and cross.",
            "miss": "The stars, and a good long sleep,",
        },
        {
            "wish": "I wish for all the cake in the world!",
            "good": "There was cake on the table, cake on the bed and cake up to the roof.",
            "bad": "{a}'s stomach hurt, and {a.he} could not look at cake any more.",
            "miss": "Plain bread and a sour apple, and being hungry for them,",
        },
        {
            "wish": "I wish that I never had to work again!",
            "good": "The floor swept itself, and the soup cooked itself.",
            "bad": ("the days grew long and empty, and {a} did not know what to do with {a.himself}."),
            "miss": "The feeling when a job is done and I have done it well,",
        },
        {
            "wish": "I wish that everyone would do what I say!",
            "good": "When {a} said that it was time to sing, all of {town} sang.",
            "bad": "nobody ever told {a} the truth or laughed with {a.him} any more.",
            "miss": "A friend who says no to me when I am wrong,",
        },
    ),
)

PLOTS = (BRIDGE, ERRAND, WISH)
