"""Topics, part C.  Same format as part A."""

TEXT = """
# windows | do | cleaning windows
? How do I clean windows without streaks?
? What can I use instead of glass cleaner?
? When is the best time to wash the windows?
? How do I clean the tracks of a sliding window?
- Wash the windows on a cloudy day, because sun dries the water into streaks.
- A few drops of washing-up liquid in warm water are enough for most panes.
- Pull a rubber squeegee from top to bottom and wipe the blade each time.
- Dust the frames first, or the dirt will run down the wet glass.
- Equal parts of water and white vinegar remove grease and chalky marks.
- Polish the corners with a dry cloth that leaves no lint behind.
- Wipe the inside up and down and the outside sideways to see where streaks are.
- Dried paint comes off wet glass with a flat blade held at a low angle.
- Vacuum the tracks of a sliding window before you wipe them with a damp brush.
- Crumpled newspaper still gives old panes a clear shine.
- Change the water as soon as it looks grey and leaves a film.
- Twice a year is enough for most homes that are not on a busy road.

# drain | do | clearing a blocked drain
? The water in my sink drains very slowly. What can I do?
? How do I get hair out of the shower drain?
? Are chemical drain cleaners a good idea?
? How do I stop the kitchen sink from clogging?
- Pull out hair with a hooked wire before you try anything else.
- Cover the overflow with a wet cloth so that the plunger can build pressure.
- Baking soda followed by vinegar loosens soft deposits in half an hour.
- Place a bucket under the trap before you unscrew it by hand.
- Pour cold fat into the bin, for it turns solid inside the pipe.
- A cheap sieve over the shower drain catches hair before it goes down.
- Harsh chemicals can damage older pipes and burn the skin and eyes.
- A flexible cleaning spiral reaches blockages a few metres down the pipe.
- Flush the kitchen drain with a kettle of hot water once a week.
- Coffee grounds and rice swell in the pipe and belong in the compost.
- Call a plumber when several drains in the house are slow together.
- Take a photo of the trap before taking it apart, which makes rebuilding easier.

# painting | do | painting a room
? How do I paint a wall so that no marks show?
? How much paint do I need for a small bedroom?
? Do I have to sand the wall before painting?
? How do I get clean edges when painting?
- Fill holes with plaster, let it dry and sand the patch smooth.
- One litre of wall paint covers about ten square metres in a single coat.
- Press the edge of the masking tape down and remove it while the paint is wet.
- Start with the ceiling and then work down the walls.
- Roll each strip into the last one while its edge is still wet.
- Two thin coats look more even than one thick coat.
- Wash greasy walls with sugar soap, because paint peels off grease.
- Mix the tins of one colour in a bucket so that the shade is the same.
- Wrap the roller in foil between coats, and it will not dry out.
- Test the colour on a sheet of card and look at it by day and by lamp.
- A primer keeps dark walls and water stains from showing through.
- Keep a window open and leave the room empty until the smell has gone.

# houseplants | do | caring for houseplants
? Why are the leaves of my plant turning yellow?
? How often should I water my houseplants?
? Which plants do well in a dark room?
? When should I repot a plant?
- Water only when the top two centimetres of soil feel dry.
- Yellow leaves are most often a sign of too much water.
- Every pot needs a hole at the bottom through which water can drain.
- Snake plants and cast iron plants cope well with dim corners.
- Repot in spring when roots begin to grow out of the bottom.
- Turn the pot a little each week so that the plant grows straight.
- Brown tips point to dry air, and a tray of wet pebbles helps.
- Feed plants every two weeks in summer and stop in the winter months.
- Wipe dust from broad leaves, since it keeps the light away.
- Use water at room temperature, because cold water shocks tropical roots.
- Move a new plant away from the others until you know it has no pests.
- A pot just two centimetres wider than the old one is large enough.

# compost | do | making compost
? What can I put on a compost heap?
? Why does my compost smell bad?
? How long does compost take?
? How do I start a compost heap in a small garden?
- Mix wet kitchen scraps with dry leaves, straw or torn cardboard.
- A bad smell means that the heap is too wet and needs dry material.
- Turn the heap once a month to let air into the middle.
- Leave meat, cheese and cooked food out, as they attract rats.
- Ripe compost is dark and crumbly and smells like the floor of a forest.
- Most heaps need between six months and a year to be ready.
- Set the bin on bare soil so that worms can come in from below.
- Cut thick stems into short pieces, and they will rot much faster.
- Water the heap in dry weeks until it feels like a squeezed sponge.
- Crushed eggshells, tea leaves and coffee grounds are all welcome on the heap.
- Weeds with ripe seeds survive a cool heap and come up again later.
- Spread two centimetres of compost on the beds in early spring.

# tomatoes | do | growing tomatoes
? How do I grow tomatoes on a balcony?
? Why do my tomatoes split?
? When can I put tomato plants outside?
? How do I get more fruit from my tomato plants?
- Tomatoes need at least six hours of sun every day.
- Plant tomatoes outside only after the last frost, usually in the middle of May.
- Set the stem deep in the soil, for it will grow extra roots.
- Water the soil and not the leaves, since wet leaves invite disease.
- Fruit splits when a heavy rain follows a long dry spell.
- Pinch out the small shoots that grow between the stem and the leaves.
- Tie the plant loosely to a stake as it gains height.
- A bucket of twenty litres is large enough for one plant on a balcony.
- Feed the plants every week once the first fruits have appeared.
- A gentle shake of the flowers at noon helps the pollen to spread.
- Green fruit ripens indoors in a paper bag with an apple.
- Cherry varieties give the most reliable harvest in a cool summer.

# stains | do | removing stains from clothes
? How do I get red wine out of a white shirt?
? How do I remove grass stains from jeans?
? Does hot water help with blood stains?
? There is grease on my favourite jumper. What now?
- Dab the stain at once with a clean cloth instead of rubbing it.
- Rinse blood with cold water, because heat fixes it in the fibres.
- Cover fresh red wine with salt and then rinse it from the back.
- Work a drop of washing-up liquid into grease before the normal wash.
- Grass stains give way to a little alcohol on a cotton pad.
- Test any cleaner on an inside seam before you use it on the front.
- Keep a stained shirt out of the dryer until the mark has gone.
- Freeze chewing gum with ice and break it off with a spoon.
- Soak coffee and tea stains in lukewarm water with a spoon of borax.
- Ink often lifts when the cloth is laid on paper and dabbed with alcohol.
- Wool and silk should be treated with cool water and a mild soap.
- Sunlight gently bleaches the last shadow of a tomato stain.

# chess | do | getting better at chess
? How do I improve at chess as a beginner?
? What should I do in the first moves of a chess game?
? Should I learn openings by heart?
? How do I stop losing pieces for nothing?
- Bring out knights and bishops before you move the queen.
- Castle early so that your king is safe behind a row of pawns.
- Before every move, check which pieces your opponent could take next.
- Solve ten short tactical puzzles a day to train your eye.
- Learn the endings with king and pawn before you study long openings.
- Put rooks on open files, where no pawn stands in their way.
- Play slow games, since blitz leaves no time to think.
- Go through your lost games and find the move where they turned.
- Fight for the four squares in the middle from the first move.
- Trade pieces when you are ahead and avoid trades when you are behind.
- A knight on the rim of the board reaches only half as many squares.
- Write the moves down, which slows you down in a useful way.

# guitar | do | learning the guitar
? How do I start learning the guitar at forty?
? My fingertips hurt from the guitar. Is that normal?
? Which chords should I learn first?
? How long should I practise the guitar each day?
- Begin with the chords E minor, G, C and D, which fit many songs.
- Fifteen minutes every day bring more than two hours on a Sunday.
- Sore fingertips are normal at first and harden within a few weeks.
- Press the string close behind the fret to get a clear tone.
- Practise the change between two chords slowly before you play the whole song.
- Tune the guitar each time you pick it up, since strings drift.
- Keep the thumb low behind the neck so that the fingers can arch.
- A metronome at a slow speed keeps the rhythm honest.
- Leave the guitar on a stand in view, and you will play more often.
- Nylon strings are softer on the fingers than steel strings.
- Strum from the wrist and keep the forearm relaxed.
- Record yourself once a week in order to hear what has changed.

# photography | do | taking better photographs
? How can I take better photos with my phone?
? What is the rule of thirds?
? My pictures are often blurred. Why?
? What is the best light for portraits?
- Clean the lens of the phone with a soft cloth before you shoot.
- Place the main subject on a line that divides the frame into thirds.
- Soft light near a window flatters a face more than direct sun.
- Hold the camera with both hands and press the elbows to your body.
- Step closer in place of zooming, because digital zoom loses detail.
- Kneel down when you photograph children or animals, so that you meet their eyes.
- The hour after sunrise gives long shadows and warm colours.
- A short exposure time freezes motion, and a long one lets water blur.
- Check the edges of the frame for poles and bins before you press.
- Tap on the face to set both the focus and the brightness there.
- Take three pictures of a group, since someone always blinks.
- A plain background keeps attention on the person in front.

# swimming | body | learning to swim as an adult
? Can I still learn to swim at fifty?
? How do I breathe when I swim front crawl?
? I am tired after one length of the pool. What should I change?
? Which swimming stroke is the easiest?
- Start in water where you can stand and practise breathing out below the surface.
- Turn the head to the side to breathe and keep one eye in the water.
- Breathe out slowly under water so that you only need to inhale above it.
- Float on your back for a minute to feel how the water carries you.
- Lift the hips, because sinking legs slow a swimmer more than weak arms.
- Kick from the hip with loose ankles and keep the splash small.
- Rest at the wall after each length during the first weeks.
- Breaststroke lets beginners see where they are going and breathe at ease.
- A teacher beside the pool notices mistakes that you cannot feel yourself.
- Goggles that seal well make it easier to put your face in the water.
- Two short visits a week bring faster progress than one long one.
- Stretch the arm fully forward before you begin the next pull.

# citycycling | do | cycling in the city
? How do I cycle safely in heavy traffic?
? What should I check on my bike before riding to work?
? Which lock is best for a city bike?
? How far from parked cars should I ride?
- Ride a full metre away from parked cars, whose doors can open at any time.
- Look over your shoulder and hold out an arm before you turn.
- Stay out of the blind spot next to lorries at traffic lights.
- Lock the frame and not only the wheel to something fixed.
- Check brakes, tyres and lights before you leave the house.
- Use lights at dusk even when you can still see well yourself.
- Cross tram rails at a wide angle so that the wheel does not slip in.
- Choose side streets, which are often just as fast as the main road.
- Pump the tyres every two weeks, because soft tyres make hard work.
- A solid lock should cost about a tenth of the price of the bike.
- Mudguards and a light rain jacket make cycling possible all year.
- Meet the eyes of drivers at junctions before you ride on.

# interview | people | preparing for a job interview
? How should I prepare for a job interview?
? What do I say when they ask about my weaknesses?
? What should I wear to an interview at a bank?
? How do I answer "Tell us about yourself"?
- Read the advert again and prepare one example for each demand in it.
- Answer "Tell us about yourself" in two minutes and end with why you applied.
- Name a real weakness and say what you do to keep it under control.
- Arrive ten minutes early, and switch the phone off before you go in.
- Dress a little more formally than the people who already work there.
- Describe a situation, what you did in it and what came of it.
- Bring two questions about the daily work or about the team.
- Speak well of your last employer even when you parted on bad terms.
- Let a short pause pass before you answer a difficult question.
- Ask at the end when you will hear from them and how.
- Practise with a friend who asks the questions in a random order.
- Know the figure you want before the talk turns to salary.

# flatmates | people | living with flatmates
? My flatmate never washes up. What should I say?
? How do we share costs fairly in a flat?
? How do I ask my flatmate to be quieter at night?
? We argue about cleaning all the time. What could help?
- Bring up a problem within a few days instead of collecting a long list.
- Say what you saw and what you would like, without calling anyone lazy.
- A cleaning plan on the fridge settles most arguments about whose turn it is.
- Put shared costs such as soap and oil into a common purse each month.
- Agree on quiet hours during the week and on rules for guests.
- Choose a calm evening for a talk and not the minute of the mess.
- Divide the rent by the size of the rooms when they differ a lot.
- Label your own food, and keep one shelf for everything that is shared.
- Ask whether there is something that bothers the other person as well.
- A shared meal once a week keeps small annoyances small.
- Write down what you agreed on and look at it again after a month.
- Headphones after ten o'clock solve half of all quarrels about noise.

# tantrums | people | handling toddler tantrums
? My son throws himself on the floor in shops. What should I do?
? Why do toddlers have tantrums?
? Should I ignore a tantrum?
? How can I prevent tantrums before they start?
- Stay close and calm, because a small child cannot quiet down alone.
- Toddlers feel strongly long before they have the words to say so.
- Keep sentences short, such as "You are angry because you wanted the ball."
- Hunger and tiredness cause many tantrums, so carry a snack and respect nap time.
- Offer two choices that are both fine with you.
- Do not give in to what was refused, or the next tantrum will be longer.
- Tell the child five minutes before you have to leave the playground.
- Carry a screaming child out of the shop to a quieter place.
- A hug after a tantrum shows that the feeling was allowed.
- Praise the moments in which the child waits or asks with words.
- Tantrums are most frequent between the ages of one and a half and three.
- Move breakable things out of reach so that you need to say no less often.

# newtown | people | making friends in a new town
? I moved to a new city and know nobody. How do I meet people?
? How do adults make friends?
? How do I get to know my new neighbours?
? I am shy. How can I find friends after a move?
- Join something that meets every week, since friendship grows out of repetition.
- Knock on the doors of your neighbours and introduce yourself in a few words.
- Volunteer at a food bank or library, where people talk while they work.
- Invite someone for a coffee after the third or fourth meeting.
- Go to the same café or park at the same hour each week.
- Ask people about the town, because they like to share what they know.
- Say yes to invitations during the first months even if you feel tired.
- A language course or a choir mixes people of very different ages.
- Stay in touch with old friends on the phone while new ones are missing.
- Follow up on a good talk with a short message the next day.
- Shy people do well in groups that have a task to work on.
- Expect about half a year to pass before the new place feels like home.

# publicspeaking | people | speaking in public
? My voice shakes when I speak in front of people. What helps?
? How do I start a presentation well?
? Should I read from notes or speak freely?
? How do I handle difficult questions after a talk?
- Learn the first two sentences by heart so that the start is safe.
- Breathe out slowly before you begin, and the voice will settle.
- Use notes with key words and speak freely between them.
- Stand with both feet on the ground and let the hands hang.
- Talk to one person at a time for the length of a whole sentence.
- Show few words on each slide, because people cannot read and listen at once.
- Begin with a short story or a number that surprises the room.
- Repeat a difficult question in your own words before you answer it.
- Visit the room beforehand and try out the microphone.
- Pause after an important point in place of filling the silence.
- Practise standing up and aloud, since silent reading trains little.
- Finish two minutes early, which nobody has ever complained about.

# battery | do | making a phone battery last
? Why does my phone battery drain so fast?
? Is it bad to charge my phone overnight?
? How do I make my battery last a whole day?
? When should a phone battery be replaced?
- Lower the brightness of the screen, which uses more power than anything else.
- Close the access to your location for apps that do not need it.
- Charging between a fifth and four fifths is gentlest on the battery.
- Heat ages a battery quickly, so keep the phone out of the sun.
- Look in the settings to see which app uses the most power.
- Weak signal drains the battery, because the phone keeps searching for a mast.
- Modern phones stop charging when full, so a night on the cable does little harm.
- A battery that holds less than four fifths of its capacity is due for replacement.
- Dark backgrounds save power on screens of the OLED type.
- Switch to flight mode in places where there is no network anyway.
- Turn off the vibration for keys and messages that can wait.
- Restart the phone once a week to end programs that have got stuck.

# passwords | do | choosing safe passwords
? How do I choose a password that is safe?
? What is a password manager?
? How often should I change my passwords?
? What is two-factor authentication?
- Four or five random words make a password that is long and easy to recall.
- Use a different password for each account, above all for your email.
- A password manager remembers all the others behind one strong password.
- A second factor, such as a code on the phone, stops most break-ins.
- Names, birthdays and rows of keys are the first things attackers try.
- Change a password when a service reports a leak and not by the calendar.
- Length protects better than a mixture of odd signs in a short word.
- Never type a password after following a link in an email.
- Keep a printed copy of the recovery codes in a drawer at home.
- Answer security questions with made-up words that you keep in the manager.
- Log out on computers that other people use after you.
- Share a streaming password only with people who live in the same house.

# wifi | do | improving the Wi-Fi at home
? The Wi-Fi in my bedroom is very slow. What can I do?
? Where should I put my router?
? What is the difference between 2.4 and 5 GHz?
? Do Wi-Fi repeaters help?
- Place the router in the middle of the home and off the floor.
- Thick walls, mirrors and water tanks weaken the signal strongly.
- The 5 GHz band is faster but does not reach as far as 2.4 GHz.
- A repeater belongs halfway between the router and the weak spot.
- Connect televisions by cable so that the air is free for other devices.
- Restart the router and install updates before you buy anything new.
- A set of mesh stations covers a large house better than one strong router.
- Change to a free channel when many neighbours use the same one.
- Microwave ovens disturb the 2.4 GHz band while they are running.
- Test the speed beside the router in order to rule out the provider.
- Powerline plugs send the data through the electric wiring of the house.
- Protect the network with WPA3 and a long password of your own.

# puppy | do | training a puppy
? How do I house-train a puppy?
? My puppy bites my hands. How do I stop it?
? How do I teach a puppy to come when called?
? How long can a puppy be left alone?
- Take the puppy out after every meal, every nap and every game.
- Reward the right behaviour within two seconds, or the link is lost.
- Offer a toy when the puppy bites, and end the game if it goes on.
- Call the name in a happy voice and never to scold the dog.
- Keep lessons to five minutes, because a puppy tires quickly.
- Clean accidents with an enzyme cleaner so that no smell invites a repeat.
- Let the young dog meet people, sounds and other dogs in small doses.
- Practise being alone with a few minutes at first and add time slowly.
- Use the same word for each command in the whole family.
- A crate with a soft blanket becomes a safe place for naps.
- Puppies need up to eighteen hours of sleep in a day.
- Walk on a loose lead by stopping whenever the dog pulls.

# vocabulary | do | learning foreign vocabulary
? How can I remember new Spanish words?
? How many new words should I learn each day?
? Do flash cards really help?
? I forget new words after two days. What can I do?
- Repeat new words after a day, after three days and after a week.
- Learn words in short sentences instead of bare lists.
- Ten new words a day add up to more than three thousand in a year.
- Say each word aloud, since the mouth remembers as well as the eye.
- Link a new word to a funny picture that sounds like it.
- Cover one side of the flash card and try before you turn it.
- Put small labels on the things in your kitchen.
- Read easy books where you already know nine words out of ten.
- Write three sentences about your own day with the words of the week.
- Learn nouns together with their article so that the gender sticks.
- Sort words by topic, but keep look-alikes apart at the beginning.
- Songs with clear lyrics bring back words through their melody.

# exams | do | studying for exams
? How should I study for three exams in one week?
? Does reading my notes again help?
? How do I stay concentrated while studying?
? What should I do on the night before an exam?
- Test yourself with old papers, because recall trains the memory best.
- Spread the work over many short days instead of one long night.
- Study for twenty five minutes and then walk about for five.
- Explain the topic aloud to somebody who knows nothing about it.
- Mix subjects during the day so that the mind stays alert.
- Put the phone in another room while you are working.
- Begin with the hardest chapter while you are still fresh.
- Sleep properly before the exam, since the brain sorts memories at night.
- Make a plan with the exam dates and work backwards from them.
- Reading notes again feels pleasant but leaves little behind.
- Write one page of key points for each subject in your own words.
- Read all the questions first and begin with one you can answer.

# percentages | know | percentages
? How do I work out 15 percent of a number?
? How do I calculate a percentage increase?
? Why is up 50 percent and down 50 percent not the same?
? What is the difference between percent and percentage points?
- One percent of a number is that number divided by one hundred.
- To find 15 percent, take a tenth and add half of that tenth.
- For an increase, divide the difference by the old value and multiply by 100.
- A price that rises by half and falls by half ends at three quarters.
- A rise from 4 to 5 percent is one percentage point but a quarter more.
- Eight percent of 50 equals 50 percent of 8, which is four.
- A discount of 20 percent leaves you with four fifths of the price.
- To undo an added tax of 25 percent, divide the total by 1.25.
- Two discounts of 10 percent in a row make 19 percent and not 20.
- The word comes from the Latin phrase for "by the hundred".
- Always ask what the hundred percent is before you compare two figures.
- Growth of seven percent a year doubles an amount in about ten years.

# primes | know | prime numbers
? What is a prime number?
? Is 1 a prime number?
? How can I find out whether a number is prime?
? What are prime numbers used for?
- A prime number has exactly two divisors, which are one and itself.
- The number 1 is not prime, because it has only one divisor.
- The only even prime is 2, as all other even numbers divide by two.
- Euclid proved more than two thousand years ago that the primes never end.
- Every whole number above one can be split into primes in a single way.
- To test a number, try dividing by primes up to its square root.
- The sieve of Eratosthenes finds primes by crossing out multiples.
- Many codes on the internet rely on the product of two huge primes.
- Pairs such as 11 and 13 that differ by two are called twin primes.
- There are 25 prime numbers between one and one hundred.
- Nobody has yet proved that there are endlessly many twin primes.
- Primes grow rarer among large numbers, yet long gaps follow no simple pattern.

# birthday | people | planning a children's birthday party
? How do I plan a birthday party for six-year-olds?
? How many children should I invite?
? Which games work well at a children's party?
? What food should I serve at a children's party?
- Invite about as many children as the birthday child has years.
- Two hours are long enough for children who are six years old.
- Serve fruit, small sandwiches and one cake instead of a large menu.
- A treasure hunt through the garden keeps a whole group busy.
- Ask the other parents about allergies when you send the invitation.
- Alternate wild games with calm ones so that nobody gets overtired.
- Let the birthday child choose a theme and help with the decorations.
- Have one more adult in the house for every five guests.
- Plan an indoor game in case it rains in the afternoon.
- Open the presents in a circle so that every guest is noticed.
- Write the time of collection on the invitation in large figures.
- Paper crowns painted by the guests make a cheap gift to take home.

# deserts | know | deserts
? What makes a place a desert?
? Are all deserts hot?
? How do animals survive in the desert?
? Which is the largest desert on Earth?
- A desert is a place with less than 250 millimetres of rain or snow in a year.
- Antarctica counts as the largest desert because so little snow falls there.
- Nights in the desert are cold since dry air lets the heat escape.
- Only about a fifth of the Sahara is covered with sand dunes.
- Camels store fat in their humps and can close their nostrils.
- Many small animals stay below the ground until the sun has set.
- Cactuses hold water in thick stems and carry spines in place of leaves.
- Some places in the Atacama in Chile receive almost no rain for years.
- Seeds can lie in dry soil for years and bloom after one rain.
- The fennec fox gets rid of heat through its very large ears.
- Dust from the Sahara crosses the Atlantic and fertilises the Amazon.
- The Sahara was green and full of lakes about eight thousand years ago.
"""
