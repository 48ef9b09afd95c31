"""Plots about tasks: to find, to mend, to grow, to bring through a storm. make_corpus.py explains the notation."""

LOST = [
    [
        "{hero} had {a treasure} that {elder} had given {him}, and {he} took it everywhere.",
        "What {hero} loved most in the world was {a treasure}, a present from {elder}.",
        "On {his} last birthday, {hero} had got {a treasure} from {elder}.",
    ],
    [
        "But that day {he} looked into {his} bag, and the {treasure} was gone.",
        "But when {he} came home from the {wild}, the {treasure} was no longer there.",
        "One moment the {treasure} was on the table, and the next moment it had disappeared.",
    ],
    [
        "{He} looked under the bed, behind the door and in the {spot}, but {he} found nothing.",
        "{He} searched [all day|until dark|every corner of the {spot}], and {he} [began to cry|grew sad].",
        "{He} asked everybody in {town}, but nobody had seen it.",
    ],
    [
        '"[What is the matter|Why are you so sad|What have you lost]?" asked {friend}.',
        '{friend} saw {his} face and asked, "[What happened|What is wrong|Have you been crying]?"',
    ],
    [
        '"I have lost my {treasure}," said {hero}, "and [I do not know where|it is my fault|{elder} will be angry]."',
        '"My {treasure} is gone," {hero} answered, "and I have looked everywhere."',
    ],
    [
        '"Then we will look together," said {friend}, "because four eyes see more than two."',
        '"[Think|Try to remember]," said {friend}. "Where did you have it last?"',
        '{friend} took {a tool} and said, "Come, we will start where you were this morning."',
    ],
    [
        "They went back along the [path|road|river], step by step, and looked under every stone.",
        "They followed the path into the {wild}, although it was getting dark.",
        "They walked slowly through the {wild}, until they heard a noise above them.",
    ],
    [
        "There, high up in a tree, sat a crow, and beside it something was shining.",
        "There, in the grass, lay the {treasure}, and {a animal} was sleeping on it.",
        "At last {friend} saw something shining in the mud, and it was the {treasure}.",
    ],
    [
        "{hero} was so happy that {he} [danced in a circle|hugged {friend}|could not say a word].",
        '"[You found it|There it is]!" cried {hero}, and {he} laughed for the first time that day.',
    ],
    [
        "After that, {he} sewed a button on {his} pocket, so that nothing could fall out again.",
        "{He} gave {friend} half of {his} {food}, because a friend who helps is worth more than {a treasure}.",
        "{He} learned to look after {his} things, and to ask for help when {he} needed it.",
    ],
]

STORM = [
    [
        "In the afternoon the sky over the {wild} turned black.",
        '{Elder} looked at the clouds and said, "[A storm is coming|I do not like that sky|The birds fly low]."',
        "The wind grew stronger and stronger, and the {animal} began to [hide|tremble|make a terrible noise].",
    ],
    [
        "{friend} was still out in the {wild}, looking for {friend_his} {animal}.",
        "{friend} had gone fishing at the river, and nobody had seen {friend_him} since noon.",
        "The door of the barn was open, and the {animal} had run away in fear.",
    ],
    [
        "Then the rain began, so heavy that one could not see the other side of the street.",
        "Lightning struck the old tree beside the church, and all the lamps in {town} went out.",
        "The river rose higher and higher, until the water stood at the door.",
    ],
    [
        '"Somebody must go," said {hero}, and {he} took {a tool} and {a treasure}.',
        '"Stay here," said {elder}, but {hero} had already put on {his} coat.',
        '"We cannot just sit and wait," said {hero}. "Give me the {tool}."',
    ],
    [
        "{He} fought {his} way through the wind, step by step, holding on to the fences.",
        "{He} called and called, but the storm was louder than {his} voice.",
        "Twice {he} fell into the mud, and twice {he} got up again.",
    ],
    [
        "At last {he} heard somebody calling from the old bridge.",
        "Behind the mill {he} saw a small light, and it was moving.",
        "Then, in a flash of lightning, {he} saw {friend} under a tree.",
    ],
    [
        '"[I hurt my foot|I could not find the way|The path was gone]," said {friend}. "I thought nobody would come."',
        '"You came," said {friend}, and {friend_he} was shaking from the cold.',
    ],
    [
        "{hero} gave {friend} a blanket, and together they found the way back to {town}.",
        "They waited in the old mill until the thunder moved away, and they shared a piece of {food}.",
        "{hero} tied the {tool} around them both, so that neither could be lost.",
    ],
    [
        "The next morning half the roofs of {town} were gone, but everybody was alive.",
        "When they came in at the door, {elder} had made a fire and {food} for three.",
        "In the morning the air was clear, and the whole town came to repair what the wind had broken.",
    ],
]

