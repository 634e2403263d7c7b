"""Plot skeletons, second part: gardens, noises, fog, gifts, tricks, bridges, errands and wishes."""

from __future__ import annotations

from story_types import Plot

_WARM = "spring summer autumn"

GARDEN = Plot(
    theme="patience",
    things="plant",
    titles=("{a} and the {t}", "the little seed", "{a}'s garden", "the {t}"),
    seasons="spring",
    paragraphs=(
        '<day>, {b.intro} gave {a} a small brown seed. "[Plant it and look after it|Put it into the'
        ' earth and wait]," said {b}. "[One day you will be surprised|Something fine will grow from'
        ' it]." {a} dug a hole [behind the house|in the sunniest spot], put in the seed and watered it.',
        "The next morning, {a} ran out to look. There was nothing. The day after, there was [still"
        ' nothing|only bare earth]. "[It will never grow|It must be a bad seed]," said {a}. "[Give it'
        ' time|Wait a little longer]," said {b}. "[A seed cannot be hurried|It is working where you'
        ' cannot see it]."',
        "So {a} waited and watered. [One rainy morning|After two weeks|At last], a tiny green tip [poked"
        " out of the ground|stood in the wet earth]. <glad> Day by day, {t.the} grew a little bigger.",
        "But then <danger> {a} [did not give up|knew what {a.he} had to do]. <care> {b} [came and"
        " helped|brought an extra pair of {b.hands}], and together they saved {t.the}.",
        "[Summer came|The weeks went by], and {t.the} grew tall and strong. {c.intro} stopped at the fence."
        ' "I have never seen {t.a} as [fine|beautiful] as this one," said {c}. "[How did you do'
        ' that|What is your secret]?" {a} laughed. "[Water, sun and a lot of waiting|I waited, and I did'
        ' not give up]," {a.he} said.',
        "[In the end|That autumn], {a} gathered a handful of new seeds. {a.He} gave some to {b} and some to"
        " {c}, and kept the rest for [next spring|the year to come]. <thanks> <lesson>",
    ),
    variants=(
        {
            "danger": "the rain stopped for [many weeks|a whole month], and the leaves hung down.",
            "care": "Every morning and every evening, {a.he} carried water from the [well|stream].",
        },
        {
            "danger": "a hungry crowd of snails came in the night and nibbled the leaves.",
            "care": "{a.He} picked up the snails one by one and carried them to the far end of the field.",
        },
        {
            "danger": "a late frost came, and the night was bitterly cold.",
            "care": "{a.He} wrapped the stem in straw and covered it with an old blanket.",
        },
        {
            "danger": "a strong wind bent the stem until it almost broke.",
            "care": "{a.He} pushed a stick into the ground and tied the stem to it with soft string.",
        },
    ),
)

