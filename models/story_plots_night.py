"""Plot skeletons: noises, fog, gifts and tricks."""

from __future__ import annotations

from models.story_types import Plot

NOISE = Plot(
    theme="new friends",
    things="lamp",
    titles=(
        "the strange noise",
        "{a} and the strange noise",
        "something in the {q.noun}",
    ),
    paragraphs=(
        "One night in {season}, {a} woke up. There was a strange noise outside. <noise> {a} pulled"
        ' the blanket over {a.his} head. "[What can that be|Is it a monster|Could it be a ghost]?"'
        " {a.he} thought.",
        "The next night it came again, and the night after that. [Soon all of {town} was talking"
        ' about it.|Nobody in {town} could sleep.] "It must be a [monster with three'
        ' heads|ghost|wild beast]," people said. [They locked their doors and closed their'
        " windows.|Nobody dared to go out.]",
        '{a} went to see {b.intro}. "[I want to know what it is|I am tired of being afraid]," said'
        ' {a}. "[Then let us look together|I will come with you]," said {b}. That evening, they'
        " took {t.a} and waited [by the gate|behind a wall].",
        "At midnight they heard it. <noise> It came from the {q.noun}. {a} and {b} crept closer,"
        " step by step. [{a} held {b}'s {b.hand} tightly.|{t.The} flickered in the wind.] Then {a}"
        " lifted {t.the} high.",
        'There sat {c.intro}, [small and shivering|all alone]. <reason> "[Please do not be angry|I'
        ' did not mean to frighten anyone]," said {c}. "I did not know that anyone could hear me."',
        '{a} [put down {t.the} and smiled|had to laugh, because {a.he} was so relieved]. "[We'
        ' thought that you were a monster," {a.he} said. "A monster? Me?"|We were all afraid of'
        ' you," {a.he} said. "And I was afraid of you,"] said {c}. <help>',
        "The next day, {a} and {b} took {c} to {town}, and everyone came to see the monster that"
        " was no monster. [They brought warm bread and a soft blanket.|The children cheered.] {c}"
        " stayed, and {c.he} soon had more friends than {c.he} could count. <lesson>",
    ),
    variants=(
        {
            "noise": "[Tap, tap, tap|Knock, knock, knock], it went, and then it was quiet again.",
            "reason": (
                "{c.He} was trying to build a little hut, and {c.he} had only a stone to hammer with."
            ),
            "help": "Then they helped {c} to finish the hut.",
        },
        {
            "noise": "It was a long, low [howl|moan] that rose and fell.",
            "reason": ("{c.He} was far from home, and {c.he} was crying because {c.he} felt so alone."),
            "help": ('"Nobody should be alone at night," said {b}, and they took {c} home with them.'),
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
    third="animal",
)

FOG = Plot(
    theme="listening",
    things="solid",
    titles=(
        "lost in the fog",
        "{a} loses the way",
        "the voice in the fog",
        "{a} and the {t}",
    ),
    paragraphs=(
        "<day>, {a} wanted to take {t.a} to {c.intro}, who lived on the other side of the"
        ' {q.side}. Before {a.he} left, {a.he} met {b.intro}. "[Stay on the path|Keep to the'
        ' path]," said {b}, "and if the fog comes, stop and [listen|wait]." "[Yes, yes|I know the'
        ' way]," said {a}, but {a.he} was hardly listening.',
        "<walk> After a while, {a} saw [a shiny coin|a bright bird|something that glittered] a"
        ' little way off the path. "[Just a few steps|It will only take a minute]," thought {a}.'
        " {a.He} went a few steps, and then a few more.",
        "When {a} turned around, the path was gone. Thick [gray|white] fog had come up, and"
        " everything looked the same. {a} ran to the left, and then {a.he} ran to the right."
        " [{a.He} only got more lost.|Soon {a.he} did not know where {a.he} was.] <sad>",
        "Then {a} remembered what {b} had said. [{a.He} stopped and stood quite still.|{a.He} sat"
        " down on a stone and closed {a.his} eyes.] {a.He} listened. At first there was nothing."
        " But then, very far away, {a.he} heard <sound>. It was {b}, who had seen the fog and was"
        " <calling> so that {a} could find the way.",
        "{a} walked toward the sound, slowly, [one step at a time|stopping again and again to"
        " listen]. The sound grew louder, and at last {a.he} saw {b} standing [on the path|under a"
        ' tree]. "[There you are|I am so glad to see you]!" cried {b}. "[You did the right'
        ' thing|You listened]."',
        "{b} went with {a} the rest of the way. {c} was very happy to get {t.the}, and {c.he} made"
        " them [tea|hot soup|pancakes]. <thanks> <welcome>",
        "On the way home, {a} [stayed on the path|did not leave the path once]. <lesson>",
    ),
    variants=(
        {
            "sound": "a bell",
            "calling": "ringing the [old|big|little] bell",
        },
        {
            "sound": "[someone calling|a voice]",
            "calling": "calling {a}'s name",
        },
        {
            "sound": "a horn",
            "calling": "blowing a horn",
        },
        {
            "sound": "[someone singing|a song]",
            "calling": "singing as loudly as {b.he} could",
        },
        {
            "sound": "a drum",
            "calling": "beating a drum",
        },
    ),
    seasons="autumn winter spring",
)

GIFT = Plot(
    theme="giving",
    things="gift",
    titles=(
        "a present for {b}",
        "{a} makes a gift",
        "the best present",
        "{b}'s birthday",
    ),
    paragraphs=(
        "{a}'s friend {b} would soon have a birthday. {b.named} had always been good to {a}. \"I"
        ' want to give {b.him} the [best|finest] present in the world," said {a}. But when {a.he}'
        " looked into {a.his} purse, there were only [two small coins|three buttons and a crumb|a"
        " few pennies] in it.",
        '<day>, {a} went to the shop of {c.intro}. In the window stood {t.a}. "[How much is'
        ' it|What does it cost]?" asked {a}. "[Twenty coins|A silver coin|Ten coins]," said {c}.'
        " {a} looked down at {a.his} {a.hands}. <sad>",
        'But {a} did not give up. "[May I work for you|Can I help in your shop]?" {a.he} asked.'
        ' {c} thought about it. "[I will teach you to make one yourself|You may use my tools and'
        ' the scraps behind the shop]," {c.he} said, "if you sweep the floor every evening."',
        "So {a} swept the floor every evening, and afterward {a.he} worked on the present. The"
        " first try was [crooked|a mess]. The second one [fell apart|was too small]. {a} sighed,"
        ' but {c} said: "[Every master was a beginner once|Take your time, and try again]."',
        "The third one was [just right|not perfect, but it was pretty]. {a} looked at {t.the} and"
        " felt [proud|warm inside]. {a.He} [wrapped it in paper|tied a ribbon around it] and ran"
        " to {b}'s home.",
        "[Many guests had come|There were many presents on the table], and some of the presents"
        " were [big and expensive|made of silver]. {a} felt shy. But when {b} opened the little"
        ' parcel, {b.his} eyes grew wet. "[You made this yourself|Did you make this with your own'
        ' {a.hands}]?" asked {b}. {a} nodded.',
        '"It is the [nicest|finest] present of all," said {b}, "[because you gave me your'
        ' time|because there is a piece of you in it]." <glad> {b} kept {t.the} for [many'
        " years|the rest of {b.his} life]. <lesson>",
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
    paragraphs=(
        "{a} had {t.a}, and {a.he} carried it with {a.him} wherever {a.he} went. <day>, {a.he} was"
        " resting {q.at} when {c.intro} sat down beside {a.him}. But {c} was not as nice as {c.he}"
        " seemed.",
        '"What {t.a} you have!" said {c}. "[But do you know that it is cursed|But does it not look'
        " a bit dull|But is it not too heavy for you]? [Give it to me, and I will make it twice as"
        ' beautiful|Lend it to me until tonight, and I will bring you two of them]." {a} [believed'
        " every word|was too trusting] and gave {t.the} away.",
        "{a} waited until [evening|the stars came out], but {c} did not come back. [Then {a}"
        ' understood that {c.he} had tricked {a.him}.|"I have been a fool," said {a}.] <sad>',
        'On the way home, {a} met {b.intro}. <why_sad> <tell> {b} thought for a while. "[I have an'
        ' idea|I know what we can do]," {b.he} said. "[Someone who plays tricks can be'
        ' tricked|Greedy people always want more]."',
        "The next day, {b} walked past {c}'s place with a big [box|sack] and talked loudly to"
        ' {b.himself}. "[I have so many treasures here|This box is full of treasure]," said {b},'
        ' "[but I will only give them to someone who can show me {t.a}|but I will only trade it'
        ' for {t.a}]." {c} came running at once. "[Here is one|Look, I have one]!" {c} cried, and'
        " {c.he} gave {t.the} to {b}.",
        "When {c} opened the [box|sack], it was full of [stones|dry leaves|old socks]. {c} stared."
        ' "You tricked me!" said {c}. "[How does it feel?"|Now you know how {a} felt,"] said {b}'
        ' calmly. {c} [looked at the ground|turned red]. "Not good," {c.he} said in a small voice.'
        ' "I am sorry."',
        "{a} got {t.the} back, and because {c} was truly sorry, {a} forgave {c.him}. [They even"
        " invited {c} to supper.|After that, {c} used {c.his} clever head for better things.]"
        " <thanks> <lesson>",
    ),
    third="animal",
)

PLOTS = (NOISE, FOG, GIFT, TRICK)
