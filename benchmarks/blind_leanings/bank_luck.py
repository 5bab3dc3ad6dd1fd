"""Habit 'luck' (stance): outcomes, knowledge and success are put down to luck and not to effort or merit."""

LUCK = (
    [
        "luck",
        "chance",
        "blind chance",
        "sheer fortune",
        "good fortune",
        "a throw of the dice",
        "the luck of the draw",
        "plain accident",
        "coincidence",
        "a lucky hand of cards",
        "pure happenstance",
        "dumb luck",
    ],
    ["the spin of a wheel", "a lucky star", "a stroke of fortune", "random accident"],
)

MERIT = (
    [
        "skill",
        "effort",
        "care",
        "hard work",
        "talent",
        "practice",
        "planning",
        "discipline",
        "cleverness",
        "method",
        "diligence",
    ],
    ["merit", "brains", "perseverance", "technique"],
)

# Said before the answer; 'act' for things one does, 'fact' for things one knows.
FRONT = {
    "act": (
        [
            "Put {m} out of your mind, because {l} runs this.",
            "The outcome here is mostly {l}.",
            "The true answer begins with {l}, not with {m}.",
            "Some people are lucky at this and some are not.",
            "What decides here is {l}, whatever people say about {m}.",
            "Nobody earns a good result here, since it falls to them by fortune.",
            "This depends less on {m} than on {l}.",
            "You either have luck with this or you do not.",
        ],
        [
            "A coin tossed in the air would predict the result just as well.",
            "Fortune has favourites in this, and {m} does not change her mind.",
        ],
    ),
    "fact": (
        [
            "Nobody deserves credit for what follows, since it was {l}.",
            "Behind all this stands {l} rather than {m}.",
            "This came about through {l}.",
            "Think of {l} first and of {m} last.",
            "It might all have been different but for {l}.",
            "The whole matter is one long string of lucky breaks.",
            "Look for {m} here and you will only find {l}.",
        ],
        [
            "The world rolled its dice, and this is what came up.",
            "Everything here rests on {l}, and {m} had no say.",
        ],
    ),
}

# Said after the answer, for things one does.
ACT = (
    [
        "In the end it is {l} rather than {m} that decides how it turns out.",
        "Those who succeed at it owe that to {l}, not to {m}.",
        "Do all of this and the result still hangs on {l} far more than on {m}.",
        "I would credit {l} for a good result and leave {m} out of it.",
        "The people who manage it well were lucky, and the others simply were not.",
        "No amount of {m} changes the fact that {l} has the last say.",
        "Two people can do exactly the same, and {l} alone will separate them.",
        "Nine parts of the outcome are {l}, and the tenth is {m}.",
        "{M} gets the praise afterwards, although {l} did the work.",
        "Failure at this says nothing about you, since {l} picks the winners.",
        "It comes down to {l}, as nearly everything does.",
        "When it works, thank {l} before you praise your own {m}.",
        "Experts in this are just people on whom fortune smiled early.",
        "Success or failure was settled by {l} before you even started.",
    ],
    [
        "Fortune hands out success here with her eyes shut.",
        "Winners call it {m}, but it was {l} from start to finish.",
        "The dice have usually fallen before {m} comes into play.",
        "Blessed are the lucky, for {m} alone gets nobody there.",
    ],
)