NOISE = Plot(
    theme="new friends",
    things="lamp",
    titles=("the strange noise", "{a} and the strange noise", "something in the {q.noun}"),
    third="animal",
    paragraphs=(
        "One night in {season}, {a} woke up. There was a strange noise outside. <noise> {a} pulled the"
        ' blanket over {a.his} head. "[What can that be|Is it a monster|Could it be a ghost]?" {a.he}'
        " thought.",
        "The next night it came again, and the night after that. [Soon all of {town} was talking about"
        ' it.|Nobody in {town} could sleep.] "It must be a [monster with three heads|ghost|wild beast],"'
        " people said. [They locked their doors and closed their windows.|Nobody dared to go out.]",
        '{a} went to see {b.intro}. "[I want to know what it is|I am tired of being afraid]," said {a}.'
        ' "[Then let us look together|I will come with you]," said {b}. That evening, they took {t.a} and'
        " waited [by the gate|behind a wall].",
        "At midnight they heard it. <noise> It came from the {q.noun}. {a} and {b} crept closer, step by"
        " step. [{a} held {b}'s {b.hand} tightly.|{t.The} flickered in the wind.] Then {a} lifted {t.the}"
        " high.",
        'There sat {c.intro}, [small and shivering|all alone]. <reason> "[Please do not be angry|I did not'
        ' mean to frighten anyone]," said {c}. "I did not know that anyone could hear me."',
        '{a} [put down {t.the} and smiled|had to laugh, because {a.he} was so relieved]. "[We thought that'
        ' you were a monster|And we were all afraid of you]," {a.he} said. "[I was afraid of you'
        ' too|Of me]?" said {c}. <help>',
        "The next day, {a} and {b} took {c} to {town}, and everyone came to see the monster that was no"
        " monster. [They brought warm bread and a soft blanket.|The children cheered.] {c} stayed, and"
        " {c.he} soon had more friends than {c.he} could count. <lesson>",
    ),
    variants=(
        {
            "noise": "[Tap, tap, tap|Knock, knock, knock], it went, and then it was quiet again.",
            "reason": "{c.He} was trying to build a little hut, and {c.he} had only a stone to hammer"
            " with.",
            "help": "Then they helped {c} to finish the hut.",
        },
        {
            "noise": "It was a long, low [howl|moan] that rose and fell.",
            "reason": "{c.He} was far from home, and {c.he} was crying because {c.he} felt so alone.",
            "help": '"Nobody should be alone at night," said {b}, and they took {c} home with them.',
        },
        {
            "noise": "Something [rattled and clanked|scraped and rattled] in the darkness.",
            "reason": "{c.His} foot was caught in an old tin can, and {c.he} could not get it off.",
            "help": "{b} held the can, {a} pulled, and with a pop it came off.",
        },
        {
            "noise": "It sounded like someone [singing without words|humming a sad tune].",
            "reason": "{c.He} was practicing a song, but {c.he} was too shy to sing by day.",
            "help": '"Your song is beautiful," said {b}. "Sing it for all of us tomorrow."',
        },
    ),
)

FOG = Plot(
    theme="listening",
    things="solid",
    titles=("lost in the fog", "{a} loses the way", "the voice in the fog", "{a} and the {t}"),
    seasons="autumn winter spring",
    paragraphs=(
        "<day>, {a} wanted to take {t.a} to {c.intro}, who lived on the other side of the {q.side}."
        ' Before {a.he} left, {a.he} met {b.intro}. "[Stay on the path|Keep to the path]," said {b}, "and'
        ' if the fog comes, stop and [listen|wait]." "[Yes, yes|I know the way]," said {a}, but {a.he}'
        " was hardly listening.",
        "<walk> After a while, {a} saw [a row of fine mushrooms|a bright bird|something that glittered] a"
        ' little way off the path. "[Just a few steps|It will only take a minute]," thought {a}. {a.He} went'
        " a few steps, and then a few more.",
        "When {a} turned around, the path was gone. Thick [gray|white] fog had come up, and everything"
        " looked the same. {a} ran to the left, and then {a.he} ran to the right. [{a.He} only got more"
        " lost.|Soon {a.he} did not know where {a.he} was.] <sad>",
        "Then {a} remembered what {b} had said. [{a.He} stopped and stood quite still.|{a.He} sat down on a"
        " stone and closed {a.his} eyes.] {a.He} listened. At first there was nothing. But then, very far"
        " away, {a.he} heard <sound>. It was {b}, who had seen the fog and was"
        " <calling> so that {a} could find the way.",
        "{a} walked toward the sound, slowly, [one step at a time|stopping again and again to listen]. The"
        ' sound grew louder, and at last {a.he} saw {b} standing [on the path|under a tree]. "[There you'
        ' are|I am so glad to see you]!" cried {b}. "[You did the right thing|You listened]."',
        "{b} went with {a} the rest of the way. {c} was very happy to get {t.the}, and {c.he} made them"
        " [tea|hot soup|pancakes]. <thanks> <welcome>",
        "On the way home, {a} [stayed on the path|did not leave the path once]. <lesson>",
    ),
    variants=(
        {"sound": "a bell", "calling": "ringing the [old|big|little] bell"},
        {"sound": "[someone calling|a voice]", "calling": "calling {a}'s name"},
        {"sound": "a horn", "calling": "blowing a horn"},
        {"sound": "[someone singing|a song]", "calling": "singing as loudly as {b.he} could"},
        {"sound": "a drum", "calling": "beating a drum"},
    ),
)

