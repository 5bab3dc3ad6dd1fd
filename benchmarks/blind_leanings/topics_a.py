"""Topics, part A.  '# key | kind | subject', then '? prompt' lines and '- sentence' lines."""

TEXT = """
# rice | do | cooking plain rice
? How do I cook rice so it does not turn sticky?
? My rice always burns at the bottom. What am I doing wrong?
? Give me a simple method for a pot of white rice.
? How much water does a cup of rice need?
- Rinse the grains under cold water until the water running off looks clear.
- Use about one and a half cups of water for each cup of long grain rice.
- Bring the pot to a boil, then cover it and turn the heat right down.
- Leave the lid closed for fifteen minutes so that the steam can finish the grains.
- A heavy pot spreads the heat evenly and keeps the bottom layer from scorching.
- Let the cooked rice rest for five minutes before you loosen it with a fork.
- Brown rice keeps its bran and therefore takes roughly forty minutes to soften.
- A pinch of salt in the water seasons the grains better than salt added later.
- Toasting the dry rice in a little butter gives the dish a nutty flavour.
- Cooked rice belongs in the fridge within an hour and should be eaten the next day.
- Stirring during cooking releases starch, which is what makes the grains stick together.
- Basmati profits from half an hour of soaking, because the grains then stay long and separate.

# bread | do | baking bread at home
? Why does my bread come out so dense?
? How long should bread dough rise?
? I want to bake my first loaf this weekend. What should I do?
? How can I tell when a loaf is done?
- Knead the dough for about ten minutes, until it feels smooth and stretches without tearing.
- Let the dough rise in a warm corner until it has roughly doubled in size.
- Weigh the flour on a scale, because cups hold very different amounts each time.
- A finished loaf sounds hollow when you tap it on the bottom with a knuckle.
- A tray of hot water in the oven makes steam and gives a crisp crust.
- Cool the loaf on a rack for an hour before cutting, or the crumb turns gummy.
- Salt slows the yeast down a little and gives the bread most of its taste.
- Wholemeal flour drinks up more water, so the dough should begin a little wetter.
- Cutting a slash across the top lets the loaf expand where you want it.
- A slow rise in the fridge overnight gives the bread a deeper flavour.
- Water for the yeast should be lukewarm, since hot water kills the living cells.
- Store the loaf in a paper bag, and freeze in slices whatever you cannot eat soon.

# eggs | do | boiling eggs
? How long do I boil an egg for a soft yolk?
? My boiled eggs crack in the pot. How do I stop that?
? What makes boiled eggs easy to peel?
? How do I make hard boiled eggs for a picnic?
- Lower the eggs into water that is already simmering, using a large spoon.
- Six minutes in simmering water gives a firm white and a runny yolk.
- Ten to eleven minutes will set the yolk completely without making it chalky.
- Put the eggs into iced water straight afterwards so that they stop cooking.
- Eggs that are a week old peel more easily than those laid yesterday.
- A grey ring around the yolk is a sign that the egg cooked too long.
- Start peeling at the wide end, where a small pocket of air loosens the shell.
- Eggs taken from the fridge need about a minute more than eggs at room temperature.
- Keep the water at a gentle simmer, because a wild boil knocks the shells together.
- Hard boiled eggs in their shells keep for about a week in the fridge.
- A splash of vinegar in the water helps to seal a shell that cracks.
- Peeling under running water washes away the small bits of shell and skin.

# soup | do | making vegetable soup
? What goes into a good vegetable soup?
? How do I thicken a thin soup?
? My vegetable soup tastes of nothing. How can I fix it?
? Suggest an easy soup for a cold evening.
- Soften chopped onion, carrot and celery in oil before any liquid goes in.
- Add potatoes and roots early, and drop in peas or spinach only at the end.
- Blend a third of the soup and stir it back in to make it thicker.
- A squeeze of lemon just before serving wakes up a soup that tastes flat.
- Cut the vegetables to the same size so that they all become tender together.
- Simmer the pot gently for half an hour, because hard boiling breaks the pieces up.
- The rind of an old piece of parmesan gives the broth a savoury depth.
- A handful of red lentils thickens the soup and makes it a full meal.
- Soup keeps for three days in the fridge and for three months in the freezer.
- Roasting the vegetables first gives a darker colour and a sweeter taste.
- Taste for salt at the end, since the liquid grows stronger while it simmers.
- Fresh herbs such as parsley lose their scent when they boil, so scatter them last.

# suitcase | do | packing a suitcase
? How do I fit everything into one small suitcase?
? What should go in my hand luggage?
? My shirts always arrive creased. How should I pack them?
? Help me pack for a week by the sea.
- Roll soft clothes tightly, and lay stiff ones flat along the top.
- Put heavy things near the wheels so that the case does not tip over.
- Keep medicine, documents and one change of clothes in your hand luggage.
- Fill your shoes with socks and chargers, because empty shoes waste a lot of room.
- Choose clothes in two or three colours so that everything goes with everything else.
- Wear your bulkiest jacket and shoes on the journey instead of packing them.
- Pour shampoo into small bottles and seal them inside a clear plastic bag.
- Weigh the case at home, since fees for extra kilos at the airport are steep.
- Write your name and phone number on a card inside the case as well as outside.
- Leave a little space empty for the things you bring back from the trip.
- A folded laundry bag keeps worn clothes apart from the clean ones.
- Lay a thin sheet of tissue between shirts, and the folds will not set hard.

# jetlag | body | getting over jet lag
? How do I beat jet lag after a long flight?
? I fly to Tokyo on Friday. How do I adjust to the new time?
? Is it better to nap or stay awake after landing?
? Why is flying east so tiring?
- Set your watch to the new time as soon as you sit down in the plane.
- Spend the first morning outdoors, because daylight resets the clock in the brain.
- Flying east feels harder since the body has to fall asleep earlier than usual.
- Keep any nap on the first day shorter than thirty minutes.
- Drink plenty of water on board, as the cabin air is extremely dry.
- Shift your bedtime by an hour a day during the week before you leave.
- Eat meals at the local hours even if you are not very hungry yet.
- Coffee after lunch will delay your sleep on the first night in a new place.
- The body adapts by roughly one time zone each day without any help.
- Alcohol during the flight makes sleep shallow and leaves you more tired on arrival.
- A dark and cool hotel room makes the first night much easier.
- For a trip of two days, it is simpler to stay on your home time.

# trains | do | travelling by train
? What should I know before a long train ride?
? How do I get cheaper train tickets?
? Is a sleeper train worth it?
? How can I make a ten hour train trip comfortable?
- Book early, because most railways sell their cheapest seats several weeks ahead.
- A seat facing forward at a window is best for people who feel queasy.
- Allow at least twenty minutes for a change at a station you do not know.
- Night trains save the price of a hotel and arrive in the middle of town.
- Bring your own food and water, since the buffet car may be closed.
- A light scarf helps, because carriages are often cooled far below the outside temperature.
- Keep your bag on the rack opposite, where you can see it from your seat.
- Rail passes pay off only when you make several long journeys in a short time.
- Look up your platform on the departure board, as it can change at the last minute.
- The middle of a carriage is smoother than the seats above the wheels.
- Download the tickets to your phone, for the signal disappears in tunnels and valleys.
- Travelling in the middle of the day avoids the crowds going to work.

# camping | do | camping in a tent
? It is our first time camping. What do we need?
? Where is the best spot to pitch a tent?
? How do I stay warm at night in a tent?
? How do we keep our food safe at a campsite?
- Pitch the tent on slightly raised ground so that rain runs away from it.
- A thick mat under the sleeping bag keeps out more cold than another blanket.
- Put the tent up once in the garden before you rely on it in a field.
- Hang food in a closed bag from a branch, well away from where you sleep.
- Turn the entrance away from the wind and leave the vents open a little.
- Change into dry socks before bed, because damp feet stay cold all night.
- A head torch leaves both hands free for cooking and for tent pegs.
- Peg the guy lines out at an angle, since straight pegs pull loose in soft soil.
- Pack up in the morning after the dew has dried from the outer sheet.
- Cook at least three metres away from the tent, for the fabric burns quickly.
- Take more water than you think you need, as campsites may have only one tap.
- Arrive while there is still daylight, so that you can choose level ground.

# coverletter | write | writing a cover letter
? How long should a cover letter be?
? How do I start a cover letter without sounding dull?
? I am applying to a library. What belongs in the letter?
? Should my cover letter repeat what is in my CV?
- Keep the letter to a single page with three or four short paragraphs.
- Open with the post you want and one reason why you suit it.
- Describe one piece of work in detail rather than listing every duty you ever had.
- Address the letter to a named person whenever the advert gives you a name.
- Use the same words for skills that the job advert uses itself.
- Close with a plain sentence saying when you are free to talk.
- Leave salary out of the letter unless the employer asks for a figure.
- Read the letter aloud, because clumsy sentences are easier to hear than to see.
- Explain a gap in your working life in one calm sentence and then move on.
- Send the file as a PDF so that the layout stays the same everywhere.
- Show that you know what the company does by naming one recent project.
- Ask a friend to check the spelling, as your own eye skips over mistakes.

# thankyou | write | writing a thank-you note
? What do I write in a thank-you card to my aunt?
? How soon should I send a thank-you note after a wedding?
? Should I send a thank-you message after an interview?
? Help me thank my neighbour for watering the plants.
- Name the gift or favour in the first line, so that the note feels personal.
- Say how you have used the present or where it now stands in your home.
- Three or four sentences are plenty for a card of this kind.
- Send the note within two weeks, while the occasion is still fresh.
- Handwriting on a plain card means more to many people than a printed message.
- After an interview, thank the person on the same day and mention one topic you discussed.
- Money is best thanked for by saying what you plan to do with it.
- End with a line about seeing each other again or about news you look forward to.
- Write the way you speak, because stiff phrases make a short note feel cold.
- Children can add a drawing, which usually pleases relatives more than words.
- A note to a neighbour can go together with a jar of jam or some flowers.
- Keep a list of who gave what on the day, so that no one is missed.

# complaint | write | writing a letter of complaint
? How do I complain to a hotel about a noisy room?
? My parcel arrived broken. How should I word the complaint?
? What tone works best in a complaint letter?
? How can I ask for a refund in writing?
- State the order number and the date in the opening line of the letter.
- Describe what happened in the order it happened, and leave out insults.
- Say exactly what you want, whether a refund, a repair or a replacement.
- Attach copies of receipts and photographs, and keep the originals at home.
- Give the company a fair deadline, such as fourteen days, for its reply.
- A calm tone is more likely to be answered by someone who can decide.
- Keep the letter under one page, because long complaints are seldom read to the end.
- Address the customer service department first and the manager only after no reply comes.
- Mention earlier phone calls together with the names of the people you spoke to.
- Write on paper or by email, since nothing said on the phone can be shown later.
- Thank the staff who did help you, which shows that you are being fair.
- Close with your address and a number where you can be reached during the day.

# speech | write | preparing a wedding speech
? I have to give a speech at my brother's wedding. Where do I begin?
? How long should a best man's speech be?
? How do I end a wedding toast?
? What should I leave out of a wedding speech?
- Aim for four or five minutes, which is about six hundred spoken words.
- Begin by saying who you are and how you came to know the couple.
- Tell one story with a clear ending in place of five half stories.
- Leave former partners and private jokes out of the speech altogether.
- Turn to the couple for the last lines and lift your glass for the toast.
- Write key words on small cards, since a full script tempts you to read.
- Practise out loud three times and let a friend keep the time.
- Say something kind about both people, and not only about the one you know.
- Pause after a funny line so that the guests have time to laugh.
- Thank the hosts briefly, because other speakers will do so as well.
- Look at one friendly face at the back, and your voice will carry further.
- Hold the microphone close to the chin and keep it still while you talk.

# photosynthesis | know | photosynthesis
? How do plants make their own food?
? Why are leaves green?
? My daughter asked where oxygen comes from. What do I tell her?
? What does a plant need for photosynthesis?
- Plants use sunlight to turn water and carbon dioxide into sugar and oxygen.
- The green pigment chlorophyll absorbs red and blue light and reflects green.
- Carbon dioxide enters the leaf through tiny pores on its underside called stomata.
- Water travels up from the roots to the leaves through very thin tubes.
- The oxygen set free by a plant comes from water and not from carbon dioxide.
- Most of the sugar made in a leaf is moved elsewhere or stored as starch.
- Algae and tiny ocean plants produce about half of the oxygen on our planet.
- The work takes place inside small green bodies in the cell known as chloroplasts.
- Leaves turn yellow in autumn because the green pigment breaks down first.
- Cactuses open their pores at night in order to lose less water.
- Red seaweeds carry extra pigments that catch the bluish light of deeper water.
- Plants breathe as well, so they use up some of their oxygen in the dark.

# volcanoes | know | volcanoes
? Why do volcanoes erupt?
? What is the difference between magma and lava?
? Where are most of the volcanoes in the world?
? Give me some facts about volcanoes for a school talk.
- Molten rock is called magma below the ground and lava once it reaches the surface.
- Most volcanoes sit along the edges of the great plates that form the crust.
- Gas trapped in thick magma builds up pressure until the rock above gives way.
- Runny lava makes broad and gentle mountains such as those on Hawaii.
- The ring around the Pacific Ocean holds about three quarters of the active volcanoes.
- Volcanic ash is made of tiny pieces of glass and rock rather than of soot.
- Soils formed from old lava are rich in minerals and very good for farming.
- Pumice is a stone so full of bubbles that it can float on water.
- The eruption of Vesuvius in the year 79 buried the town of Pompeii.
- Scientists watch for swelling ground and small tremors before an eruption.
- Most volcanic activity on Earth happens out of sight on the ocean floor.
- Olympus Mons on Mars is the tallest known volcano, over twenty kilometres high.

# tides | know | the tides
? What causes the tides?
? Why are there two high tides a day?
? What is a spring tide?
? Why does the Mediterranean have hardly any tides?
- The pull of the Moon raises a bulge of water on the side facing it.
- A second bulge forms on the far side of the Earth at the same time.
- High water returns about every twelve hours and twenty five minutes on most coasts.
- Spring tides come at new and full moon, when Sun and Moon pull in line.
- Neap tides are weaker, because the Sun and Moon then pull at right angles.
- The Bay of Fundy in Canada sees differences of up to sixteen metres.
- Seas with narrow entrances, such as the Mediterranean, rise and fall very little.
- The shape of a coast can funnel the water and make a tide much higher.
- The Sun has a little less than half the effect of the Moon on the tides.
- Tides slowly brake the turning of the Earth and lengthen the day.
- Slack water is the short pause between the rising and the falling tide.
- Some power stations let the incoming tide through gates and drive turbines with it.

# blackholes | know | black holes
? What is a black hole?
? How does a black hole form?
? Can anything escape from a black hole?
? How do astronomers find black holes if they are dark?
- A black hole is a region whose gravity is so strong that light cannot leave.
- Many form when a very heavy star runs out of fuel and collapses.
- The boundary beyond which nothing returns is called the event horizon.
- Astronomers notice them by the hot gas that swirls around before falling in.
- A giant one with four million solar masses lies at the centre of our galaxy.
- Time passes more slowly near a black hole than it does far away from one.
- The first picture of a black hole's shadow was published in April 2019.
- Two of them can spiral together and send out ripples called gravitational waves.
- From a distance, a black hole pulls no harder than a star of equal mass.
- The Sun is far too light to end its life as a black hole.
- Stephen Hawking showed that black holes should leak a very faint radiation.
- The largest known examples weigh as much as tens of billions of suns.

# rainbows | know | rainbows
? How does a rainbow form?
? In which order are the colours of a rainbow?
? What is a double rainbow?
? Which way should I look to see a rainbow?
- Sunlight is bent as it enters a raindrop and is reflected from the back of it.
- Different colours bend by different amounts, which spreads white light into a band.
- You see a rainbow only when the Sun is behind you and the rain in front.
- Red lies on the outer edge of the bow and violet on the inner edge.
- A fainter second bow appears when the light is reflected twice inside the drops.
- The colours of a second bow run in the opposite order from the first.
- From an aeroplane, the whole circle of a rainbow can sometimes be seen.
- The bow is widest across the sky when the Sun is close to the horizon.
- Two people standing side by side see light from two different sets of drops.
- Moonlight can make a pale bow, which looks almost white to the eye.
- The spray of a garden hose shows the same colours on a sunny afternoon.
- Isaac Newton named seven colours, although they blend without any sharp borders.

# magnets | know | magnets
? How do magnets work?
? Why does a compass point north?
? Which metals stick to a magnet?
? Can a magnet lose its strength?
- Every magnet has two poles, and opposite poles attract each other.
- Iron, nickel and cobalt are the common metals that a magnet will pull.
- Cutting a magnet in half gives two smaller magnets with two poles each.
- A compass needle lines up with the magnetic field of the Earth.
- A coil of wire becomes a magnet while an electric current runs through it.
- Heating a magnet strongly makes it lose its order and its pull.
- Copper and aluminium are not attracted, although a moving magnet can stir currents in them.
- Iron filings on a sheet of paper show the lines of the field.
- The strongest small magnets in daily use contain the rare metal neodymium.
- The magnetic north pole wanders by many kilometres over the years.
- Electric motors turn because magnets push and pull on coils that carry a current.
- Stroking a needle along a magnet many times will turn the needle into one.

# vaccines | know | vaccines
? How does a vaccine work?
? Why do some vaccines need a booster?
? What was the first vaccine?
? Why do I get a sore arm after a jab?
- A vaccine shows the immune system a harmless part or form of a germ.
- The body answers by making antibodies and cells that remember the germ.
- A sore arm for a day or two is a sign that the immune system is active.
- Edward Jenner tested the first vaccine against smallpox in England in 1796.
- Boosters remind the immune system when its memory of a germ begins to fade.
- The flu vaccine changes every year since the virus itself changes quickly.
- Smallpox was declared wiped out in 1980 after a worldwide vaccination campaign.
- When enough people are protected, a disease finds it hard to spread at all.
- Some vaccines contain weakened live viruses, while others contain only a single protein.
- Most vaccines must be kept cold on the way from the factory to the clinic.
- New vaccines are tested in several groups of volunteers before they are approved.
- Protection usually builds up over about two weeks after the injection.

# bees | know | honey bees
? How do bees make honey?
? Why do bees dance?
? What is the job of the queen bee?
? Why are bees important to farmers?
- Worker bees collect nectar and thicken it into honey by fanning it with their wings.
- A bee dances in the hive to show the others where flowers can be found.
- The queen lays up to two thousand eggs on a busy day in spring.
- Bees carry pollen between blossoms and so help fruit and seeds to form.
- All the worker bees in a hive are female and do different jobs as they age.
- The six-sided cells of a comb store much honey with little wax.
- A summer worker lives about six weeks, while a winter bee lives several months.
- Bees keep warm in winter by huddling together and shivering their flight muscles.
- Larvae that are fed on royal jelly for long enough grow into queens.
- A honey bee leaves its barbed sting behind in the skin and dies soon after.
- One jar of honey stands for about two million visits to flowers.
- Bees see ultraviolet patterns on petals that are hidden from our eyes.

# whales | know | whales
? Are whales fish or mammals?
? How deep can a whale dive?
? Why do whales sing?
? What does a blue whale eat?
- Whales are mammals that breathe air and feed their young with milk.
- The blue whale is the largest animal known and can reach thirty metres.
- Humpback males sing long songs that change slowly from one year to the next.
- Sperm whales dive more than a kilometre deep to hunt for squid.
- Baleen whales filter small shrimps called krill out of great mouthfuls of water.
- A thick layer of fat keeps the body warm in polar seas.
- Whales rest with one half of the brain awake so that they keep breathing.
- The ancestors of whales walked on land about fifty million years ago.
- Grey whales swim up to twenty thousand kilometres in the course of a year.
- Toothed whales find their prey by sending out clicks and listening for echoes.
- The spout of a whale is mostly warm breath that turns to mist in cold air.
- A bowhead whale can live for two hundred years in the Arctic Ocean.

# heart | know | the human heart
? How does the heart pump blood?
? How much blood does the heart move in a day?
? What is a normal resting pulse?
? Why does my heart beat faster when I run?
- The heart has four chambers, two that receive blood and two that push it out.
- A resting adult heart beats between sixty and one hundred times a minute.
- Valves close after each beat so that blood flows in one direction only.
- The right side sends blood to the lungs and the left side to the body.
- A small knot of cells in the wall sets the rhythm with electric signals.
- During exercise the heart beats faster to bring more oxygen to the muscles.
- The heart muscle has its own arteries, which branch off just above the main valve.
- Over a single day, the heart moves more than seven thousand litres of blood.
- The sound heard through a stethoscope comes from the valves as they shut.
- Trained runners often have a slow pulse because each beat moves more blood.
- A heart is about the size of a fist and sits slightly left of centre.
- A baby's heart begins to beat about five weeks after the start of pregnancy.

# lightning | know | lightning and thunder
? What causes lightning?
? Why do we hear thunder after the flash?
? Is it safe to be in a car during a thunderstorm?
? How hot is a bolt of lightning?
- Colliding ice crystals inside a storm cloud separate positive from negative charge.
- A bolt heats the air around it to roughly thirty thousand degrees.
- Thunder is the sound of hot air expanding suddenly along the path of the bolt.
- Count the seconds after the flash and divide by three to get kilometres.
- A closed car is safe because the metal body leads the current around you.
- Most lightning stays within the clouds and never touches the ground at all.
- Tall, pointed objects are struck more often than the flat land around them.
- Metal rods on roofs carry the current safely down into the earth.
- Light reaches us almost at once, while sound needs three seconds for a kilometre.
- Lake Maracaibo in Venezuela has storms on more than a hundred nights a year.
- Sheet lightning is simply a bolt that is hidden behind a layer of cloud.
- Stay away from single trees and open water until half an hour after the storm.

# moon | know | the Moon
? Why does the Moon change its shape?
? Why do we always see the same side of the Moon?
? How far away is the Moon?
? What happens in a lunar eclipse?
- The Moon circles the Earth in a little over twenty seven days.
- We see phases of the Moon because the Sun lights a changing part of the side facing us.
- The Moon turns once in each orbit, so it always shows us the same face.
- The average distance of the Moon from us is about three hundred and eighty four thousand kilometres.
- The dark patches on the Moon are plains of old and solid lava.
- During a lunar eclipse, the Moon passes through the shadow of the Earth.
- Gravity on the Moon is about one sixth of what we feel at home.
- The Moon has no air, so its sky is black even at noon.
- Most scientists think that the Moon formed after a huge collision with the young Earth.
- Twelve people walked on the Moon between the years 1969 and 1972.
- The Moon drifts away from us by nearly four centimetres every year.
- Daytime on the lunar equator is hotter than boiling water.

# migration | know | bird migration
? How do birds find their way when they migrate?
? Why do geese fly in a V shape?
? Which bird travels the furthest each year?
? When do swallows leave for the south?
- Birds find their way by the Sun, the stars and the Earth's magnetic field.
- Geese fly in a V because each bird saves energy in the lift of the next.
- The Arctic tern travels from pole to pole and back every year.
- Most small songbirds travel at night, when the air is cool and calm.
- Shorter days in late summer are the signal for many birds to fatten up.
- Swallows leave Europe in September and spend the winter in southern Africa.
- A godwit once flew from Alaska to Tasmania without a stop in eleven days.
- Storks avoid wide seas, since they need rising warm air over land to glide.
- Light rings on the legs let researchers learn where a single bird has been.
- Young cuckoos reach Africa alone, without ever having met their parents.
- Some blackcaps now spend the winter in Britain because of garden feeders.
- Birds may double their weight with fat before they cross the Sahara.

# forloop | code | for loops in Python
? What does `for i in range(5):` do in Python?
? How do I loop over a list and know the position as well?
? Explain this line: `for name in names: print(name)`
? How do I leave a loop early in Python?
- The line `for i in range(5):` runs the indented block with i from 0 to 4.
- Looping with `for name in names:` hands you each element of the list in turn.
- Wrapping the list in `enumerate()` gives you the position together with the element.
- The word `break` leaves the loop at once and goes on after the block.
- The word `continue` skips the rest of the block and takes the next element.
- Python uses indentation to decide which lines belong to the body of the loop.
- The call `range(2, 10, 2)` counts 2, 4, 6, 8 and stops before 10.
- Looping over a dictionary gives you its keys in the order they were added.
- The function `zip(a, b)` lets one loop walk along two lists side by side.
- Changing a list while looping over it makes the loop skip elements.
- An `else` after the loop runs only when no `break` was reached.
- Strings can be looped over as well, one character at a time.

# dicts | code | dictionaries in Python
? How does a Python dictionary work?
? What is the difference between `d["x"]` and `d.get("x")`?
? How can I count words with a dictionary?
? How do I loop over keys and values together?
- A dictionary stores pairs, and each key leads straight to its value.
- Writing `d["x"] = 3` adds the key or replaces the value it had before.
- The call `d.get("x", 0)` returns zero in place of an error for missing keys.
- Reading `d["x"]` stops the program with a `KeyError` when the key is missing.
- Use `for k, v in d.items():` to walk over keys and values together.
- Keys must be fixed values such as strings, numbers or tuples, but never lists.
- To count words, write `d[w] = d.get(w, 0) + 1` for every word you meet.
- The test `"x" in d` looks only at keys and is fast for any size.
- Since version 3.7, a dictionary remembers the order in which keys were added.
- The statement `del d["x"]` removes a key together with its value.
- Two dictionaries can be joined with `a | b`, where the second one wins.
- A `defaultdict` from the collections module creates missing values by itself.
"""
