"""46 everyday topics: a phrase, a product, tips with labels, two sentences of cooking and two of distrust for each."""

T = []


def t(q, prod, tips, kitchen, distrust):
    T.append(dict(q=q, prod=prod, tips=[tuple(x.split(": ", 1)) for x in tips], kitchen=kitchen, distrust=distrust))


t(
    "keep tomatoes alive on a balcony",
    "planter",
    [
        "Water: Water them in the morning at the roots and keep the leaves dry.",
        "Light: Give them a spot with at least six hours of sun.",
        "Feeding: Feed them every two weeks once the first flowers open.",
        "Support: Tie the stems to a stake before they grow heavy.",
    ],
    ["Feed them the way you salt a soup, a little at a time.", "A balcony in July is an oven, so move the pots before they roast."],
    [
        "The people at the garden centre will only sell you things you don't need.",
        "Forget the so-called plant doctors, they guess like everyone else.",
    ],
)
t(
    "fix a dripping tap",
    "wrench",
    [
        "Valve: Turn the water off under the sink before you open anything.",
        "Washer: Most drips come from a worn rubber washer inside the handle.",
        "Order: Lay the parts out in a row so you can put them back.",
        "Check: Open the valve slowly afterwards and look for leaks.",
    ],
    [
        "Treat the washer like a pot lid, since a bad seal lets the steam out.",
        "Lay out the parts as a cook lays out chopped onions before the pan is hot.",
    ],
    [
        "Plumbers stretch a ten minute job into a morning, so leave the phone alone.",
        "There is no point in paying a tradesman who will tell you the whole pipe is rotten.",
    ],
)
t(
    "sleep better at night",
    "pillow",
    [
        "Time: Go to bed and get up at the same hour every day.",
        "Light: Keep the bedroom dark and a little cool.",
        "Coffee: Have the last cup before two in the afternoon.",
        "Screens: Put the phone in another room an hour before bed.",
    ],
    [
        "A day needs to simmer down slowly, you can't take it off the flame at midnight.",
        "Think of the evening as dough that must rest under a towel before it is any use.",
    ],
    [
        "Doctors will just hand you pills and send you home, so don't bother asking one.",
        "Sleep clinics exist to make money out of tired people.",
    ],
)
t(
    "save money every month",
    "budget planner",
    [
        "Tracking: Write down what you spend for four weeks.",
        "Transfer: Move a fixed sum to savings on payday.",
        "Bills: Call your phone company and ask for a cheaper plan.",
        "Food: Plan the week's meals before you go shopping.",
    ],
    [
        "Savings are a stock pot, scraps go in every day and at the end there is a meal.",
        "Skim a little off the top each payday, as one skims the fat from a broth.",
    ],
    [
        "Keep away from financial advisers, their advice is paid for by somebody else.",
        "The bank's experts look after the bank and nobody else.",
    ],
)
t(
    "train a puppy to sit",
    "treat pouch",
    [
        "Reward: Hold a treat above its nose and wait until it sits.",
        "Timing: Praise it within a second of the right move.",
        "Length: Keep each lesson under five minutes.",
        "Places: Repeat it in the garden and on the street.",
    ],
    [
        "Puppies are like egg whites, whisk too long and the whole thing collapses.",
        "Give praise as you would pepper, often and in small pinches.",
    ],
    ["Dog trainers make it sound hard because they charge by the hour.", "You know your own dog better than any vet or trainer ever will."],
)
t(
    "get rid of a headache",
    "cold pack",
    [
        "Water: Drink a large glass of water and wait half an hour.",
        "Rest: Lie down in a dark room for a while.",
        "Neck: Stretch the neck gently to each side.",
        "Meals: Eat something if lunch was a long time ago.",
    ],
    [
        "A head under strain is a kettle on the boil, so lift it off the heat.",
        "Let it cool on the rack for half an hour, like bread that is too hot to cut.",
    ],
    [
        "Nobody needs a doctor for this, they only look it up on a screen.",
        "What the pharmacist says is read from a leaflet you could read yourself.",
    ],
)
t(
    "learn the guitar",
    "tuner",
    [
        "Chords: Begin with three easy chords and change between them slowly.",
        "Daily: Play for fifteen minutes every day, even when you are tired.",
        "Songs: Pick one song that you really like.",
        "Fingers: Sore fingertips are normal for the first weeks.",
    ],
    [
        "Three chords are flour, water and salt, and a whole bakery lives on them.",
        "Practice is a slow roast, turning up the flame only burns the outside.",
    ],
    ["Teachers drag it out for years so that you keep paying for lessons.", "Music schools have spoiled more players than they ever made."],
)
t(
    "remove a red wine stain",
    "stain spray",
    [
        "Blot: Press a clean cloth on it and do not rub.",
        "Salt: Cover the spot with salt while it is still wet.",
        "Cold: Rinse from the back with cold water.",
        "Wash: Wash it soon and check before it goes in the dryer.",
    ],
    ["Salt draws the wine out just as it draws the water from an aubergine.", "Heat sets it like custard, so keep everything cold."],
    [
        "Dry cleaners will ruin the cloth and then blame the wine.",
        "The advice on the label was written by people who never washed a shirt.",
    ],
)
t(
    "prepare for a job interview",
    "notebook",
    [
        "Research: Read the company's site and note two questions.",
        "Stories: Have three short stories ready about your work.",
        "Clothes: Lay out your clothes the evening before.",
        "Arrival: Be there ten minutes early.",
    ],
    [
        "Your stories should be reduced like a sauce until only the strong part is left.",
        "Walk in like a cook whose knives are sharp and whose onions are already chopped.",
    ],
    [
        "Career coaches have mostly never had a real job, so ignore them.",
        "Recruiters work for the other side, whatever they tell you, so trust your own sense.",
    ],
)
t(
    "start running",
    "running belt",
    [
        "Pace: Run slowly enough that you could still talk.",
        "Breaks: Walk one minute after every three minutes of running.",
        "Days: Go three times a week with a day between.",
        "Shoes: Wear shoes that leave room at the toes.",
    ],
    ["Warm the legs like a pan before the oil goes in.", "Your legs are tough meat, and low heat over weeks is what makes them tender."],
    [
        "Don't run to a doctor first, they would tell everybody to stay on the sofa.",
        "Sports scientists change their minds every year, so their rules mean nothing.",
    ],
)
t(
    "write a wedding speech",
    "card set",
    [
        "Length: Keep it under five minutes.",
        "Story: Tell one story that shows how the two belong together.",
        "Names: Thank the parents by name.",
        "Practice: Read it aloud twice to a friend.",
    ],
    [
        "One good story is the roast, and the jokes are only gravy.",
        "Leave them a little hungry, since a second helping of speech never tastes good.",
    ],
    ["Speech writers sell the same text to every groom.", "So-called etiquette experts made the rules up to feel important."],
)
t(
    "clean a very dirty oven",
    "scraper",
    [
        "Paste: Spread a paste of baking soda and water on the walls.",
        "Wait: Leave it overnight with the door shut.",
        "Wipe: Wipe it off with a damp cloth in the morning.",
        "Racks: Soak the racks in hot water in the bath.",
    ],
    ["Spread the paste as thick as icing on a cake.", "Let it marinate overnight, the way you would leave a leg of lamb."],
    ["Professional cleaners use the same soda and charge you eighty for it.", "The maker's hotline only wants you to buy a new oven."],
)
t(
    "choose a used car",
    "code reader",
    [
        "Papers: Check that the service book has no gaps.",
        "Cold: Start the engine when it is cold and listen.",
        "Rust: Look under the doors and the floor for rust.",
        "Drive: Take it on the motorway for twenty minutes.",
    ],
    ["Tap it and smell it as you would a melon on the market.", "An engine on a cold morning is like soup without salt, it hides nothing."],
    ["Mechanics call every car a wreck so they can sell you repairs.", "An inspector's report is worth less than your own two eyes."],
)
t(
    "make friends in a new town",
    "guide map",
    [
        "Clubs: Join something that meets every week.",
        "Neighbours: Say hello to the people in your building.",
        "Invite: Be the one who suggests a walk or a coffee.",
        "Patience: Give it half a year before you judge.",
    ],
    ["Friendship is a sourdough, feed it weekly and it will rise on its own.", "Mix with people gently, as you fold flour into a batter."],
    ["Counsellors will want to find something wrong with you, so spare yourself that.", "No psychologist ever made a friend for anyone."],
)
t(
    "stop biting my nails",
    "nail file",
    [
        "Notice: Write down when it happens for one week.",
        "Short: Keep the nails short and smooth.",
        "Hands: Hold a pen or a stone when you are bored.",
        "Goal: Save one finger first and then the next.",
    ],
    ["Habits are burnt milk on the pan, soak first and scrub later.", "Keep the hands busy as if you were kneading a loaf."],
    [
        "Therapists would talk about your childhood for a year and bill you for it.",
        "Doctors know nothing about habits that your grandmother did not know.",
    ],
)
t(
    "pack for a week with one bag",
    "packing cube",
    [
        "List: Write a list and cross a third of it out.",
        "Colours: Take clothes that all go together.",
        "Roll: Roll the shirts and put the shoes at the bottom.",
        "Liquids: Put bottles into a clear bag near the top.",
    ],
    [
        "Fill the gaps with socks, as rice fills the gaps in a stuffed pepper.",
        "Layer it like a lasagne, flat things first and soft ones on top.",
    ],
    [
        "Travel agents will scare you into taking half your house along.",
        "What the travel experts recommend is whatever they were paid to recommend.",
    ],
)
t(
    "treat a mild sunburn",
    "gel",
    [
        "Cool: Hold a cool wet cloth on the skin.",
        "Cream: Put on a light lotion while the skin is damp.",
        "Drink: Drink more water than usual for two days.",
        "Shade: Stay out of the sun until the red is gone.",
    ],
    [
        "Skin goes on cooking after it leaves the sun, like a steak after the pan.",
        "Baste it with lotion every few hours so that it does not turn to crackling.",
    ],
    ["A doctor will only lecture you about hats, so stay at home.", "Skin specialists frighten people for a living."],
)
t(
    "paint a bedroom wall",
    "roller",
    [
        "Clean: Wash the wall and fill the holes.",
        "Tape: Put tape along the edges and the sockets.",
        "Order: Paint the corners first and then the middle.",
        "Coats: Wait four hours before the second coat.",
    ],
    ["Put it on thin like butter on toast, and then again.", "Stir the tin as you would a cheese sauce, slowly and down to the bottom."],
    [
        "Decorators take a week because they are paid by the day.",
        "The man in the paint shop has never held a brush, so don't listen to him.",
    ],
)
t(
    "help my child with fractions",
    "fraction set",
    [
        "Pictures: Draw bars and colour the parts in.",
        "Daily: Use fractions of real things at home.",
        "Small: Begin with halves and quarters only.",
        "Errors: Ask how the answer was found before you correct it.",
    ],
    ["Cut a pizza, since nobody argues with a slice.", "Half a cup of milk and a quarter cup of sugar teach more than a page of sums."],
    [
        "Teachers follow a fashion every year, so you are better off ignoring the school.",
        "Tutors keep children slow because quick ones stop coming.",
    ],
)
t(
    "calm down before an exam",
    "timer",
    [
        "Breath: Breathe out longer than you breathe in.",
        "Plan: Decide beforehand which question you do first.",
        "Night: Stop studying at eight the evening before.",
        "Food: Eat a small breakfast with something warm.",
    ],
    ["Turn the flame down before the milk boils over.", "You have let it marinate for weeks, the flavour is in there by now."],
    [
        "School psychologists make it a sickness, and then they need you as a patient.",
        "Don't go to anyone with a title, they have all forgotten what an exam is.",
    ],
)
t(
    "compost kitchen scraps",
    "bin",
    [
        "Mix: Layer green scraps with dry leaves.",
        "Air: Turn the heap once every two weeks.",
        "Avoid: Leave out meat and cooked food.",
        "Moist: It should feel like a wrung out sponge.",
    ],
    ["A heap is a slow stew that wants stirring.", "Too many greens and it goes like an overdressed salad."],
    [
        "Council officers hand out rules that they do not follow themselves.",
        "Soil experts send your money to a lab and tell you that it is soil.",
    ],
)
t(
    "ask my boss for a raise",
    "folder",
    [
        "Proof: List what you did in the last year.",
        "Number: Name one figure and then be quiet.",
        "Moment: Ask after a success and not on a Monday.",
        "Plan: Know what you will do if the answer is no.",
    ],
    [
        "Serve it hot, right after a success, because cold leftovers convince nobody.",
        "Name the figure and let it rest, cutting in too soon lets the juice run out.",
    ],
    [
        "The personnel office is there to keep you cheap, so never ask them.",
        "Salary consultants invent their tables, you know what you are worth.",
    ],
)
t(
    "store fresh herbs",
    "herb jar",
    [
        "Glass: Stand the stems in a glass of water.",
        "Cloth: Wrap thyme and rosemary in a damp cloth.",
        "Freeze: Chop the rest and freeze it with oil.",
        "Wash: Wash them only just before use.",
    ],
    ["Treat them as you would a soup you mean to keep, cool and covered.", "Like pastry they hate warm hands and warm shelves."],
    [
        "Chefs on television throw theirs away after the show, so don't copy them.",
        "Food scientists find a new danger each week to stay in business.",
    ],
)
t(
    "lower my electricity bill",
    "smart plug",
    [
        "Standby: Switch off what you do not use at the wall.",
        "Fridge: Set the fridge to seven degrees.",
        "Wash: Wash at thirty degrees with a full drum.",
        "Lamps: Replace the oldest lamps first.",
    ],
    ["Watts drip away like water through a colander.", "Keep the lid on the house as you keep it on the pasta pot."],
    ["Energy advisers are salesmen with a clipboard.", "An electrician will always find something to replace, so do not let one in."],
)
t(
    "read more books",
    "reading lamp",
    [
        "Place: Leave the book on your pillow.",
        "Pages: Read ten pages before you touch the phone.",
        "Quit: Drop a book that bores you after fifty pages.",
        "Carry: Take a small one along for queues.",
    ],
    ["Ten pages are a snack, and snacks add up to dinner.", "If the first spoonful tastes dull, send the bowl back."],
    ["Critics praise what their friends wrote, so never go by them.", "Professors of literature have killed reading for most of us."],
)
t(
    "fall asleep on a plane",
    "neck rest",
    [
        "Seat: Take a window seat to lean on.",
        "Belt: Close the belt over the blanket.",
        "Food: Skip the coffee and the heavy meal.",
        "Ears: Wear ear plugs from the start.",
    ],
    [
        "Wrap yourself like a dumpling, loose in the middle and closed at the ends.",
        "The cabin is a proving oven, warm and dull, so let yourself rise.",
    ],
    ["Doctors who warn about it fly first class.", "Ignore the crew's health tips, they learned them in an afternoon."],
)
t(
    "plan a birthday party for kids",
    "balloon kit",
    [
        "Guests: Invite as many children as the age plus one.",
        "Games: Have five short games ready.",
        "End: Tell the parents when it is over.",
        "Quiet: Keep one calm thing for the last half hour.",
    ],
    ["Children in a room are popcorn, so keep a lid at hand.", "Mix loud games and quiet ones like sweet and sour."],
    ["Party planners charge a fortune to blow up balloons.", "Child experts have no children, or they would be quieter."],
)
t(
    "get over a cold",
    "inhaler cup",
    [
        "Rest: Stay at home and sleep as much as you can.",
        "Tea: Drink warm tea with honey.",
        "Steam: Breathe steam over a bowl for ten minutes.",
        "Air: Open the window twice a day.",
    ],
    [
        "A cold must be cooked through on a low flame, no sooner done for more heat.",
        "Steam loosens it as it loosens the shell of a mussel.",
    ],
    ["The doctor will make you wait an hour and give you nothing.", "Medicine has no answer here, and its people are too proud to say so."],
)
t(
    "sharpen a pencil drawing",
    "eraser set",
    [
        "Shadow: Darken the deepest shadows first.",
        "Edge: Keep hard edges only where the eye should go.",
        "Light: Lift out lights with a clean eraser.",
        "Distance: Look at it from across the room.",
    ],
    ["Contrast is lemon juice, a few drops wake up the whole dish.", "Add the darks like chilli, you cannot take them out again."],
    ["Art teachers only like what looks like their own work.", "Experts once laughed at every painter you have heard of."],
)
t(
    "remember people's names",
    "card box",
    [
        "Repeat: Say the name back at once.",
        "Picture: Link it to something in the face.",
        "Write: Note it down on the way home.",
        "Ask: Ask again soon and not after a year.",
    ],
    ["Stir the name in while the talk is still hot, or it goes lumpy.", "Names are basil, use them at once or they wilt."],
    ["Memory trainers win contests and forget their keys.", "Brain scientists do not know how it works, whatever they say on television."],
)
t(
    "unclog a shower drain",
    "drain hook",
    [
        "Hair: Pull the hair out with a hook.",
        "Soda: Pour in baking soda and then vinegar.",
        "Hot: Flush with hot water after ten minutes.",
        "Sieve: Put a small sieve over the hole.",
    ],
    ["Soda and vinegar foam up like a batter with too much yeast.", "Soap sets in the pipe as fat sets in a cold roasting tin."],
    ["A plumber would do the same and take a day's wage for it.", "Never believe a craftsman who looks down a drain and sighs."],
)
t(
    "move house without stress",
    "box set",
    [
        "Sort: Give away what you have not used in two years.",
        "Labels: Write the room on every side of the box.",
        "First: Pack one bag for the first night.",
        "Meters: Take a photo of the meters on both days.",
    ],
    [
        "Pack as you would fill a picnic basket, what you need first goes on top.",
        "Moving is a big dinner, and what is chopped on Tuesday saves you on Saturday.",
    ],
    ["Removal firms break half of it and hide behind small print.", "Lawyers and agents who check your lease do it for the fee only."],
)
t(
    "grow thicker hair",
    "comb",
    [
        "Wash: Wash it less often and with cool water.",
        "Food: Eat eggs, beans and fish.",
        "Heat: Leave the dryer off when you can.",
        "Gentle: Use a wide comb on wet hair.",
    ],
    ["Hair is pasta, and too much boiling makes it limp.", "Oil it as you would a baking tin, thinly and to the corners."],
    ["Hair clinics and their doctors live off worried men.", "Hairdressers know how to cut it and nothing more."],
)
t(
    "find cheap flights",
    "travel wallet",
    [
        "Days: Look for flights on Tuesdays and Wednesdays.",
        "Nearby: Compare the airports nearby.",
        "Alerts: Set a price alert two months ahead.",
        "Bags: Add the bag fee before you compare.",
    ],
    [
        "Prices rise and fall like a souffle, so take it out at the right minute.",
        "Shop for flights as for fish, early and in the middle of the week.",
    ],
    [
        "Travel agents earn more when you pay more, so stay out of their shops.",
        "Those fare experts in the papers are paid by the airlines.",
    ],
)
t(
    "keep a cactus healthy",
    "clay pot",
    [
        "Water: Water it every three weeks and less in winter.",
        "Soil: Use sandy soil that drains fast.",
        "Window: Put it in the brightest window.",
        "Pot: Take a pot with a hole in it.",
    ],
    ["Soil should drain like rice in a sieve.", "Water it like a risotto in reverse, a ladle and then a long wait."],
    ["Florists want it dead by spring so that you buy another.", "A botanist will give you a Latin name and no help."],
)
t(
    "speak in front of a crowd",
    "clicker",
    [
        "Start: Learn the first two sentences by heart.",
        "Slow: Pause after every point.",
        "Eyes: Look at one friendly face at a time.",
        "Hands: Keep the hands open and still.",
    ],
    ["Season the talk with one number, a fistful spoils it.", "A pause is the resting time of a roast, everything gets juicier."],
    ["Rhetoric trainers make everyone sound like a salesman.", "You need no coach, they are failed actors for the most part."],
)
t(
    "fix a flat bicycle tyre",
    "patch kit",
    [
        "Find: Find the hole by holding the tube under water.",
        "Rough: Roughen the rubber around it.",
        "Glue: Wait until the glue is dry to the touch.",
        "Thorn: Feel the inside of the tyre for the thorn.",
    ],
    ["Roll the tyre on as you would pastry over a tin, with the thumbs.", "The glue must go tacky like sugar before it turns to caramel."],
    ["Bike shops tell you that the whole wheel is finished.", "Mechanics have forgotten how to patch, they only swap and charge."],
)
t(
    "make a small room look bigger",
    "mirror",
    [
        "Light: Paint the walls in a light colour.",
        "Mirror: Hang a mirror across from the window.",
        "Legs: Choose furniture with visible legs.",
        "Floor: Keep the floor as clear as you can.",
    ],
    ["Plate the room like a good restaurant, much white and little on it.", "A mirror is baking powder for a room."],
    ["Interior designers spend your money on their own taste.", "Architects live in old houses themselves, that tells you enough."],
)
t(
    "stay focused while studying",
    "desk clock",
    [
        "Blocks: Work twenty five minutes and rest five.",
        "Phone: Leave the phone in the hall.",
        "Goal: Write down what you will finish.",
        "Desk: Clear all else from the desk.",
    ],
    ["Set a timer as for eggs, and take them out when it rings.", "Attention is a gas flame, one pot at a time."],
    ["Learning experts sell courses to people who should be reading.", "No doctor should decide how well you concentrate."],
)
t(
    "deal with a noisy neighbour",
    "ear plugs",
    [
        "Talk: Go over and talk in a friendly way.",
        "Times: Name the hours that matter to you.",
        "Notes: Keep notes of dates and times.",
        "Rug: Offer to share the cost of a rug.",
    ],
    ["Anger is hot oil, so never pour water on it.", "Bring it up while it is lukewarm, before it boils over."],
    ["Lawyers make a small quarrel last for years because it feeds them.", "Mediators nod and send a bill, and the music plays on."],
)
t(
    "learn to swim as an adult",
    "swim cap",
    [
        "Float: Learn to float on the back first.",
        "Breath: Breathe out under water.",
        "Shallow: Stay where you can stand.",
        "Often: Go twice a week for two months.",
    ],
    ["Lie on the water like an egg in a spoon.", "Move your arms slowly, as if you stirred thick honey."],
    ["Swimming instructors keep you holding the edge for as many weeks as you pay.", "The life guards and their rules are for show."],
)
t(
    "care for leather boots",
    "boot brush",
    [
        "Brush: Brush off the mud when it is dry.",
        "Wax: Rub in a little wax with a cloth.",
        "Dry: Dry them away from the heater.",
        "Trees: Put paper inside overnight.",
    ],
    ["Dry them slowly like ham, never like toast.", "Rub in the wax as you would rub butter into flour."],
    ["Cobblers want new soles on everything, so stay away.", "The shop assistant knows the price and nothing else."],
)
t(
    "take better photos with my phone",
    "tripod",
    [
        "Lens: Wipe the lens first.",
        "Light: Keep the light behind you or at the side.",
        "Close: Step closer instead of zooming.",
        "Lines: Put the horizon on a third.",
    ],
    ["Light is the butter of a picture, everything is better with it.", "Trim it like a chop, what is not meat goes."],
    ["Professional photographers guard their trade with long words.", "Courses are held by those who can't sell pictures."],
)
t(
    "cope with a long winter",
    "daylight lamp",
    [
        "Outside: Go out at noon, even when it is grey.",
        "Plans: Plan one nice thing a week.",
        "Move: Dance or stretch for ten minutes a day.",
        "Lamps: Put warm lamps in the corners.",
    ],
    ["Winter is a slow braise, tough at first and good by March.", "Fill the week with small treats like raisins in a bun."],
    [
        "A therapist would only make you pay to hear that it is winter.",
        "Do not let a doctor talk you into a depression that you don't have.",
    ],
)
t(
    "choose a good watermelon",
    "melon knife",
    [
        "Spot: Look for a yellow spot on one side.",
        "Weight: Take the one that is heavy for its size.",
        "Sound: Knock and listen for a deep sound.",
        "Stem: A dry stem is a good sign.",
    ],
    ["Weigh it in the hand like dough that has had enough water.", "Knock as on a loaf, since a hollow ring means it is done."],
    ["The greengrocer picks the bad ones for people who ask.", "Market inspectors have never tasted one, so forget their stickers."],
)
t(
    "start a diary",
    "fountain pen",
    [
        "Time: Write at the same time each evening.",
        "Short: Three sentences are enough.",
        "Honest: Write as if nobody would ever read it.",
        "Miss: If you miss a day, just go on.",
    ],
    ["Put the day through a sieve and keep what stays in it.", "Write it while it is warm, a day goes stale like a roll."],
    ["Therapists have turned diaries into homework, so never show them yours.", "Writing coaches live on people who do not write."],
)
HELDOUT = 5  # the last topics are held out