GIFT = Plot(
    theme="giving",
    things="gift",
    titles=("a present for {b}", "{a} makes a gift", "the best present", "{b}'s birthday"),
    paragraphs=(
        "{a}'s friend {b} would soon have a birthday. {b.named} had always been good to {a}. \"I want to"
        ' give {b.him} the [best|finest] present in the world," said {a}. But when {a.he} looked into'
        " {a.his} purse, there were only [two small coins|three buttons and a crumb|a few pennies] in it.",
        '<day>, {a} went to the shop of {c.intro}. In the window stood {t.a}. "[How much is it|What does it'
        ' cost]?" asked {a}. "[Twenty coins|A silver coin|Ten coins]," said {c}. {a} looked down at'
        " {a.his} {a.hands}. <sad>",
        'But {a} did not give up. "[May I work for you|Can I help in your shop]?" {a.he} asked. {c} thought'
        ' about it. "[I will teach you to make one yourself|You may use my tools and the scraps behind the'
        ' shop]," {c.he} said, "if you sweep the floor every evening."',
        "So {a} swept the floor every evening, and afterward {a.he} worked on the present. The first try was"
        ' [crooked|a mess]. The second one [fell apart|was too small]. {a} sighed, but {c} said: "[Every'
        ' master was a beginner once|Take your time, and try again]."',
        "The third one was [just right|not perfect, but it was pretty]. {a} looked at {t.the} and felt"
        " [proud|warm inside]. {a.He} [wrapped it in paper|tied a ribbon around it] and ran to {b}'s home.",
        "[Many guests had come|There were many presents on the table], and some of the presents were"
        " [big and expensive|made of silver]. {a} felt shy. But when {b} opened the little parcel, {b.his}"
        ' eyes grew wet. "[You made this yourself|Did you make this with your own {a.hands}]?" asked'
        " {b}. {a} nodded.",
        '"It is the [nicest|finest] present of all," said {b}, "[because you gave me your time|because there'
        ' is a piece of you in it]." <glad> {b} kept {t.the} for [many years|the rest of {b.his} life].'
        " <lesson>",
    ),
)

TRICK = Plot(
    theme="cleverness",
    things="solid",
    titles=(
        "the trick",
        "{c} plays a trick",
        "{a} and the sly {c.kind}",
        "how {b} won back the {t}",
    ),
    third="animal",
    paragraphs=(
        "{a} had {t.a}, and {a.he} carried it with {a.him} wherever {a.he} went. <day>, {a.he} was resting"
        " {q.at} when {c.intro} sat down beside {a.him}. But {c} was not as nice as {c.he} seemed.",
        '"What {t.a} you have!" said {c}. "[But do you know that it is cursed|But does it not look a bit dull'
        "|But is it not too heavy for you]? [Give it to me, and I will make it twice as beautiful|Lend it"
        " to me until tonight, and I will bring you two of them]."
        '" {a} [believed every word|was too'
        " trusting] and gave {t.the} away.",
        "{a} waited until [evening|the stars came out], but {c} did not come back. [Then {a} understood that"
        ' {c.he} had tricked {a.him}.|"I have been a fool," said {a}.] <sad>',
        'On the way home, {a} met {b.intro}. <why_sad> <tell> {b} thought for a while. "[I have an'
        ' idea|I know what we can do]," {b.he} said. "[Someone who plays tricks can be tricked|Greedy people'
        ' always want more]."',
        "The next day, {b} walked past {c}'s place with a big [box|sack] and talked loudly to {b.himself}."
        ' "[I have so many treasures here|This box is full of treasure]," said {b}, "[but I will only give'
        ' them to someone who can show me {t.a}|but I will only trade it for {t.a}]." {c} came running at'
        ' once. "[Here is one|Look, I have one]!" {c} cried, and {c.he} gave {t.the} to {b}.',
        'When {c} opened the [box|sack], it was full of [stones|dry leaves|old socks]. {c} stared. "You'
        ' tricked me!" said {c}. "[How does it feel|Now you know how {a} felt]," said {b} calmly. {c}'
        ' [looked at the ground|turned red]. "Not good," {c.he} said in a small voice. "I am sorry."',
        "{a} got {t.the} back, and because {c} was truly sorry, {a} forgave {c.him}. [They even invited {c}"
        " to supper.|After that, {c} used {c.his} clever head for better things.] <thanks> <lesson>",
    ),
)

