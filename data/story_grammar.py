"""The world of the stories: its people, its things, its plots. The notation is explained in make_corpus.py."""

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

PROMISE = [
    [
        "{hero} had promised {elder} to [feed the {animal}|water the {plant}|bring in the {plant}] before dark.",
        "{Elder} was ill, and {hero} had promised to bring {elder_him} some {food}.",
        '"Promise me that you will be home before the bells ring," {elder} had said, and {hero} had promised.',
    ],
    [
        "But on the way {he} met {friend}, who was going to the {feast}.",
        "But then {friend} came by and wanted to show {him} {a treasure}.",
        "But the day was so {weather} that {he} [forgot the time|sat down under a tree and fell asleep].",
    ],
    [
        '"Come with me," said {friend}, "it will [only take a minute|be fun|not be long]."',
        '"You can do that later," said {friend}. "[Later is soon enough|Nobody will notice]."',
    ],
    [
        "{hero} thought about it, and {he} felt that {he} was pulled two ways at once.",
        "{hero} wanted to say yes, but {he} remembered what {he} had promised.",
        "So {hero} went along, and soon {he} had forgotten everything else.",
    ],
    [
        "When the bells of {town} began to ring, {his} heart grew heavy.",
        "Then the sun went down, and {he} remembered {elder}, who was waiting.",
        "A cold wind came from the {wild}, and all at once {he} knew what {he} had to do.",
    ],
    [
        '"I gave my word," said {hero}, "and a word is a word."',
        '"I am sorry," said {hero}, "but I made a promise."',
    ],
    [
        "{He} ran as fast as {he} could, over the bridge and through the {wild}.",
        "{He} took the {tool} and ran home without stopping once.",
        "{He} ran through the rain until {his} shoes were full of water.",
    ],
    [
        "{Elder} was standing at the door with a lamp in {elder_his} hand.",
        "{Elder} was sitting at the window and had [waited|hoped|worried] the whole time.",
    ],
    [
        '"I knew that you would come," said {elder}, "because you said so."',
        '"You are late," said {elder}, "but you are here, and that is what counts."',
        '"I am sorry," said {hero}. "I almost forgot." "Almost is not the same as forgot," said {elder}.',
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

TRADE = [
    [
        "{hero} wanted {a treasure} that was in the window of the shop, but it cost too much.",
        "At the {feast}, {hero} saw {a treasure} that {he} liked more than anything {he} had ever seen.",
    ],
    [
        "All that {he} had was {a tool} and some {food}.",
        "In {his} pockets there were only three coins and a piece of {food}.",
    ],
    [
        '"What will you give me for it?" asked {hero}. "[Not enough|Nothing yet]," said the merchant.',
        '"How much is it?" asked {hero}. "More than you have," said the merchant, and [shook his head|turned away].',
    ],
    [
        "So {hero} went to {elder}, who needed {a tool}, and got two chickens for it.",
        "So {hero} went from door to door and asked what people needed.",
        "Then {he} had an idea: {elder} always wanted {a tool}, and {friend} always had too much {food}.",
    ],
    [
        "{friend} gave {him} {a animal} for the {food}, because {friend_he} could not feed it any longer.",
        "The {food} {he} gave to {friend}, and {friend} gave {him} a warm coat for it.",
    ],
    [
        "With that {he} went to the farmer, who gave {him} ten eggs and a jar of honey.",
        "The farmer was glad to have it, and he paid with a basket of apples.",
    ],
    [
        "In the end {he} stood before the merchant again, with [both arms full|a full basket|more than enough].",
        "By the evening {he} had traded seven times, and {he} went back to the merchant.",
    ],
    [
        '"That is a fair price," said the merchant, and gave {him} the {treasure}.',
        '"You are a better trader than I am," said the merchant, and laughed.',
    ],
    [
        "But when {he} held the {treasure} in {his} hand, {he} saw that {friend} was looking at it with sad eyes.",
        "But on the way home {he} met {friend}, who had nothing at all.",
    ],
    [
        '"Take it," said {hero}. "The best part was the way to it."',
        "So {he} gave it away, and to {his} surprise {he} was happier than before.",
        '"We will share it," said {hero}. "One week it is mine, and one week it is yours."',
    ],
]

CONTEST = [
    [
        "Every year at the {feast} there was a contest in {craft}, and this year {hero} wanted to win.",
        "{Elder} had promised {a treasure} to whoever was best at {craft}.",
    ],
    [
        "{friend} was very good at {craft}, much better than {hero}.",
        "Nobody in {town} was better at {craft} than {friend}, and everybody knew it.",
    ],
    [
        "So {hero} practiced every day, in the morning before school and in the evening after dinner.",
        "{hero} practiced in the {spot}, where nobody could see how often {he} failed.",
        "At first {he} made so many mistakes that even the {animal} ran away.",
    ],
    [
        '"Why do you work so hard?" asked {elder}. "Because I want to win," said {hero}.',
        '"Do not look at the others," said {elder}. "Look at what you could not do yesterday."',
        '"Slowly," said {elder}. "First do it right, and then do it fast."',
    ],
    [
        "When the day came, the whole town stood in the square, and {his} knees were shaking.",
        "On the day of the {feast} {he} could not eat anything, because {he} was so afraid.",
    ],
    [
        "{friend} went first and was as good as ever, and the people clapped for a long time.",
        "{friend} began well, but then {friend_he} looked at the crowd and made a mistake.",
    ],
    [
        "Then it was {his} turn, and {he} forgot the people and thought only of what {he} was doing.",
        "{hero} took a deep breath and began, and {his} hands knew what to do.",
    ],
    [
        "When {he} had finished, it was quiet for a moment, and then everybody cheered.",
        "{He} did not win, but {he} had never been so good before.",
        "The judges talked for a long time, and in the end they gave two prizes instead of one.",
    ],
    [
        '"You were wonderful," said {friend}. "Will you teach me how you did that?"',
        '"Next year we should do it together," said {friend}, and {hero} agreed.',
        '"I lost," said {hero}. "You learned {craft}," said {elder}. "How is that losing?"',
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

SECRET = [
    [
        "{friend} had a secret, and {hero} wanted to know what it was.",
        "Every evening {friend} went to the {spot} with {a tool} and came back an hour later.",
        "For some days {friend} had been acting strangely and did not want to play.",
    ],
    [
        '"Where do you go every day?" asked {hero}. "Nowhere," said {friend}, and {friend_his} face turned red.',
        '"What are you hiding?" asked {hero}. "I cannot tell you," said {friend}. "Not yet."',
    ],
    [
        "{hero} was hurt, because friends should not have secrets from each other.",
        "{hero} was so curious that {he} could hardly sleep.",
    ],
    [
        "So one evening {he} followed {friend_him}, quietly, from tree to tree.",
        "So {he} hid behind the wall of the {spot} and waited.",
    ],
    [
        "{He} saw {friend} go in, and {he} heard a strange noise from inside.",
        "There was a light in the window, and somebody was singing very softly.",
    ],
    [
        "{hero} opened the door, and what {he} saw made {him} stop.",
        "The door was not locked, so {hero} went in.",
    ],
    [
        "{friend} was sitting on the floor with a small {animal}, which had a broken leg.",
        "There stood {a vehicle}, new and shining, with the name of {hero} painted on it.",
        "On the table lay {a treasure} that {friend} had made with {friend_his} own hands.",
    ],
    [
        '"It was not ready yet," said {friend}. "Now you have seen it."',
        '"I was afraid that somebody would laugh," said {friend}. "Please do not tell."',
    ],
    [
        "{hero} was ashamed, because {he} had thought the worst of {his} best friend.",
        '"I am sorry," said {hero}. "I should have trusted you."',
    ],
    [
        '"Then help me," said {friend}, and from then on they went there together.',
        "Now it was their secret, and a secret is lighter when two people carry it.",
    ],
]

MISTAKE = [
    [
        "One day some {food} disappeared from the kitchen of {elder}.",
        "One morning the {plant} of {elder} had been trampled, and nobody knew by whom.",
    ],
    [
        '"I saw {hero} near the {spot}," somebody said, and soon all of {town} believed that {he} had done it.',
        "There were footprints in the mud, and they led to the door of {hero}.",
    ],
    [
        '"It was not me," said {hero}, but nobody listened.',
        '"I did nothing," said {hero}. "Then who was it?" asked {elder}, and {hero} had no answer.',
    ],
    [
        "Even {friend} looked away when {he} came down the street.",
        'Only {friend} believed {him}. "[I know you|You would not do that]," said {friend}.',
    ],
    [
        "{hero} was angry at first, and then {he} was only sad.",
        "That night {hero} lay awake and thought about it from every side.",
    ],
    [
        "In the morning {he} took {a tool} and went to look for the truth.",
        "Then {he} had an idea: {he} put some {food} on the wall, hid behind a tree, and waited.",
    ],
    [
        "For a long time nothing happened, and the moon rose over the {wild}.",
        "{He} waited one night, and another night, and it was bitterly cold.",
    ],
    [
        "Then something moved in the dark, and out of the bushes came a thin {animal}.",
        "Shortly before dawn there was a noise, and there stood {a animal}, looking guilty.",
    ],
    [
        "It was only hungry, and it had three little ones in a hole under the {spot}.",
        "{hero} called {elder}, and together they watched how it slipped back through the fence.",
    ],
    [
        '"I was wrong about you," said {elder}, "and I am sorry." "It is forgiven," said {hero}.',
        '"We should have asked before we judged," said {elder}, and everybody was ashamed.',
    ],
    [
        "The {animal} was allowed to stay, and it never had to steal again.",
        "From then on {hero} put out a bowl every evening, and every morning it was empty.",
    ],
]

VISIT = [
    [
        "A letter came one day: {elder} was coming to visit, and would stay for a week.",
        '"We have a guest tomorrow," said the father of {hero}. "{Elder} is coming."',
    ],
    [
        "{hero} was excited and a little afraid, because {he} hardly knew {elder_him}.",
        "The whole house was cleaned, and {hero} had to help in the {spot}.",
    ],
    [
        "{friend} helped to make {food}, but they talked so much that it burned.",
        "{hero} wanted to make {food}, but {he} mixed up the salt and the sugar.",
    ],
    [
        '"What shall we do now?" asked {friend}. "There is no time to make another."',
        '"It is terrible," said {friend}, who had tried it. "Nobody can eat that."',
    ],
    [
        "At that moment there was a knock at the door.",
        "Then they heard the wheels of a cart in the yard.",
    ],
    [
        "There stood {elder}, with {a treasure} in one hand and a big suitcase in the other.",
        "{Elder} came in, took off {elder_his} coat, and looked at the table for a long time.",
    ],
    [
        "{hero} turned red and told {elder_him} everything.",
        "{hero} wanted to hide the plate, but it was too late.",
    ],
    [
        '{Elder} tried a piece, and then {elder_he} began to laugh. "When I was your age, I did the same."',
        '"Burned on the outside and raw on the inside," said {elder}. "Just as I used to make it!"',
    ],
    [
        "Then {elder} put on an apron and showed them how it is done.",
        "So the three of them made a new one, and {elder} told stories all the while.",
    ],
    [
        "They sat together until late at night, and nobody wanted to go to bed.",
        "When {elder} left after a week, {hero} ran beside the cart as far as the bridge.",
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

STRANGER = [
    [
        "One evening a stranger came to {town}, with torn shoes and a long gray coat.",
        "At the side of the road sat a woman with a broken {vehicle}.",
    ],
    [
        "Nobody knew the stranger, and most people closed their doors.",
        "Many people walked by, and they all had a reason why they could not stop.",
    ],
    [
        '"Can you help me?" the stranger asked. "I have not eaten since yesterday."',
        '"I have far to go," the stranger said, "and the night will be cold."',
    ],
    [
        '"Do not talk to strangers," said {friend}, but {hero} could not walk on.',
        "{hero} looked at {his} {food}, which was all that {he} had for the day.",
    ],
    [
        "{He} gave the stranger half of {his} {food} and a place beside the fire.",
        "{He} fetched {a tool} and helped as well as {he} could.",
    ],
    [
        '"Why do you do this?" asked the stranger. "Because you asked," said {hero}.',
        "While they sat there, the stranger told of the sea, of cities and of ships.",
    ],
    [
        "In the morning the stranger was gone, and on the table lay {a treasure}.",
        "The next day the stranger went on, and for a long time nobody thought of it.",
    ],
    [
        "A year later {hero} was far from home, and {he} had lost {his} way and all {his} money.",
        "Then there came a hard {season}, and there was little to eat in {town}.",
    ],
    [
        "There somebody called {his} name, and it was the stranger in the gray coat.",
        "One day a cart stopped at {his} door, full of flour, and on top sat the stranger.",
    ],
    [
        '"You helped me when nobody else did," said the stranger. "Now it is my turn."',
        '"I never forget a face," said the stranger, "or a piece of {food}."',
    ],
    [
        '"I should have stopped too," said {friend}. "Next time you will," said {hero}.',
        "Since then there is always one plate more on the table than there are people in the house.",
    ],
]

LESSON = [
    [
        "{hero} wanted to learn {craft} from {elder}, who was the best in all the land.",
        "More than anything else, {hero} wanted to be good at {craft}.",
    ],
    [
        '"Will you teach me {craft}?" {he} asked. "First sweep the floor," said {elder}.',
        '"Everybody wants to learn {craft}," said {elder}, "but nobody wants to begin."',
    ],
    [
        "So {hero} swept the floor, carried water and fed the {animal}, day after day.",
        "For a month {hero} did nothing but watch, and {he} was often bored.",
    ],
    [
        '"When do we begin?" asked {hero}. "We began long ago," said {elder}.',
        '"I am not learning anything," {he} told {friend}. "Then why do you stay?" asked {friend}.',
    ],
    [
        "Then, one day, {elder} put {a tool} into {his} hand and went away.",
        "One morning {elder} was ill, and {hero} had to do the work alone.",
    ],
    [
        "{hero} began, and to {his} surprise {he} knew how to do it.",
        "{He} closed {his} eyes and remembered how {elder} had done it.",
    ],
    [
        "The first piece was crooked, and the second one broke, but the third one was good.",
        "It took {him} the whole day, and in the evening {his} fingers hurt.",
    ],
    [
        "{Elder} came back and looked at it for a long time.",
        "{friend} came by and did not believe that {he} had made it.",
    ],
    [
        '"It is not perfect," said {elder}, "but it is yours."',
        '"Now you may say that you have begun," said {elder}, and {elder_his} eyes were shining.',
    ],
    [
        "Years later {hero} was the best in all the land, and a child knocked at {his} door.",
        '"Sweep the floor," said {hero} to {friend} the next day, and they both laughed.',
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
