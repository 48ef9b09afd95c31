"""Plots about people: what they promise, hide, teach and forgive. make_corpus.py explains the notation."""

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