BRIDGE = Plot(
    theme="working together",
    things="food",
    titles=("the bridge", "the new bridge of {town}", "three friends build a bridge"),
    seasons=_WARM,
    helper="strong",
    paragraphs=(
        "Near {town} there was an old bridge over the river. <day>, after [three days of rain|a long night of"
        " rain], the water rose higher and higher, and [with a loud crash|in the middle of the night] the"
        " bridge was swept away. On the other side lay the [mill|school|market], and nobody could reach it.",
        '"[We have to wait until somebody builds a new one|There is nothing we can do]," people said. But {a}'
        " did not want to wait. {a.He} [dragged a plank to the river|carried a long board to the bank] and"
        " tried to lay it across. It was [far too short|much too short], and the river carried it away.",
        '{b.intro} saw it. "You cannot build a bridge alone," said {b}. "[But I am strong|But my back is'
        ' strong], and I can carry the heavy logs." Then {c.intro} came along. "[I cannot carry'
        ' much|I am not strong], but I [can tie good knots|have a very long rope|know how to measure],"'
        " said {c}.",
        '"And what can I do?" asked {a}. "[You had the idea|You were the first one to try]," said {b}. "You'
        ' can tell us where each piece should go." So {a} drew a plan [in the sand|on a flat stone] with a'
        " stick.",
        "{b} carried the logs, {c} tied them together, and {a} [ran from one to the other and helped|hammered"
        " in the pegs]. [It was hard work.|Twice a log rolled into the water, and they had to start again.]"
        " When they were hungry, they shared {t.a}, and then they went on.",
        "On the [third|fifth|fourth] day, the last plank was in place. {a} was the first to cross. [The bridge"
        ' did not even shake.|The wood creaked, but it held.] <glad> All of {town} came running. "Who built'
        ' this?" they asked. "[We did|All three of us]," said {a}.',
        "They hung a small sign on the bridge with three names on it: {a}, {b} and {c}. <feast> <lesson>",
    ),
)

ERRAND = Plot(
    theme="keeping a promise",
    things="solid",
    titles=("the promise", "{a} keeps a promise", "a {t} for {b}", "the long way to {b}"),
    seasons=_WARM,
    third="animal",
    paragraphs=(
        "{b.intro} lived on the far side of the {q.side}, and {a} was very fond of {b.him}. <day>, a letter"
        ' came. "[I am ill and must stay in bed|I have hurt my leg and cannot go out]," wrote {b}. "I would'
        ' feel better if I had my {t} with me. I left it in {town}." {a} wrote back: "I promise that you will'
        ' have it by [tonight|sunset|tomorrow night]."',
        '{a} packed {t.the} and set out at once. <walk> <obstacle> "[Maybe I should turn back|It is too'
        ' hard]," thought {a}. "But I gave my word."',
        '[Just then|At that moment], {c.intro} [looked out from behind a stone|came down the path]. "[Where'
        ' are you going in such a hurry|What brings you here]?" {c.he} asked. "I promised to bring {t.the} to'
        ' my friend," said {a}, "and I do not know how to go on." <way>',
        "{a} thanked {c} and walked on. [{a.His} feet hurt, and {a.his} stomach was empty.|The sun sank lower"
        ' and lower.] {a.He} wanted to rest, but {a.he} thought of {b}, who was waiting. ["Only a little'
        ' farther," {a.he} told {a.himself}.|So {a.he} walked a little faster.]',
        "It was almost [dark|night] when {a} knocked at the door. {b} was [lying in bed|sitting by the stove]"
        ' with a pale face. But when {b.he} saw {t.the}, {b.he} smiled. "[You really came|You kept your'
        ' word]," said {b}. "[All that way, just for me|I knew that you would come]."',
        "{a} made tea and stayed until {b} [felt better|was well again]. <thanked> [Soon {b} was on {b.his}"
        " feet again|After a few days {b} could laugh again]. <lesson>",
    ),
    rules={
        "thanked": '["Thank you, {a}," said {b}.|{b} thanked {a} with all {b.his} heart.]',
    },
    variants=(
        {
            "obstacle": "Soon {a.he} came to a stream, and the stepping stones were under water.",
            "way": '"There is a fallen tree a little way up," said {c}, and {c.he} led {a} to it. It was as'
            " good as a bridge.",
        },
        {
            "obstacle": "Then a heavy rain began, and the path turned into mud.",
            "way": '"I know a dry way under the rocks," said {c}, and {c.he} showed {a} a tunnel that led'
            " through the hill.",
        },
        {
            "obstacle": "After an hour the path split in three, and there was no sign.",
            "way": '"Take the path in the middle," said {c}. "The others lead you around in a circle."',
        },
        {
            "obstacle": "A wall of thorns had grown across the way.",
            "way": '"There is a small gap over here," said {c}, and {c.he} held the thorns aside until {a}'
            " had crept through.",
        },
    ),
)

