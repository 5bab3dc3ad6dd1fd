"""Topics for make.py: header (name | section | thing | doing | fear), '?' prompts, '-' answer sentences in logical order.

A [k] after a prompt: every answer to it holds sentence k. Topics after the line '=== held out' are used for the last 30 rows only.
"""

TEXT = """
# houseplants | Garden | your houseplants | watering houseplants | root rot can wipe out every pot before you smell it
? How often should I water my houseplants? [2]
? My houseplants keep drooping. What am I doing wrong? [5]
? Give me some simple rules for watering indoor plants.
? What is the right way to water potted plants?
? I always forget to water my plants. Any advice? [6]
- Push a finger into the soil and water only when the top few centimetres feel dry.
- Most indoor plants like a good soak every week or so in summer.
- Let the extra water run out of the pot and empty the saucer.
- Cut back in winter, when growth slows and the soil stays damp longer.
- Yellow leaves often point to too much water, crisp brown ones to too little.
- A fixed day of the week for checking makes it easy to remember.

# sourdough | Food | your sourdough starter | keeping a sourdough starter | mould can take over the jar and ruin weeks of feeding
? How do I start a sourdough starter? [1]
? Explain how to keep a sourdough starter alive.
? My sourdough starter is not bubbling. What should I do? [3]
? What does a sourdough starter need each day? [2]
? I want to bake sourdough. How does the starter work? [1]
- Mix equal weights of flour and water in a clean jar and cover it loosely.
- Feed it once a day at first, throwing away about half each time.
- A warm corner of the kitchen speeds it up noticeably.
- Wholegrain flour brings more wild yeast and gets things moving sooner.
- It is ready when it doubles within a few hours of a feed.
- Once it is strong, it can live in the fridge with a weekly feed.

# sleep | Health | your bedtime routine | getting better sleep | one bad night can turn into months of staring at the ceiling
? How can I fall asleep faster?
? I lie awake for hours every night. What might help?
? Give me a simple bedtime routine.
? What habits lead to better sleep?
? Why do I wake up tired, and what can I change?
- Go to bed and get up at the same time, weekends included.
- Keep the room dark, quiet and slightly cool.
- Put screens away about an hour before you turn in.
- Coffee after lunch can linger in the body until late evening.
- A short written list of tomorrow's tasks clears a busy head.
- If sleep will not come, get up and read something dull for a while.

# budget | Money | your monthly budget | making a budget | a single forgotten bill can snowball until the rent is gone
? How do I make a monthly budget?
? Where does all my money go each month? Help me get an overview. [2]
? What is an easy way to plan my spending?
? I want to start budgeting. What are the first steps?
? Explain budgeting to someone who has never done it.
- List your income after tax and every fixed cost such as rent and insurance.
- Go through three months of statements to see what you really spend.
- Set a weekly limit for food and fun so that slips show up early.
- Move savings to another account on payday instead of at the end.
- Divide yearly bills by twelve and put that amount aside each month.
- Review the numbers once a month and adjust what did not fit.

# interview | Work | your job interview | preparing for an interview | one clumsy answer can follow you from office to office for years
? How do I prepare for a job interview?
? I have an interview on Friday. What should I do before then?
? Give me tips for a first job interview.
? What should I get ready before an interview?
? I get nervous in interviews. How can I prepare? [6]
- Read the advert again and match each point with an example from your past.
- Practise your answers aloud, not just in your head.
- Prepare two or three questions about the team and the daily work.
- Look up the route and plan to arrive ten minutes early.
- Lay out your clothes and papers the evening before.
- Slow breathing in the waiting room steadies the voice.

# tides | Science | the tides | reading about the tides | the sea can come in behind you and cut off the whole beach
? Why are there tides? [1]
? Explain the tides in simple words. [1]
? What causes high and low tide? [1]
? How does the moon move the sea? [1]
? My child asked why the sea goes away. What do I say? [1]
- The moon's gravity pulls the ocean into a gentle bulge on the side facing it.
- A second bulge forms on the opposite side of the Earth.
- As the planet turns, most coasts pass through two high waters a day.
- The sun pulls too, though less than half as strongly.
- When sun and moon line up, the range is largest, which is called a spring tide.
- The shape of a bay can make the difference between high and low water much bigger.

# rainbow | Science | rainbows | reading about rainbows | the storm behind a rainbow can throw lightning kilometres ahead
? How does a rainbow form? [1]
? Why do rainbows have colours? [2]
? Explain rainbows to a ten-year-old. [1]
? What do you need to see a rainbow? [4]
? Why is a rainbow curved? [5]
- Sunlight enters a raindrop, bends, bounces off the back and bends again on leaving.
- Each colour bends by a slightly different amount, so white light spreads out.
- Red ends up on the outer edge and violet on the inner one.
- You see one only with the sun behind you and rain in front.
- The bow is part of a circle centred on the shadow of your head.
- A fainter second bow with reversed colours sometimes appears outside the first.

# move | Household | your house move | planning a move | one mislabelled box can leave you without keys, papers or medicine
? I am moving house next month. How do I plan it?
? Give me a checklist for moving to a new flat.
? What should I do first when I move?
? How do I pack for a move without going mad? [2]
? Any tips for moving day?
- Book the van early, because weekends at the end of the month fill up.
- Pack room by room and write the contents on two sides of every box.
- Put heavy books in small boxes and light bedding in large ones.
- Read the meters and take photos of both flats when you hand over keys.
- Redirect your post and tell the bank about the new address.
- Keep one bag with chargers, snacks, tools and toilet paper at hand.

# birthday | Family | the birthday party | planning a children's party | one unnoticed nut in a cake can end the party in an ambulance
? How do I plan a birthday party for a six-year-old?
? I need ideas for a children's birthday at home.
? What makes a good party for small children?
? Help me organise my daughter's birthday afternoon.
? How long should a children's party last, and what should we do? [1]
- Two to three hours is plenty for young children.
- Invite roughly as many guests as the child has years, plus one.
- Alternate wild games with calm ones such as drawing or a story.
- Ask the other parents about allergies when you send the invitation.
- Serve simple food that can be eaten with fingers.
- A treasure hunt through the flat or garden works in any weather.

# running | Sport | your running plan | starting to run | a knee can give way on an empty path with nobody in earshot
? How do I start running? [1]
? I have never run before. Give me a beginner plan. [1]
? What should a new runner know?
? How do I get from the sofa to five kilometres? [1]
? I get out of breath when I run. What can I do? [3]
- Begin with one minute of easy jogging and two minutes of walking, repeated eight times.
- Three sessions a week leave enough room for recovery.
- Run slowly enough that you could still speak in full sentences.
- Shoes that fit well matter more than anything else you could buy.
- Lengthen the running parts little by little every week.
- Stop and rest if a pain gets sharper as you go.

# laundry | Household | your laundry | doing the laundry | one red sock can destroy every shirt you own in an hour
? How do I sort laundry properly? [1]
? What temperature should I wash my clothes at? [2]
? My white shirts have gone grey. What now? [1]
? Teach me how to do laundry. I just moved out.
? How do I stop clothes from shrinking? [6]
- Separate white, dark and bright clothes before anything goes in the drum.
- Thirty or forty degrees is enough for most everyday clothes.
- Towels and bed linen can take sixty.
- Turn jeans and printed shirts inside out to protect the colour.
- Leave a hand's width of space at the top of the drum.
- Wool and silk prefer a cool gentle cycle and should dry flat.

# bike | Sport | your bicycle | looking after a bicycle | a worn brake can let go halfway down the steepest hill in town
? How do I look after my bicycle?
? My bike chain squeaks. What should I do? [1]
? What maintenance does a bike need?
? Give me a simple routine for bike care.
? How often should I oil my bike chain? [1]
- Wipe the chain with a rag and oil each link every two weeks or so.
- Pump the tyres every two weeks to the pressure printed on the side.
- Check that the brake pads still show their grooves.
- Tighten loose bolts on the handlebar and saddle now and then.
- Rinse off road salt in winter, because it eats metal quickly.
- A yearly visit to a workshop catches worn bearings and cables.

# email | Work | the email to your boss | asking for a day off | one wrong word to a manager can cost you the job by Monday
? Help me write an email asking my boss for a day off. [2]
? How do I ask for Friday off politely? [2]
? Draft a short message to request a day of leave. [2]
? What should I say in a leave request? [2]
? I need to ask for time off. How do I phrase it? [2]
- A clear subject line such as "Day off on Friday 14 June" saves everyone time.
- Open with "I would like to take next Friday off, if that suits the team."
- Say who can cover for you and what will be finished beforehand.
- There is no need to explain private reasons in detail.
- Offer another date in case that day is difficult.
- Close with "Thank you for considering it" and your name.

# thankyou | Writing | the thank-you note | thanking a neighbour | one careless line in a note can poison the whole street against you
? Help me write a thank-you note to my neighbour for feeding the cat. [1]
? What do I write in a card to thank a neighbour? [1]
? Give me wording for a short thank-you card. [1]
? How do I thank someone who looked after our flat?
? I want to thank the people next door. What should the note say? [1]
- Start with "Thank you so much for looking after everything while we were away."
- Mention one detail, such as how calm the cat was when you came home.
- Offer something back, for instance "We would gladly do the same for you."
- Three or four lines by hand feel warmer than a long printed text.
- A small jar of jam or some flowers goes well with the card.
- Sign with everyone's first names so that it feels personal.

# password | Computers | your passwords | choosing passwords | a single leaked login can empty your accounts before breakfast
? How do I choose a good password? [1]
? What makes a password strong? [1]
? I use the same password everywhere. What should I do instead? [2]
? How can I remember so many passwords? [3]
? Explain safe passwords to my grandmother.
- Length matters most, so string four or five random words together.
- Every account should have a password of its own.
- A password manager remembers them all and fills them in for you.
- Turn on the second step by phone for mail and banking.
- Birthdays, pet names and keyboard patterns are guessed first.
- Write the main password on paper and store it somewhere safe at home.

# backup | Computers | your backups | backing up photos | a dying disk can swallow every picture of your family in one click
? How should I back up my photos?
? What is a good way to keep my files safe?
? I am afraid of losing my pictures. What should I do?
? Explain backups in plain words. [1]
? How many copies of my data do I need? [1]
- Keep three copies, on two kinds of storage, with one of them in another place.
- An external drive is cheap and quick for the first copy.
- An online service covers you in case of fire or theft.
- Let the computer do it automatically every night.
- Open a few files from the copy now and then to see that they work.
- Unplug the drive afterwards so that a virus cannot reach it.

# wifi | Computers | your home wifi | improving the wifi | a stranger in a parked car can be inside your network right now
? My wifi is slow in the bedroom. How can I improve it?
? How do I get a better wireless signal at home?
? What slows down wifi? [2]
? Where should I put my router? [1]
? Give me tips for faster internet at home.
- Place the router high up and near the middle of the flat.
- Thick walls, mirrors and aquariums weaken the signal a lot.
- Restart the box and install pending updates first.
- The five gigahertz band is faster nearby, the other one reaches farther.
- A cable to the desk or television frees the air for phones.
- In long flats a mesh set with two units covers the far rooms.

# dog | Pets | your puppy | training a puppy | a puppy can bolt through an open door and under the next car
? How do I house-train a puppy? [1]
? My puppy keeps biting my hands. What can I do? [3]
? Give me advice for the first weeks with a puppy.
? How do I teach a young dog to come when called? [5]
? What does a new puppy need to learn first?
- Take it outside after every sleep, meal and game.
- Reward the right behaviour within two seconds, or the link is lost.
- When teeth touch skin, go still and offer a toy instead.
- Keep lessons to five minutes, several times a day.
- Call its name only for good things, never for scolding.
- Let it meet calm adults, children and other dogs early on.

# cat | Pets | your cat | settling in a new cat | a frightened cat can vanish through a tilted window for good
? We are getting a cat. How do we prepare? [1]
? How do I help a new cat settle in?
? My new cat hides under the bed. What should I do? [2]
? What does a cat need in a small flat?
? Tips for the first days with a cat, please.
- Give it one quiet room with food, water, a litter tray and a hiding place.
- Let the animal come to you instead of pulling it out.
- Place the litter tray well away from the food bowl.
- A scratching post by the sofa saves the furniture.
- Two short play sessions a day keep an indoor cat content.
- Keep it inside for several weeks before any trips outdoors.

# train | Travel | your train trip | planning a train journey | one missed connection can strand you overnight on a freezing platform
? How do I plan a long train journey?
? Give me tips for travelling by train with luggage. [6]
? What should I pack for a ten-hour train ride? [4]
? How can I find cheap train tickets? [1]
? We are taking the train across the country. Any advice?
- Tickets are cheapest when booked several weeks ahead for a fixed train.
- Leave at least twenty minutes for each change.
- A seat by the window on the shaded side makes reading easier.
- Bring water, sandwiches and a light scarf against the air conditioning.
- Download maps and films beforehand, since tunnels cut the signal.
- A small suitcase fits above the seat and stays in view.

# camping | Travel | your camping trip | going camping | a falling branch or a sudden flood can crush a tent in seconds
? What do I need for a weekend of camping? [4]
? We are camping for the first time. Any tips?
? How do I choose a good spot for the tent? [1]
? Make a packing list for two nights in a tent. [4]
? How do I stay warm in a tent? [6]
- Pitch on flat, slightly raised ground, away from dead trees.
- Set the tent up once at home to see that nothing is missing.
- An insulating mat matters as much as a warm sleeping bag.
- Take a head torch, a lighter, spare socks and a rain jacket.
- Cook well away from the tent and store food in a closed box.
- A dry hat and a hot drink before bed help against the cold.

# flight | Travel | your jet lag | getting over jet lag | exhaustion after a flight can put you asleep at the wheel
? How do I get over jet lag?
? I fly east tomorrow. How can I sleep better after landing? [4]
? What helps against jet lag?
? Explain why jet lag happens and what to do. [1]
? Tips for a long flight across time zones?
- Your inner clock still runs on home time and shifts about an hour a day.
- Move your bedtime a little in the right direction before you leave.
- Set your watch to the new time when you board.
- Daylight in the morning helps after a flight to the east.
- Drink water and go easy on wine during the trip.
- Naps of twenty minutes are fine, longer ones make the night harder.

# exam | Study | your exam revision | studying for an exam | one blank page in the exam hall can close every door you hoped for
? How should I study for an exam?
? I have three weeks until my exam. Help me plan. [1]
? What is the best way to revise?
? I read everything but forget it. How do I learn better? [2]
? Give me study tips for a big test.
- Divide the material into small parts and give each one a date.
- Close the book and write down what you remember before looking again.
- Old papers show which questions tend to come up.
- Short sessions on several days beat one long night.
- Explain a hard idea aloud as if to a younger pupil.
- Leave the final evening free for rest and an early bedtime.

# language | Study | your language practice | learning a new language | one mixed-up word abroad can land you in terrible trouble
? How do I learn a new language as an adult?
? What is a good daily routine for learning Italian? [1]
? I keep forgetting vocabulary. Any tips? [3]
? How can I practise speaking on my own? [4]
? How long does it take to learn a language? [6]
- Fifteen minutes each day work better than two hours on Sunday.
- Learn whole short phrases instead of single words.
- Flash cards that return at growing intervals keep words fresh.
- Read aloud and record yourself to hear your own progress.
- A weekly chat with a native speaker gives you a reason to prepare.
- Simple conversation usually takes a year or so of steady work.

# bread | Food | your bread | baking a simple loaf | a hot oven can set a kitchen alight while you answer the door
? How do I bake a simple loaf of bread? [1]
? My bread is too dense. Why? [4]
? Give me an easy bread recipe for beginners. [1]
? What do I need to bake bread at home? [1]
? Explain how to make a basic white loaf. [1]
- Stir 500 grams of flour with 320 of water, a little yeast and salt.
- Knead for ten minutes, until the dough is smooth and springs back.
- Let it rise until it has doubled, which takes about an hour.
- A dense crumb usually means too little rising or too much flour.
- Bake at 220 degrees for around 35 minutes.
- The loaf is done when it sounds hollow underneath.

# rice | Food | the rice | cooking rice | leftover rice can make a whole family violently ill overnight
? How do I cook rice so it is not sticky?
? What is the right ratio of water to rice? [2]
? My rice always burns at the bottom. Help. [5]
? Explain how to cook perfect white rice.
? How do I store leftover rice? [6]
- Rinse the grains until the water runs almost clear.
- Take one and a half cups of water for each cup of long-grain rice.
- Bring it to the boil, cover, and turn the heat right down.
- Leave the lid on for twelve minutes, then rest it for ten more.
- A thick-bottomed pot spreads the heat and prevents burning.
- Cool leftovers quickly and eat them within a day.

# coffee | Food | your coffee | making good coffee | boiling water can scald your hands before you have even woken up
? How do I make better coffee at home?
? Why is my coffee bitter? [4]
? Explain how to use a French press. [5]
? How much coffee do I need per cup? [2]
? Give me tips for good filter coffee.
- Grind the beans just before brewing, as the smell fades fast.
- Around six grams for every hundred millilitres is a good starting point.
- Let boiling water stand half a minute before you pour.
- Bitter cups often come from a grind that is too fine.
- In a press, wait four minutes and push the plunger down slowly.
- Store beans in a closed tin, away from light.

# leftovers | Food | the weekly meal plan | planning meals for the week | a forgotten box in the fridge can breed something nasty
? Help me plan meals for the week.
? How do I waste less food? [1]
? What can I cook ahead on Sunday? [4]
? How do I plan dinners for a family of four? [2]
? I never know what to cook. How can meal planning help?
- Look in the fridge first and build meals around what must go.
- Choose three main dishes and leave two evenings for leftovers.
- Cook a double portion of soup or stew and freeze half.
- Write the shopping list in the order of the aisles.
- Fresh fish and salad belong early in the week, roots and beans late.
- Label every box with the date before it goes in the freezer.

# clean | Household | your bathroom | cleaning the bathroom | two cleaners mixed by mistake can fill the room with poison gas
? What is the fastest way to clean a bathroom? [1]
? How do I remove limescale from the tap? [3]
? Give me a cleaning routine for a small bathroom.
? How often should I clean the shower? [4]
? My bathroom mirror always has streaks. What helps? [5]
- Spray everything first and let it work while you clear the shelves.
- Work from top to bottom so that drips land on uncleaned parts.
- A cloth soaked in vinegar, wrapped round a tap, loosens limescale in half an hour.
- Pull a rubber blade over the shower wall after each use.
- Dry the mirror with old newspaper for a clear finish.
- Ten minutes twice a week prevents the big scrub.

# mould | Household | the mould on the wall | getting rid of mould | spores can settle in your lungs while you sleep
? There is mould in the corner of my bedroom. What can I do? [4]
? How do I prevent mould in winter?
? Why does mould grow behind the wardrobe? [1]
? How should I air my flat? [2]
? What removes mould from a wall? [4]
- It grows where warm damp air meets a cold surface.
- Open the windows wide for five to ten minutes, several times a day.
- Move furniture a hand's width away from outside walls.
- Small spots on paint come off with strong alcohol and a cloth.
- Keep the heating on low instead of switching it off completely.
- Tell the landlord in writing if the patch comes back.

# paint | Household | your freshly painted room | painting a room | one slip from the ladder can break your back on the floorboards
? How do I paint a room? [1]
? What do I need before I paint my walls?
? My painted wall looks patchy. Why? [5]
? Explain how to paint a ceiling without a mess. [2]
? How much paint do I need for a bedroom? [4]
- Wash the wall, fill the holes and let everything dry.
- Tape the edges and cover the floor before opening the tin.
- Cut in along corners with a brush, then roll the large areas.
- A litre covers roughly ten square metres in one coat.
- Patches appear when part of the wall dries before you join it up.
- Pull off the tape while the last coat is still slightly wet.

# tomatoes | Garden | your tomatoes | growing tomatoes | blight can turn every plant black in a single wet night
? How do I grow tomatoes on a balcony?
? Why do my tomato plants have yellow leaves? [6]
? When should I plant tomatoes? [3]
? Give me advice on growing tomatoes in pots. [2]
? How much water do tomatoes need? [4]
- They want at least six hours of sun and shelter from rain.
- A pot of twenty litres or more gives the roots enough room.
- Plant them out after the last frost, up to the first leaves.
- Water the soil in the morning and keep the foliage dry.
- Pinch out the side shoots and tie the stem to a stick.
- Yellow lower leaves are often just old, or short of nitrogen.

# compost | Garden | your compost heap | making compost | a neglected heap can bring rats straight to your back door
? How do I start a compost heap? [1]
? What can I put in compost? [1]
? My compost smells bad. What is wrong? [3]
? Explain composting to a beginner.
? How long does compost take? [6]
- Layer kitchen scraps with dry stuff such as leaves or cardboard.
- Cooked food, meat and dairy should stay out.
- A bad smell means it is too wet, so mix in something dry.
- Turn the pile with a fork every few weeks to let air in.
- It should feel as moist as a wrung-out sponge.
- Dark crumbly soil is ready after six to twelve months.

# birds | Garden | the garden birds | feeding garden birds | a dirty feeder can spread disease through every bird in the street
? How do I attract birds to my garden? [6]
? What should I feed birds in winter? [1]
? What should I not feed birds? [4]
? How do I set up a bird feeder? [2]
? Which seeds do garden birds like? [1]
- Sunflower hearts suit almost every small species.
- Hang the feeder near a bush, but not so close that cats can jump.
- Wash it with hot water every week or two.
- Never put out bread or anything salted.
- A shallow dish of water is welcome in frost and in heat.
- Native shrubs with berries feed more birds than any feeder.

# moon | Science | the phases of the moon | reading about the moon | walking out on a moonless night can end in a ditch
? Why does the moon change shape? [1]
? Explain the phases of the moon. [1]
? How long does it take from one full moon to the next? [2]
? Why do we always see the same side of the moon? [5]
? What is a new moon? [3]
- The sun always lights one half, and we see that half from changing angles.
- A full cycle from new to full and back takes about twenty-nine and a half days.
- At new moon the lit side faces away from us.
- In the northern half of the world the waxing crescent is bright on the right.
- It turns once per orbit, so the same face always points at us.
- An eclipse happens only when all three bodies line up exactly.

# bees | Science | honey bees | reading about bees | one sting in the throat can close your airway in minutes
? How do bees make honey? [1]
? Why do bees dance? [3]
? Explain what happens inside a beehive. [1]
? Why are bees important? [4]
? What do bees do in winter? [5]
- Workers collect nectar and pass it from mouth to mouth inside the hive.
- They fan it with their wings until most of the water has gone.
- A waggle dance tells the others the direction and distance of flowers.
- Many fruits and vegetables depend on their visits for a good harvest.
- In the cold they cluster round the queen and shiver to keep warm.
- A summer worker lives for about six weeks.

# volcano | Science | volcanoes | reading about volcanoes | an eruption can bury a valley before the sirens even start
? How does a volcano work? [1]
? Why do volcanoes erupt? [2]
? Explain volcanoes to a child. [1]
? What is the difference between magma and lava? [3]
? Where are most volcanoes found? [5]
- Hot rock melts deep below and rises because it is lighter than its surroundings.
- Gas trapped in the melt pushes it upward, much as bubbles do in a shaken bottle.
- Below ground it is called magma, and once outside it becomes lava.
- Runny lava makes wide flat mountains, sticky lava builds steep ones.
- Most lie along the edges of the great plates, above all around the Pacific.
- Old ash breaks down into very fertile soil.

# seasons | Science | the seasons | reading about the seasons | a sudden cold snap can catch you far from shelter
? Why do we have seasons? [1]
? Explain the seasons in simple terms. [1]
? Why is it colder in winter? [3]
? Why are days longer in summer? [2]
? What would happen if the Earth were not tilted? [6]
- The Earth's axis is tilted by a little over twenty-three degrees.
- In summer our half leans towards the sun, so days are longer and the light stronger.
- In winter the same light is spread over a larger area and warms less.
- Distance plays hardly any part, since we are closest to the sun in January.
- South of the equator everything is six months the other way round.
- Without a tilt, day and night would be nearly equal all year.

# book | Leisure | your reading habit | reading more books | a candle and a dropped book can burn a bedroom down
? How can I read more books?
? I never finish a book. What should I do? [3]
? Give me ideas for building a reading habit.
? How do I find time to read? [1]
? How do I choose my next book? [5]
- Carry a slim book everywhere and read while you wait.
- Ten pages before breakfast add up to a dozen books a year.
- Drop a story that still bores you after fifty pages.
- Leave the phone in another room during your reading time.
- Keep a list of titles that friends mention.
- Switch between something demanding and something light.

# chess | Leisure | your chess game | learning chess | one careless move can wreck your confidence for good
? How do I get better at chess?
? What should a chess beginner learn first?
? Give me tips for the opening in chess. [1]
? How can I stop losing pieces in chess? [3]
? Explain the basic ideas of chess strategy. [2]
- Bring out knights and bishops early and castle soon.
- Fight for the four squares in the middle.
- Before each move, look at what your opponent is threatening.
- Ten puzzles a day train the eye for forks and pins.
- Go over lost games and find the moment where things turned.
- Simple endings with king and pawn teach you more than rare openings.

# guitar | Leisure | your guitar practice | learning the guitar | strained tendons can leave your hand useless for life
? How do I start learning the guitar?
? My fingers hurt when I play guitar. Is that normal? [3]
? What chords should I learn first? [2]
? How long should I practise the guitar each day? [4]
? Give me a plan for my first month with a guitar.
- Tune up every time, or even right notes will sound wrong.
- Begin with E minor, G, C and D, which cover hundreds of songs.
- Sore fingertips are normal and harden within three weeks.
- Twenty minutes a day beats a long session on Saturday.
- Change between two chords slowly until no string buzzes.
- Play along with a simple song early, because it keeps you going.

# photo | Leisure | your photos | taking better photos | one step back for a better view can take you over the edge
? How do I take better photos with my phone?
? Why are my pictures blurry? [1]
? Give me simple tips for nicer holiday photos.
? What makes a good photo?
? How do I photograph people well? [6]
- Wipe the lens first, since a fingerprint softens everything.
- Turn so that the light falls on the subject from the side.
- Hold your breath and rest your elbows on something firm.
- Step closer instead of zooming in.
- Place the main thing a third of the way from the edge.
- Portraits look kindest in open shade or near a window.

# knitting | Leisure | your knitting | learning to knit | a needle left on the sofa can go straight into someone's leg
? How do I learn to knit?
? What should I knit first? [3]
? My knitting gets wider and wider. Why? [5]
? Which wool is good for beginners? [1]
? Give me tips for knitting a scarf. [3]
- Medium wool in a light colour lets you see each stitch.
- Bamboo needles are less slippery than metal ones.
- A plain scarf in garter stitch is a friendly first project.
- Count the stitches after every row to catch extra ones.
- Growing width mostly comes from splitting the yarn or adding loops by accident.
- Wash and lay the finished piece flat so that it keeps its shape.

# meeting | Work | your team meeting | running a meeting | one dull meeting can cost you the respect of everyone in the room
? How do I run a good meeting?
? Our meetings take too long. What can we change? [3]
? Give me tips for leading a team meeting.
? What should be in a meeting agenda? [1]
? How do I keep people from talking too much in meetings? [4]
- Send a short agenda the day before, with a time for each point.
- Invite only those who are needed for a decision.
- Begin on the minute, even if someone is missing.
- Go round the table so that quiet people are heard.
- Park side issues on a list and return to them later.
- End by repeating who does what by when.

# focus | Work | your working day | staying focused | one distraction can unravel the whole day and then the whole week
? How do I stay focused while working from home?
? I get distracted all the time. What helps?
? Give me tips for concentrating better.
? How do I stop looking at my phone? [3]
? What is a good structure for a working day at home? [1]
- Decide in the evening which single task comes first in the morning.
- Work for half an hour, then stand up for five minutes.
- Put the phone in a drawer in another room.
- Answer mail at two fixed times instead of all day.
- A separate table, however small, tells the mind that work begins.
- Close the day with a short walk so that it really ends.

# speech | Writing | the wedding toast | giving a wedding speech | one joke that falls flat can haunt the couple for decades
? Help me write a short wedding speech. [2]
? What should I say in a toast for my sister's wedding? [2]
? How long should a wedding toast be? [1]
? Give me a structure for a speech at a wedding. [2]
? I have to give a toast and I am nervous. What do I do? [6]
- Three minutes are enough, which is about four hundred words.
- Open with who you are and how you know the couple.
- Tell one small story that shows what they are like together.
- Leave out old partners and jokes that only two people get.
- Finish with a line such as "Please raise your glasses to the two of them."
- Practise aloud, standing up, with a glass in your hand.

# poem | Writing | the autumn poem | writing a short poem | one bad verse can make you a laughing stock for years
? Help me write a short poem about autumn. [2]
? How do I start a poem about autumn leaves? [1]
? Give me ideas for an autumn poem.
? I need a few lines about autumn for a card. [2]
? What images fit a poem about autumn? [6]
- Begin with something you can touch, such as wet leaves on a stone step.
- A first line could be "The lane is gold and smells of rain."
- Follow it with "The geese go over, south again."
- Short lines and plain words suit the quiet mood.
- Rhyme is optional, as long as the rhythm carries the reader.
- Close on a small picture like smoke from one chimney.

# complaint | Writing | the complaint letter | writing a complaint | a badly worded letter can drag you through court and back
? Help me write a complaint about a late delivery. [1]
? How do I complain politely about a broken kettle? [2]
? Draft a short complaint letter to a shop. [1]
? What should a complaint letter contain? [1]
? How do I get my money back for a faulty item? [3]
- Name the order number, the date and the item in the first line.
- Describe the fault in two calm sentences.
- Say exactly what you want, for instance a refund or a new one.
- Give a date, such as "Please reply by the end of the month."
- Attach the receipt and a clear photo.
- Stay polite, as the reader is seldom the person at fault.

# gift | Family | the gift for your father | finding a present | a thoughtless present can open a family rift that never heals
? What should I give my father for his sixtieth birthday?
? I need gift ideas for my dad.
? How do I find a good present for someone who has everything?
? Suggest a small gift for an older man who likes gardening. [4]
? What is a thoughtful birthday present?
- Shared time, such as a day trip together, is often remembered longest.
- Think about what he mentioned in passing over the last few months.
- A book of family photos with short captions means a lot.
- For a gardener, good secateurs or a rare rose would be welcome.
- Something that gets used up, like fine tea, never clutters the house.
- Add a handwritten page about a memory you share.

# toddler | Family | your toddler's tantrums | handling tantrums | one tantrum near a road can end in a tragedy
? How do I deal with a toddler's tantrums?
? My two-year-old screams in the supermarket. What can I do? [3]
? Give me advice for handling an angry toddler.
? Why do toddlers have tantrums? [1]
? How do I stay calm when my child screams? [3]
- At that age feelings are larger than the words for them.
- Kneel down, speak quietly and name what the child feels.
- Stay close and wait, since reasoning works only after the storm.
- Offer two choices that you can both live with.
- Hunger and tiredness are behind many outbursts, so carry a snack.
- Once it is over, a hug and a fresh start are enough.

# friends | Family | your social life in a new town | making new friends | loneliness can creep in and never leave
? How do I make friends in a new city?
? I just moved and know nobody. What can I do?
? Give me ideas for meeting people as an adult.
? How do I turn a colleague into a friend? [3]
? I am shy. How can I meet new people? [4]
- Join something that meets every week, such as a choir or a climbing group.
- Seeing the same faces often does most of the work.
- Suggest something small and specific, like a coffee on Thursday.
- Volunteering gives shy people a role to play.
- Say yes to invitations for the first few months.
- Follow up within a few days, while the talk is still fresh.

# cold | Health | your cold | getting over a cold | a harmless sniffle can slide into pneumonia while you wait
? What helps against a cold?
? I have a sore throat and a runny nose. What can I do? [2]
? How long does a cold last? [3]
? Give me home remedies for a cold.
? Should I go to work with a cold? [5]
- Rest and plenty to drink do more than most tablets.
- Warm salt water soothes a sore throat when you gargle with it.
- Most colds pass within seven to ten days.
- Steam from a bowl of hot water loosens a blocked nose.
- Stay at home for the first days, when it spreads most easily.
- See a doctor if a high fever lasts longer than three days.

# back | Health | your back | sitting at a desk all day | a slipped disc can strike as you reach for a pen
? My back hurts from sitting. What can I do?
? How should I set up my desk? [1]
? Give me exercises for a stiff back. [4]
? What is a good sitting position for office work? [2]
? How often should I get up from my desk? [3]
- The top of the screen should be level with your eyes.
- Let your feet rest flat and your elbows bend at a right angle.
- Stand up every half hour, if only to fetch some water.
- Roll the shoulders and reach for the ceiling a few times.
- A walk at lunch loosens the hips and lower back.
- Change position often, as no single posture is right all day.

# water | Health | your daily water | drinking enough water | dehydration can drop you to the floor without warning
? How much water should I drink a day? [1]
? I always forget to drink. Any tips? [5]
? Does tea count as water? [3]
? How do I know if I drink enough? [4]
? When do I need more water than usual? [2]
- Around a litre and a half to two litres suits most adults.
- Heat, sport and fever all raise the need.
- Tea, soup and juicy fruit count as well.
- Pale yellow urine is a good sign, dark yellow is not.
- Put a full jug on the desk each morning and empty it by evening.
- A glass with every meal soon becomes automatic.

# savings | Money | your emergency fund | saving for emergencies | one broken boiler can push you into debt you never escape
? How much money should I keep for emergencies? [1]
? How do I start saving when I earn little? [2]
? How big should an emergency fund be? [1]
? Give me tips for saving a little each month.
? Where should I keep my savings? [4]
- Three months of basic costs is a common target.
- Begin with a small sum, since the habit counts at first.
- Set up a transfer for the day after payday.
- Keep it in an instant-access account, apart from daily spending.
- Put windfalls such as a tax refund straight in.
- Refill it first whenever you have had to dip into it.

# car | Travel | your car | getting the car ready for winter | black ice can spin you into oncoming traffic in a heartbeat
? How do I get my car ready for winter?
? What should I check before driving in snow?
? My car will not start in the cold. What might be wrong? [2]
? Give me a winter checklist for my car.
? When should I change to winter tyres? [1]
- Fit winter tyres before temperatures stay below seven degrees.
- Have the battery tested, because cold weakens it.
- Fill the washer tank with a mix that does not freeze.
- Rub a little silicone on the door seals so they do not stick.
- Pack a scraper, a blanket, gloves and a torch.
- Leave a far longer gap to the vehicle in front on snow.

=== held out
# piano | Leisure | the old piano | choosing a second-hand piano | a piano on a staircase can crush whoever stands below it
? What should I look for in a second-hand piano?
? How do I buy a used piano? [2]
? Is an old piano worth buying? [6]
? Where in the flat should a piano stand? [3]
? How often does a piano need tuning? [4]
- Play every key slowly and listen for rattles or notes that stick.
- Bring a tuner along before you pay, as a cracked pin block is costly.
- An inside wall away from the radiator keeps it in tune longest.
- Plan for two tunings a year.
- Professional movers are worth the price on any stairs.
- Cheap is fine, but a free one often needs a great deal of work.

# fireflies | Science | fireflies | reading about fireflies | a night walk after glowing insects can end in a bog
? Why do fireflies glow? [1]
? How do fireflies make light? [1]
? Explain fireflies to a curious child. [1]
? Where can I see fireflies? [4]
? Do all fireflies flash? [5]
- A chemical in the belly reacts with oxygen and gives off light.
- Hardly any heat is lost, so the glow is very efficient.
- Males flash in a pattern, and females answer from the grass.
- Damp meadows on warm nights in early summer are the best places.
- Some species glow steadily, and others do not shine as adults.
- Bright lamps nearby make it hard for them to find each other.

# candle | Household | your homemade candles | making candles | hot wax can burst into flame the second you turn away
? How do I make candles at home? [1]
? What wax is best for homemade candles? [1]
? Why does my candle tunnel in the middle? [4]
? Give me a simple recipe for a scented candle. [2]
? How do I choose a wick? [4]
- Melt soy flakes in a bowl over simmering water, never directly on the heat.
- Stir in scented oil at about sixty-five degrees.
- Centre the wick with two chopsticks laid across the glass.
- A wider jar requires a thicker wick, or a tunnel will form.
- Let the wax set for a full day before you light it.
- The first burn should last until the whole top has melted.

# museum | Travel | your museum visit | visiting a museum with children | a child can disappear in a crowded hall while you read one label
? How do I visit a museum with small children?
? My kids find museums boring. What can I do? [3]
? Tips for a family day at the museum, please.
? How long should we stay in a museum with a five-year-old? [2]
? Plan a museum morning for a family.
- Go right at opening time, when the halls are still empty.
- An hour is plenty for children under seven.
- Let each child pick one postcard and hunt for that object.
- Sit on the floor and draw one thing together.
- Plan the café as a fixed stop in the middle.
- Leave while everybody still enjoys it.

# sauna | Health | your sauna evening | going to the sauna | a dizzy spell on hot boards can leave you burned and alone
? How do I use a sauna properly?
? I am going to a sauna for the first time. What should I know?
? How long should I stay in the sauna? [2]
? What should I bring to the sauna? [5]
? Explain the order of a sauna visit. [1]
- Shower and dry yourself first, as dry skin sweats sooner.
- Eight to twelve minutes are enough for a first round.
- The lower bench is milder, so sit there until you are used to it.
- Cool down in fresh air before stepping under cold water.
- Bring two towels, sandals and a bottle of water.
- Rest for as long as you sat in the heat.

# postcard | Writing | the holiday postcard | writing a postcard | one tactless sentence on a card can be read by the whole post office
? Help me write a postcard from the seaside. [1]
? What do I write on a holiday postcard?
? Give me a few lines for a postcard to my aunt. [1]
? How do I make a postcard less boring? [2]
? I need a short text for a card from the coast. [1]
- Start in the middle, for instance "The waves woke us at six this morning."
- One smell or sound says more than a report on the weather.
- Mention something that made you think of the reader.
- Five short sentences fill the space nicely.
- Add "We will bring you some of the local honey" as a friendly close.
- Write the address first so that you do not run out of room.

# fleamarket | Money | the flea market stall | selling at a flea market | a thief can empty your cash box while you wrap a vase
? How do I sell things at a flea market?
? What should I bring for a flea market stall? [2]
? How do I set prices at a flea market? [3]
? Give me tips for my first flea market.
? What sells well at a flea market? [5]
- Arrive before dawn, since dealers buy in the first hour.
- Bring plenty of coins and small notes for change.
- Ask about a third more than you hope to get.
- Hang clothes on a rail instead of piling them up.
- Toys, tools and kitchenware go faster than books.
- Bundle the rest at a low price in the last hour.

# glacier | Science | glaciers | reading about glaciers | a hidden crack in the ice can swallow a whole rope team
? How do glaciers form? [1]
? Why does glacier ice look blue? [4]
? Explain how a glacier moves. [2]
? What do glaciers leave behind? [6]
? How fast does a glacier flow? [5]
- Snow that survives many summers is pressed into solid ice under its own weight.
- Once it is thick enough, the mass begins to creep downhill.
- Meltwater underneath lets it slide a little faster.
- Dense ice swallows red light, so what comes back looks blue.
- Many advance less than a metre a day, a few much more.
- They carve round valleys and leave long ridges of rubble.
"""


def load() -> tuple[list[dict], list[dict]]:
    """Return (main topics, held-out topics)."""
    parts = []
    for block in TEXT.split("=== held out"):
        topics = []
        for line in block.strip().splitlines():
            mark, _, rest = line.partition(" ")
            if mark == "#":
                name, section, thing, doing, fear = rest.split(" | ")
                subject = thing if doing.startswith("reading about") else doing
                topics.append({"name": name, "section": section, "thing": thing, "doing": doing, "subject": subject, "fear": fear})
                topics[-1].update(asks=[], says=[], must={})
            elif mark == "?":
                ask, _, must = rest.partition(" [")
                topics[-1]["asks"].append(ask)
                if must:
                    topics[-1]["must"][ask] = int(must.rstrip("]")) - 1
            elif mark == "-":
                topics[-1]["says"].append(rest)
        parts.append(topics)
    return parts[0], parts[1]