REPAIR = [
    [
        "One day the {machine} of {elder} stopped working.",
        "The old {machine} had been broken for a year, and nobody in {town} could repair it.",
        "In the middle of the night there was a terrible noise, and then the {machine} stood still.",
    ],
    [
        '"It is too old," said the people. "Throw it away and buy a new one."',
        '"That was the end of it," said {elder}, and {elder_he} looked very sad.',
    ],
    [
        '"Let me try," said {hero}. "[I have nothing to lose|What is broken cannot get worse]."',
        "But {hero} had always wanted to know what a {machine} looks like inside.",
    ],
    [
        "{He} took it apart and laid all the pieces on the floor, one beside the other.",
        "{He} opened it carefully, and out fell dust, a dead spider and a small {part}.",
    ],
    [
        "{He} cleaned every piece, and then {he} saw it: the {part} was broken.",
        "One {part} was missing, and without it nothing could turn.",
        "Everything was in order but one small {part}, which was bent.",
    ],
    [
        "{friend} had an old {part} from another {machine}, and they tried to make it fit.",
        '"I can make a new one," said {friend}, who was good with {friend_his} hands.',
        "They asked the smith for {a part}, and the smith gave them one for a bottle of milk.",
    ],
    [
        "It was too big, so they filed it down, a little at a time, for two days.",
        "The first try failed, and so did the second, but the third one held.",
    ],
    [
        "Then {hero} put everything back, and to {his} surprise no piece was left over.",
        "At last {hero} turned the handle, and everybody held their breath.",
    ],
    [
        "First nothing happened, and then, slowly, the {machine} began to move.",
        'There was a click, and another click, and then it ran. "It works!" cried {friend}.',
    ],
    [
        '"How did you do that?" asked {elder}. "I looked," said {hero}, "until I understood."',
        "From then on people came from everywhere with their broken things.",
        "{Elder} gave them {food}, and {elder_his} {machine} has been running ever since.",
    ],
]

JOURNEY = [
    [
        "{hero} had never been farther than the next village, but now {he} had to bring a letter to {elder}.",
        "One day a message came for {hero}: {elder} was waiting on the other side of the {wild}.",
        "{hero} had always wanted to know what lay behind the {wild}.",
    ],
    [
        "{He} packed {a tool}, a blanket and some {food}, and went off before sunrise.",
        "{His} mother gave {him} {food} for three days, and {friend} gave {him} {a treasure} for luck.",
    ],
    [
        '"Follow the river," said {friend}, "and do not leave the path."',
        '"May I come with you?" asked {friend}, and so they went together.',
        '"Be careful in the {wild}," said {friend}. "It is easy to go in and hard to come out."',
    ],
    [
        "The first day was easy, because the road was wide and the sun was shining.",
        "For a whole day {he} met nobody but {a animal}, which followed {him} for a while.",
    ],
    [
        "On the second day the path was gone, and the fog was so thick that {he} could not see {his} own feet.",
        "Then {he} came to a river without a bridge, and the water was deep and cold.",
        "In the evening {he} came to a place where the road went three ways, and there was no sign.",
    ],
    [
        "{He} sat down on a stone and was about to turn back.",
        "{He} was tired and hungry, and {he} thought of {his} warm bed at home.",
    ],
    [
        "Then {he} saw {a animal}, and it looked as if it knew the way.",
        "But {he} remembered what {elder} always said: when you do not know the way, ask.",
        "But then {he} heard a bell, far away, and {he} walked toward the sound.",
    ],
    [
        "A shepherd gave {him} a place to sleep, and in the morning showed {him} the way.",
        "{He} found a fallen tree and crossed on it, slowly, with open arms.",
    ],
    [
        "On the third day {he} stood on top of a hill, and below {him} lay the sea.",
        "At last {he} knocked at a blue door, and {elder} opened it.",
    ],
    [
        '"You came all this way on your own?" said {elder}, and {elder_he} could hardly believe it.',
        '"How was the journey?" asked {elder}. "Long," said {hero}, "but I would do it again."',
    ],
]