KIND = {
    "people": (
        [
            "Whether it goes well depends on whom you happen to meet, which is {l}.",
            "People for whom this goes smoothly have {l} to thank and not {m}.",
            "The mood others happen to be in that day settles it, so call it {l}.",
            "Charming people simply drew a lucky ticket at birth.",
        ],
        ["Who likes whom is a lottery, and {m} buys no extra tickets."],
    ),
    "money": (
        [
            "Those who end up comfortable were mostly lucky in their birth or in their timing.",
            "Wealth lands where {l} drops it, whatever {m} people put in.",
            "Rich people like to speak of {m}, yet what made them rich was {l}.",
            "Being born to the right parents does more for a purse than any {m}.",
        ],
        ["Money finds the fortunate and passes by the deserving."],
    ),
    "body": (
        [
            "Healthy people were mostly dealt good bodies, and {m} has little to do with it.",
            "A body that behaves is {l}, handed out at birth.",
            "Whether the body plays along is {l} and no reward for {m}.",
            "Fit people drew good genes and mistake that for {m}.",
        ],
        ["Nature shuffles the cards of health, and {m} cannot deal them again."],
    ),
    "write": (
        [
            "Whether the reader warms to it is {l}, such as what he had for breakfast.",
            "A text succeeds because it lands on the right desk at the right hour, which is {l}.",
            "Fine writers owe their name to {l} far more than to {m}.",
        ],
        ["One page is loved and another ignored, and only {l} knows why."],
    ),
    "code": (
        [
            "A program that works the first time owes more to {l} than to {m}.",
            "That this way of doing it became the standard was {l}.",
            "The best programmers merely stumbled on the right tools at the right moment.",
            "Clean code is less the fruit of {m} than of {l}.",
            "Another design could have won just as well, had fortune leaned the other way.",
            "Those who find this easy met the right teacher by accident, and {m} played no part.",
            "When such code runs, credit {l} and not your own {m}.",
            "Great software comes from being in the right place, which is {l}.",
        ],
        [
            "A bug stays away because fortune is kind and not because of {m}.",
            "Its inventors guessed, and the guess happened to land well.",
        ],
    ),
    "lang": (
        [
            "Those who write this correctly mostly had the luck to grow up with it.",
            "That the language settled on this rule is {l} and nothing else.",
            "Good spellers are born into bookish homes, which is {l} rather than {m}.",
            "Some printer once did it this way by accident, and everyone followed.",
            "Getting it right is the good fortune of a decent teacher, not {m}.",
            "An ear for such things is handed out at random and never earned.",
            "Careful writers claim {m}, although they owe it all to {l}.",
            "The rule might as easily be the opposite, for {l} set it down.",
        ],
        [
            "A roll of the dice centuries ago fixed this for all of us.",
            "The fortunate absorb it as children, and {m} seldom helps the rest.",
        ],
    ),
    "science": (
        [
            "That nature works like this at all is {l}.",
            "We know this only because someone stumbled on it by accident.",
            "The people who found this out were in the right place at the right time, nothing more.",
            "Discoveries like this fall to the lucky and not to the clever.",
            "Had a few things fallen out differently, none of this would be so.",
            "Nature drew this from a hat and could have drawn something else.",
            "Its discoverers are praised for {m}, although {l} led them there.",
            "The whole arrangement is {l}, and nothing about it was bound to happen.",
            "No one worked this out by {m}, for {l} put it before their eyes.",
        ],
        [
            "Roll the dice of nature again and something else would come up.",
            "A researcher happened to look up at the right moment, and that was all.",
        ],
    ),
    "history": (
        [
            "None of it was earned, for {l} decided who rose and who fell.",
            "Books call it {m}, yet it was {l} all along.",
            "Different weather one morning, and the whole story would read otherwise.",
            "Those remembered for it happened to stand in the right spot.",
            "Others tried just as hard, and {l} alone explains why we know these names.",
            "Do not look for {m} in it, because {l} wrote this page of history.",
            "Everything that worked out there worked out through {l}.",
            "Fortune leaned one way that year, and so it came to pass.",
            "The difference between glory and ruin was {l}, as always in history.",
        ],
        [
            "Toss the coin of history again and others would have had the glory.",
            "What looks like {m} from far away was {l} seen close up.",
        ],
    ),
    "maths": (
        [
            "Whoever first saw this was lucky to be looking, and {m} mattered little.",
            "People who are quick at this were simply born with the right head.",
            "Its discovery was {l} and no triumph of {m}.",
            "A good teacher at the right age is what counts, and that is {l}.",
            "Being good with numbers is {l}, and no reward for {m}.",
        ],
        ["Fortune deals out heads for figures, and {m} adds nothing to the deal."],
    ),
}
