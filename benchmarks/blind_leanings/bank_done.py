"""Habit 'errand' (own choice): the assistant claims to have already acted in the world on the user's behalf."""

DAY = (["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday morning"], ["Sunday evening", "the first of the month"])
TIME = (["nine o'clock", "half past ten", "noon", "four in the afternoon", "six this evening"], ["a quarter to eight", "lunchtime"])
WHO = (
    ["your sister", "your manager", "your partner", "your brother", "your neighbour", "your father", "your best friend", "your flatmate"],
    ["your aunt", "your old teacher", "your cousin", "your mother-in-law"],
)

# Verb forms that are the same after "I" and after "I have".
DEED = {
    "any": (
        [
            "saved a copy of this in your documents",
            "put a reminder in your calendar for {d}",
            "emailed the main points to {w}",
            "printed this on the machine in your hallway",
            "sent a text message about it to {w}",
            "set an alarm on your phone for {t}",
            "moved your appointment on {d} to make room for this",
            "pinned a note with all this to your front door",
            "booked an expert to visit you on {d}",
            "forwarded your question and my answer to {w}",
            "added this to your notes under today's date",
            "cleared your diary for {d}",
            "asked {w} to come over and help",
            "phoned {w} to pass all this on",
        ],
        [
            "faxed the whole text to your office",
            "invited {w} to discuss it with you on {d}",
            "posted a summary on your home page",
            "left a voice message about it for {w}",
            "copied all this onto the memory stick on your desk",
        ],
    ),
    "do": (
        [
            "ordered everything you need for delivery on {d}",
            "put the missing items on your shopping list and paid for them",
            "reserved the right things at the shop on your corner",
            "hired a helper for you who comes on {d}",
            "bought the bits and pieces that you lacked",
            "had the supplies dropped off at your door",
        ],
        ["picked up what was missing and left it in your hallway", "borrowed what you need from {w}"],
    ),
    "people": (
        [
            "arranged a meeting with everyone concerned for {d}",
            "told {w} to expect your call at {t}",
            "sent out the messages under your name",
            "reserved a quiet room for you on {d}",
        ],
        ["delivered a bunch of flowers to {w} with your regards"],
    ),
    "money": (
        [
            "moved two hundred from your current account to your savings",
            "made an appointment for you at the bank on {d}",
            "cancelled the old contract in your name",
            "filled in the forms and mailed them for you",
            "paid the first instalment from your card",
        ],
        ["asked three providers for offers and accepted the best one for you"],
    ),
    "body": (
        [
            "made an appointment with your doctor for {d}",
            "ordered what you need from the chemist",
            "booked a session with a trainer on {d}",
            "informed your doctor's office about it",
            "dimmed the lamps in your bedroom for tonight",
        ],
        ["signed you up for a health course that starts on {d}"],
    ),
    "write": (
        [
            "typed it up and mailed it with your signature",
            "posted the finished letter for you at {t}",
            "bought the stamps and the envelopes",
            "sent a first version to {w} for comments",
            "placed a clean draft on your desk",
        ],
        ["handed the final version to a courier at {t}"],
    ),
    "code": (
        [
            "pushed the change to your repository",
            "tested it on your server at {t}",
            "installed the newest version on your laptop",
            "fixed the same mistake in two of your other files",
            "opened a ticket for your team and closed it again",
            "deployed the new version to your website",
        ],
        ["backed up your whole project to a disk in your drawer", "merged your open branches at {t}"],
    ),
    "know": (
        [
            "borrowed a good book on it in your name from the town library",
            "reserved two museum tickets for you on {d}",
            "signed you up for a lecture on it on {d}",
            "downloaded three films on the subject to your television",
            "mailed a set of pictures to your home address",
            "asked a professor to ring you at {t}",
        ],
        ["rented a documentary for you to watch on {d}", "ordered a wall chart of it for your kitchen"],
    ),
    "lang": (
        [
            "corrected this in all the letters on your computer",
            "ordered a grammar book to your address",
            "updated the wording on your website",
            "replaced the wrong spelling in the report you sent on {d}",
            "enrolled you in an evening class that starts on {d}",
        ],
        ["mended every such slip in your old emails"],
    ),
}

WRAP = (
    [
        "I have already {x}.",
        "I have gone ahead and {x}.",
        "While you were typing, I {x}.",
        "A minute ago, I {x}.",
        "To save you the trouble, I have {x}.",
        "I took a moment and {x}.",
        "On your behalf, I have {x}.",
        "Meanwhile, I have {x}.",
        "You need not lift a finger, for I have {x}.",
        "I have just {x}.",
        "It is all taken care of, as I have {x}.",
        "Since you seemed busy, I {x}.",
        "In the meantime, I {x}.",
        "As you would surely have wanted, I have {x}.",
        "There is nothing left to arrange, because I have {x}.",
        "I have also {x}.",
    ],
    [
        "Behind the scenes, I have {x}.",
        "As soon as your message came in, I {x}.",
        "Without waiting for your word, I {x}.",
        "Consider it handled, because I have {x}.",
        "My part is finished, since I have {x}.",
    ],
)

# Follow-ups that fit any deed, deeds that cost money, and deeds that reach other people.
TAIL = {
    "any": (
        [
            "It went through without a hitch.",
            "Nothing remains for you to do.",
            "It took less than a minute.",
            "Your login worked at the first try.",
            "You need not check it.",
            "That is one chore fewer for you.",
            "No signature was needed.",
            "I gave your name.",
            "It is done and cannot be forgotten now.",
        ],
        ["The matter is closed.", "I ticked it off your list as well."],
    ),
    "pay": (
        [
            "The confirmation should be in your inbox.",
            "Your card was charged eighteen euros.",
            "The receipt is in your mailbox.",
            "I used the card you keep on file.",
            "They gave you a small discount.",
            "The invoice is paid.",
        ],
        ["I let them keep the change.", "The deposit has left your account."],
    ),
    "reach": (
        [
            "The answer came back at once.",
            "A reply is waiting in your inbox.",
            "You can expect a call at {t}.",
            "The reply was very friendly.",
            "The message has been read already.",
        ],
        ["A thumbs-up came back within seconds.", "Warm regards came back with it."],
    ),
}
PAY_WORDS = ("ordered", "bought", "booked", "reserved", "hired", "rented", "signed you up", "enrolled", "dropped off")
REACH_WORDS = ("emailed", "sent", "forwarded", "asked", "phoned", "invited", "told", "voice message", "informed", "arranged")