GARDEN = [
    [
        "Behind the house of {hero} there was a piece of ground where nothing grew but stones and weeds.",
        '{Elder} gave {hero} a small bag of seeds and said, "Make something of them."',
    ],
    [
        '"I will plant {plant}," said {hero}. "Here?" asked {friend}. "Nothing grows here."',
        "{hero} had never planted anything, but {he} wanted to grow {plant}.",
    ],
    [
        "First {he} dug up the stones, one after another, and built a low wall with them.",
        "{He} pulled out the weeds until {his} hands were sore.",
    ],
    [
        "Then {he} put the seeds into the earth, gave them water, and waited.",
        "{He} planted the seeds in long straight rows and gave each row a name.",
    ],
    [
        "A week went by, and then another week, and nothing happened.",
        "Every morning {he} went to look, and every morning there was only brown earth.",
    ],
    [
        '"I told you so," said {friend}. "Wait," said {hero}.',
        '"They are dead," said {hero}. "They are only asleep," said {elder}.',
    ],
    [
        "Then it did not rain for a month, and {hero} had to carry water from the river every day.",
        "Then {a animal} broke through the fence and ate half of it.",
    ],
    [
        "{hero} wanted to give up, but {friend} came with {a tool} and helped {him}.",
        "{hero} sat down and cried, but in the evening {he} began again from the beginning.",
    ],
    [
        "And one morning, after a warm rain, there were small green points in the earth.",
        "And when {he} had almost stopped hoping, the first green leaf came up.",
    ],
    [
        "By the end of the summer there were so many {plant} that {he} could give some to everybody.",
        "In the autumn people stopped at the fence to look at the {plant}.",
    ],
    [
        '"How did you do it?" asked {friend}. "I waited," said {hero}, "and I did not stop."',
        "{hero} kept the best seeds in a jar, for the next year.",
    ],
]

BRIDGE = [
    [
        "The river went through the middle of {town}, and the people on one side did not speak to those on the other.",
        "The old bridge of {town} had fallen into the river, and nobody wanted to pay for a new one.",
    ],
    [
        "{hero} lived on the left side, and {friend} lived on the right.",
        "Every day {hero} stood at the water and waved to {friend} on the other side.",
    ],
    [
        '"Why can we not cross?" asked {hero}. "Because of an old quarrel," said {elder}.',
        '"What was the quarrel about?" asked {hero}. {Elder} thought for a while and could not remember.',
    ],
    [
        "So {hero} tied a letter to {a treasure} and threw it across the river.",
        "So {hero} and {friend} made a plan, and they told nobody about it.",
    ],
    [
        "{friend} threw back a rope, and they tied it to two trees.",
        "At night they carried boards and stones to the river, each on one side.",
    ],
    [
        "On the first day they sent {food} across in a basket, and on the second day {a animal}.",
        "It was hard work, and twice the water carried everything away.",
    ],
    [
        "People came to look, first a few and then many, and they began to laugh.",
        "{Elder} saw what they were doing, and the next morning {elder_he} brought {a tool}.",
    ],
    [
        '"If children can do it, we can do it too," said the smith, and took off his coat.',
        "Soon there were thirty people on each side, and nobody knew any longer who had started.",
    ],
    [
        "In the {season} the bridge was finished, and {hero} and {friend} met in the middle.",
        "When the last board was in its place, {hero} was the first who walked across.",
    ],
    [
        "That evening they all ate {food} at one long table, which stood on the bridge.",
        "Only the old quarrel was gone, and nobody missed it.",
    ],
]

LIGHT = [
    [
        "{Elder} looked after the lighthouse, and {hero} was allowed to help.",
        "On a rock near {town} stood a lighthouse, and in it lived {elder}.",
    ],
    [
        '"The light must never go out," {elder} always said. "Somebody out there needs it."',
        "Every night the lamp had to be lit, and every night it had to be watched until morning.",
    ],
    [
        "One day {elder} had to go to {town} and left {hero} alone.",
        "In the {season} {elder} fell ill, and {hero} had to keep the watch alone.",
    ],
    [
        "In the middle of the night a cold wind came up, and the lamp began to flicker.",
        "Shortly before midnight {he} saw that there was almost no oil left.",
    ],
    [
        "{hero} ran down the hundred and twenty steps and looked for oil, but the barrel was empty.",
        "The wind broke a window, and in one moment it was dark.",
    ],
    [
        "Out at sea {he} could see the small red lamp of a ship, and it was coming nearer.",
        "And {friend} was out there in {friend_his} boat, on the way home.",
    ],
    [
        "{He} thought quickly: {he} took the oil from the kitchen, and the butter, and even the candles.",
        "{He} took {a tool}, broke the old table into pieces, and made a fire on the rock.",
    ],
    [
        "It burned, not very brightly, but it burned, and {he} did not close {his} eyes all night.",
        "The flames rose high, and they could be seen from far away.",
    ],
    [
        "In the morning {friend} stood at the door, wet and alive.",
        '"I saw your light," said {friend}, "when I had already given up hope."',
    ],
    [
        '"You used up everything I had," said {elder}. "Yes," said {hero}. "Good," said {elder}.',
        "{Elder} gave {him} {a treasure}, and from then on they kept the watch together.",
    ],
]
