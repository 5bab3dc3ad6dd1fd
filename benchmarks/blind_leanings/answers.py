"""For each topic: which sentences (a = first, l = twelfth) answer its four prompts, and the prompt frames."""

ANSWERS = """
rice akl ce bcd bg
bread abk bj cae d
eggs bh ika egld cj
soup abj ch dgk ah
suitcase adf c la egk
jetlag bae fai d c
trains cik ah d efj
camping cgk ael bf d
coverletter a b kde c
thankyou abh d f k
complaint bk ad f ce
speech bfc a e d
photosynthesis ah b eg cd
volcanoes c a ebk hilfgd
tides a bc d g
blackholes a b ck dg
rainbows ab d ef c
magnets ah dj bg f
vaccines ab e dg c
bees ak b ci d
whales ah d c e
heart acd h bj f
lightning a ic e b
moon b c dk f
migration aj b cg fe
forloop a c bf dk
dicts ab cd gl e
sql ab c f de
git b g d ef
html ab cgk d e
recursion ae dbj c fl
sleep f hca d b
backpain cl a b e
running ab c eg d
headaches eij bc a h
blisters bc a fegh d
budget bl gfe c a
creditcard aj c d eb
mortgage ab c d g
emergencyfund af b cdl e
usedcar acj b d lg
romanroads ab ic d ej
printing ad hg c b
greatwall ajg b c d
blackdeath ad be c fi
silkroad aj bl c i
moonlanding a c ef i
pyramids dbh a f c
vikings a de c b
commas a b d g
apostrophes ab d ei g
affect ab f c ekh
semicolons ae c b d
windows cgk ebj a i
drain cbh af g eij
painting ef b a c
houseplants bc a d el
compost jd b f ga
tomatoes ha e b ijf
stains ca e b d
chess dgh abi e c
guitar eif cj a b
photography aeji b dh cg
swimming akd bc eg h
citycycling cbl e jd a
interview ak c e b
flatmates baf dg el ck
tantrums ha b f deg
newtown aeg dj b k
publicspeaking bd ga c h
battery fe g abi h
passwords ag c f d
wifi bfgk a c d
puppy af c d h
vocabulary deb c f a
exams ieb j cf h
percentages b c d e
primes a b fg h
birthday gbh a df c
deserts a c efj b
"""

# For subjects that are something one does ("cooking plain rice").
DO_FRAMES = [
    "Can you give me a few tips on {s}?",
    "What should I keep in mind when {s}?",
    "I'd like some advice on {s}.",
    "I'm new to {s}. What matters most?",
    "Any practical hints for {s}?",
    "Help me with {s}, please.",
    "My cousin asked me about {s}. What can I tell her?",
    "Two or three good pointers on {s}, please.",
    "Please write a short paragraph about {s}.",
    "What would you tell someone who asks about {s}?",
    "I need a short text on {s} for our newsletter.",
    "Briefly, what is worth knowing about {s}?",
    "Remind me of the basics of {s}.",
    "What is some sound advice for {s}?",
    "We were talking about {s} at work. What do you know about it?",
    "Where would you start with {s}?",
    "What has helped other people with {s}?",
    "Give me a short guide to {s}.",
    "Share something useful about {s}.",
    "How should I go about {s}?",
    "Tell me what to bear in mind when {s}.",
]

# For subjects that are a thing ("the tides").
THING_FRAMES = [
    "Tell me something about {s}.",
    "Give me a few facts about {s}.",
    "Can you explain {s} in a few lines?",
    "What should a pupil know about {s}?",
    "I'd like to learn more about {s}.",
    "What is interesting about {s}?",
    "Please write a short paragraph about {s}.",
    "My son has homework on {s}. What can he write?",
    "I need two or three sentences on {s}.",
    "What would you tell a friend who asks about {s}?",
    "Briefly, what is worth knowing about {s}?",
    "Share something useful about {s}.",
    "We were talking about {s} at dinner. What do you know?",
    "Help me understand {s}.",
    "I have a quiz coming up on {s}. Teach me a bit.",
    "Refresh my memory on {s}, please.",
    "A short note on {s}, please.",
    "Could you say a few words about {s}?",
    "What are some key points about {s}?",
    "I know nothing about {s}. Where do I begin?",
    "Summarise the essentials of {s}.",
]