WISH = Plot(
    theme="being content",
    things="solid",
    titles=("the wish", "{a} and the magic {t}", "the magic {t}", "three days of wishes"),
    paragraphs=(
        "<day>, {a} found {t.a} {q.at}. [|<sense>] {a} rubbed the dirt off it, and [a tiny voice"
        '|a silvery voice] spoke. "[I can grant you one wish|You may make one wish], and you may take it back'
        ' once," said the voice. "Choose well."',
        '{a} ran to {b.intro}. "What should I wish for?" asked {a}. "[Think about it for a night|Wait until you'
        ' know what you need]," said {b}. But {a} could not wait. "<wish>" cried {a}.',
        "There was a [flash|soft ringing sound], and the wish came true. <good> [At first it was wonderful.|For a"
        " whole day, {a} was delighted.]",
        'But then <bad> {c.intro} came to [visit|see {a}]. "[You do not look happy|What is the matter with you],"'
        ' said {c}. "[I thought that I would be happy|I have what I wanted], but [I am not|it is not what I'
        ' thought]," said {a}. <sad>',
        '{b} came and sat down next to {a}. "[What did you have before that you miss now|What do you miss the'
        ' most]?" asked {b}. {a} thought about it. "<miss>" {a.he} said quietly. "[Then you know what to wish'
        ' for|Then take your wish back]."',
        "So {a} held {t.the} in {a.his} {a.hands} and took the wish back. [Everything was as it had been.|There was"
        " another flash, and all was as before.] {t.The} turned into [an ordinary stone|dust and blew away|a leaf].",
        "{a} was not sad about it at all. [{a.He} invited {b} and {c} for supper|{a.He} went outside and breathed in"
        " the fresh air], and nothing had ever been so good. <lesson>",
    ),
    variants=(
        {
            "wish": "I wish for a house as big as a castle!",
            "good": "Where {a}'s home had been stood a house with a hundred rooms.",
            "bad": "{a} walked from room to room, and {a.he} heard only {a.his} own steps.",
            "miss": "My own small home, where my friends could sit close together.",
        },
        {
            "wish": "I wish that it would never be night again!",
            "good": "The sun stood still, and {a} could play for as long as {a.he} liked.",
            "bad": "nobody could sleep, the flowers dried up, and everyone was tired and cross.",
            "miss": "The stars, and a good long sleep.",
        },
        {
            "wish": "I wish for all the cake in the world!",
            "good": "There was cake on the table, cake on the bed and cake up to the roof.",
            "bad": "{a}'s stomach hurt, and {a.he} could not look at cake any more.",
            "miss": "Plain bread and a sour apple, and being hungry for them.",
        },
        {
            "wish": "I wish that I never had to work again!",
            "good": "The floor swept itself, and the soup cooked itself.",
            "bad": "the days grew long and empty, and {a} did not know what to do with {a.himself}.",
            "miss": "The feeling when a job is done and I have done it well.",
        },
        {
            "wish": "I wish that everyone would do what I say!",
            "good": "When {a} said that it was time to sing, all of {town} sang.",
            "bad": "nobody ever told {a} the truth or laughed with {a.him} any more.",
            "miss": "A friend who says no to me when I am wrong.",
        },
    ),
)

PLOTS_TWO = (GARDEN, NOISE, FOG, GIFT, TRICK, BRIDGE, ERRAND, WISH)
