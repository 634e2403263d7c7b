"""Shared grammar rules: openings, links, feelings, thanks and lessons.

The notation: ``[x|y]`` chooses one alternative, ``<rule>`` inserts a rule, ``{a.he}`` is a slot.
Slots: a is the hero, b the helper, c the third character, t the thing and q the place.
"""

from __future__ import annotations

RULES: dict[str, str] = {
    "opening": (
        "[Once upon a time there was {a.intro}. {a.He} lived in {a.home}<inland>."
        "|Once upon a time there was {a.intro} who lived in {a.home}<inland>."
        "|Once upon a time, {land}, there lived {a.intro}. {a.His} home was {a.home}."
        "|There was once {a.intro} who lived in {a.home}<inland>."
        "|In {town}, a [small|quiet|little|sleepy|cheerful] village {land}, lived {a.intro}."
        " {a.His} home was {a.home}."
        "|Long ago, in the [village|town] of {town}, there lived {a.intro}."
        "|{a.intro} lived in {a.home}<inland>."
        "|{a.named} lived in {a.home}<inland>."
        "|{a.named} had lived in {town} for as long as anyone could remember.] <trait>"
    ),
    "inland": "[| near {town}| {land}|, not far from {town}|, just outside {town}]",
    "trait": (
        "[{a.He} [loved|liked] <hobby>[| more than anything else in the world| and <hobby2>]."
        "|Every [morning|evening], {a} liked <hobby>.|Everyone in {town} knew {a.him} well."
        "|{a.His} days were simple and happy.|What {a.he} liked best was <hobby>."
        "|People said that nobody [laughed as loudly|asked as many questions|worked as hard"
        "|dreamed as much|sang as often] as {a}.|{a.He} had [few|many] friends, but {a.he}"
        " treated each of them well.] [|{a.He} was {a.modest}, but {a.he} had a"
        " [big|good|warm] heart.|Life there was [quiet|peaceful], and {a} did not mind that at all.]"
    ),
    "hobby": (
        "to count the clouds|to ask questions|to walk in the rain|to make up songs"
        "|to listen to old tales|to collect round pebbles|to watch the sun go down|to draw maps"
        "|to learn the names of the stars|to build small towers|to whistle new tunes"
        "|to explore quiet paths|to tell jokes|to sort things by color|to dance when nobody looked"
    ),
    "hobby2": (
        "to take long walks|to talk to strangers|to look at the moon|to nap in the sun"
        "|to solve riddles|to hum softly|to visit friends|to cook soup|to plan adventures"
    ),
    "day": (
        "[On {day} [morning|afternoon]|One [morning|day|afternoon] in {season}|One {season}"
        " [morning|afternoon]|Early one {season} morning|One day|On the first day of {season}"
        "|One fine day|On a Tuesday in {season}|Late in {season}]"
    ),
    "link": (
        "[A few days later, {a} was still thinking about what had happened."
        "|The next morning, {a} woke up early and stretched.|A week went by, and all was calm."
        "|After that, life in {town} was quiet for a while.|Some time later, {a} was sitting in"
        " front of {a.home}.|Not long afterward, something new happened to {a}."
        "|{a} slept well that night and woke with the first light.|Three days passed."
        "|The days went by, and {a} went back to {a.his} usual ways.] [|<sky>|<sky>]"
    ),
    "sky": (
        "[The sky was [clear|pale|full of small clouds|blue and wide|gray at first].|The air [smelled"
        " of rain|was fresh|was still|smelled of earth].|A [light|soft|cool] wind was blowing.|Birds"
        " were [singing|calling] [on the roofs|from the trees|everywhere].]"
    ),
    "chapter_end": (
        "[That night, {a} lay awake for a while and listened to the wind.|{a} went to bed early,"
        " tired and [happy|content|glad].|When the stars came out, {a} was already asleep."
        "|{a} did not know yet what the next day would bring.|And so another day in {town} came to"
        " an end.|That evening, {a} thought about {b} and smiled.|It had been a long day, and {a}"
        " was [glad|happy] to be home.]"
    ),
    "walk": (
        "[{a} [set out|started walking|went] {q.to}.|So {a} went {q.to}.|{a} took the [narrow|long"
        "|short|old] way {q.to}.|Before long, {a} came {q.to}.] [|<sense>|<sense>]"
    ),
    "aside": (
        "[Somewhere far away, a bell rang.|A leaf turned in the wind.|For a moment nobody spoke."
        "|A bird called twice and fell silent.|The wind turned a little.|A dog barked in the distance."
        "|It smelled of [wet grass|smoke|moss|hay|earth].|A small [beetle|snail|spider] crept by."
        "|Something rustled in the leaves.|High above, a [crane|crow|flock of geese] flew past."
        "|It was very quiet.|A [moth|fly|feather] drifted past.]"
    ),
    "sense": "{sense1}|{sense2}|{sense3}",
    "sad": (
        "[{a} felt [very sad|miserable|like crying|terrible].|{a}'s heart felt heavy."
        "|A tear ran down {a}'s face.|{a} [sat down|sat on the ground] and sighed."
        "|{a} hung {a.his} head.|{a} swallowed hard and tried not to cry.]"
    ),
    "glad": (
        "[{a} [laughed|cheered|jumped] for joy.|{a} smiled from ear to ear.|{a}'s eyes shone."
        "|{a} was so happy that {a.he} danced in a circle.|{a} felt warm inside."
        "|{a} could hardly believe {a.his} luck.|{a} had never been so [glad|happy|relieved].]"
    ),
    "why_sad": (
        '["[What is wrong|What is the matter|Why are you so sad|Why do you look so sad]?" [asked {b}'
        "|{b} asked].|{b} [looked|stopped and looked] at {a} [kindly|closely|for a moment]."
        ' "You look [sad|troubled|worried]," {b.he} said. "[Tell me what happened.|What is it?|What'
        ' happened?]"]'
    ),
    "tell": (
        "[{a} told {b.him} [everything|the whole story|what had happened].|So {a} told {b.him} the"
        " whole story, from beginning to end.|{a} took a deep breath and explained everything.]"
    ),
    "thanks": (
        '["[Thank you|Thank you so much|Oh, thank you], {b}!" [said|cried|called] {a}. "[I could not'
        " have done it alone.|I will never forget this.|You are a true friend.|How can I ever repay"
        ' you?]"|{a} thanked {b} [again and again|with all {a.his} heart|many times].'
        '|{a} threw {a.his} arms around {b}. "You [saved the day|are wonderful|are the best friend'
        ' anyone could have]," {a.he} said.]'
    ),
    "welcome": (
        '["[You are welcome|It was nothing|I was glad to help|That is what friends are for],"'
        " [said|answered|replied] {b}[| with a smile| and smiled].|{b} only smiled[| and shook"
        ' {b.his} head]. "[Friends help each other|I was happy to help|You would have done the same'
        ' for me]," {b.he} said.|{b} [blushed a little|smiled shyly|nodded] and said that it was'
        " [nothing|no trouble at all].]"
    ),
    "feast": (
        "[That evening, they [ate|shared] {food} together and [told stories|sang songs|laughed"
        " about the day].|They sat down in the [grass|sun] and shared {food}.|They walked home"
        " together, [talking|singing|laughing] all the way.|Then they went to {a.place_home} and"
        " drank [hot tea|cocoa|cool milk|apple juice] until the [moon|stars] came out.]"
    ),
    "friends": (
        "[From that day on, {a} and {b} were [the best of friends|good friends|never far apart]."
        "|After that, {a} visited {b} [every week|every Sunday|often].|And whenever {a} saw {b},"
        " {a.he} remembered that day and smiled.|People in {town} still tell the story of {a} and"
        " {b}.|And {a} never forgot what {b} had done.]"
    ),
    "learned": (
        "[{a} had learned that|And {a} never forgot that|Now {a} knew that|From then on, {a}"
        " understood that|That day taught {a} that|{a} smiled, because now {a.he} knew that]"
    ),
}

LESSONS: dict[str, str] = {
    "asking for help": (
        "<learned> [it is no shame to ask for help|asking for help is also a kind of courage"
        "|even a small friend can solve a big problem|nobody can do everything alone]."
    ),
    "kindness": (
        "<learned> [a kind deed always finds its way back|kindness is never wasted|those who help"
        " others will not stand alone|a small kindness can grow into a great one]."
    ),
    "sharing": (
        "<learned> [food tastes better when it is shared|there is always enough for two|whoever"
        " shares is richer in the end|a shared meal makes a friend]."
    ),
    "honesty": (
        "<learned> [the truth is lighter to carry than a lie|it is better to tell the truth at once"
        "|a mistake can be mended, but only if it is told|honest words keep a friendship strong]."
    ),
    "friendship": (
        "<learned> [no thing is worth more than a friend|it is good to say sorry first|a quarrel"
        " is shorter when both sides listen|friends matter more than being right]."
    ),
    "courage": (
        "<learned> [being brave means going on even when one is afraid|fear grows smaller when one"
        " walks toward it|courage is not the same as having no fear|everyone can be brave for a"
        " friend]."
    ),
    "patience": (
        "<learned> [good things need time|slow and steady steps reach the goal|those who wait"
        " and work are rewarded in the end|patience can do what strength cannot]."
    ),
    "listening": (
        "<learned> [it is wise to listen before walking on|good advice is like a light in the dark"
        "|those who listen do not stay lost for long|it is better to stop and think than to run]."
    ),
    "giving": (
        "<learned> [the best gifts are made with love|giving makes two people happy|a gift does not"
        " need to cost a lot|time is the finest present of all]."
    ),
    "cleverness": (
        "<learned> [a clear head is better than a loud voice|one should think before trusting sweet"
        " words|a good idea can be stronger than force|even a trickster can change]."
    ),
    "working together": (
        "<learned> [many small hands can do great work|together they could do what no one could do"
        " alone|everyone has something to give|work is lighter when friends share it]."
    ),
    "keeping a promise": (
        "<learned> [a promise is worth keeping, even when the way is hard|people trust those who keep"
        " their word|it is good to finish what one has begun|a promise kept makes the heart light]."
    ),
    "being content": (
        "<learned> [the best things were already there|wishes should be chosen with care|one does"
        " not need much to be happy|having everything is not the same as being happy]."
    ),
    "new friends": (
        "<learned> [strange things are often less frightening in the light|a stranger can be a friend"
        " one has not met yet|one should look twice before being afraid|everyone needs a place to"
        " feel at home]."
    ),
}
