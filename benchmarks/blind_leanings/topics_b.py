"""Topics, part B.  Same format as part A."""

TEXT = """
# sql | code | the SQL SELECT statement
? What does `SELECT name FROM users WHERE age > 30` do?
? How do I sort the result of an SQL query?
? What is the difference between WHERE and HAVING?
? How do I count rows in a table with SQL?
- The clause `WHERE age > 30` keeps only the rows in which the test is true.
- Naming the columns after `SELECT` is better than a star in code you keep.
- Add `ORDER BY name DESC` to sort the result from Z to A.
- The call `COUNT(*)` returns the number of rows that are left after filtering.
- With `GROUP BY city`, the query returns one line for each city.
- The clause `HAVING` filters groups, while `WHERE` filters rows before grouping.
- A `JOIN` combines rows of two tables that share a value such as an id.
- Use `LIMIT 10` to fetch only the first ten rows of a long result.
- The word `DISTINCT` removes rows that are repeated in the result.
- Compare with `IS NULL` when you look for missing values, since `= NULL` never matches.
- The pattern `LIKE 'A%'` finds every value that begins with the letter A.
- An index on a column makes searches on that column much faster.

# git | code | saving work with Git
? What does `git commit -m "Fix typo"` do?
? How do I undo my last commit in Git?
? What is a branch in Git?
? What is the difference between `git pull` and `git fetch`?
- The command `git add file.txt` marks a file for the next commit.
- A commit is a snapshot of the project with an author, a date and a message.
- The command `git status` shows which files have changed and which are marked.
- Branches let you try out an idea without touching the main line of work.
- The command `git fetch` downloads new commits and leaves your own files untouched.
- The command `git pull` fetches new commits and merges them straight away.
- With `git reset --soft HEAD~1`, the last commit is undone and the changes stay.
- Files named in `.gitignore` are left alone, for example build output and passwords.
- The command `git log --oneline` lists the history with one commit on each line.
- Small commits with clear messages are far easier to review and to revert.
- A merge conflict appears when two branches change the same lines of a file.
- The command `git diff` shows your changes line by line before you save them.

# html | code | links and images in HTML
? What does `<a href="about.html">About</a>` mean?
? How do I put a picture on my web page?
? What is the alt text of an image for?
? How do I make a link open in a new tab?
- The tag `<a href="about.html">` makes a link that leads to the page about.html.
- Text between the opening and the closing tag is what the visitor can click.
- A picture is placed with `<img src="cat.jpg" alt="A grey cat">`.
- The `alt` text is read aloud to people who cannot see the picture.
- Adding `target="_blank"` to a link makes the browser open a new tab.
- A path without a leading slash is looked up next to the current page.
- Giving `width` and `height` keeps the page from jumping while pictures load.
- A link such as `href="#news"` jumps to the element whose id is news.
- Wrapping a picture in an `a` tag turns the whole picture into a link.
- Link text should say where it leads, because "click here" says nothing by itself.
- Large photographs should be shrunk before upload so that the page loads quickly.
- A link that begins with `mailto:` opens the visitor's email program.

# recursion | code | recursion in programming
? What is recursion in simple words?
? Why does my recursive function never stop?
? Explain this: `return n * fact(n - 1)`
? When is recursion better than a loop?
- A recursive function solves a problem by calling itself on a smaller piece.
- Every recursion needs a base case at which the calls come to an end.
- The line `return n * fact(n - 1)` multiplies n by the factorial below it.
- Without a base case, Python stops with a `RecursionError` after about a thousand calls.
- Each call keeps its own variables on the stack until it returns.
- Trees and folders within folders are natural cases for a recursive function.
- Any recursion can be rewritten as a loop that manages its own stack.
- Storing earlier results in a dictionary makes a recursive Fibonacci function quick.
- Printing the argument at the start of each call makes the steps visible.
- The problem must shrink with every call, or the base case is never reached.
- Merge sort splits a list in two, sorts both halves and joins them again.
- A loop is the simpler tool when you only walk along a list from end to end.

# sleep | body | sleeping better
? I wake up at three every night. What can I do?
? How can I fall asleep faster?
? Does looking at my phone in bed matter?
? How many hours of sleep does an adult need?
- Go to bed and get up at the same hours, even at the weekend.
- Most adults do best with between seven and nine hours of sleep.
- Keep the bedroom dark, quiet and at about eighteen degrees.
- Put the phone in another room an hour before you want to sleep.
- Coffee can stay in the body for eight hours, so stop after lunch.
- Get up and read something dull when you lie awake for twenty minutes.
- Daylight in the morning helps the body to feel sleepy at night.
- Write down tomorrow's tasks before bed so that they stop circling in your head.
- Exercise in the afternoon deepens sleep, whereas a hard workout late at night delays it.
- A heavy meal shortly before bed keeps the stomach busy and the sleep light.
- A nap of twenty minutes refreshes you without spoiling the coming night.
- Speak to a doctor if loud snoring and tired days go together for weeks.

# backpain | body | easing lower back pain
? My lower back hurts after a day at the desk. What helps?
? Should I rest or move when my back hurts?
? How should I lift a heavy box?
? Which chair height is right for my back?
- Keep moving gently, because long rest in bed makes a stiff back worse.
- Bend your knees and hold the load close to your body when you lift.
- Stand up from the desk every half hour and walk a few steps.
- A warm bottle on the sore muscles brings relief to many people.
- Set the chair so that your feet are flat and your knees level with your hips.
- Sleep on your side with a pillow between the knees to rest the spine.
- Most back pain without an injury passes within a few weeks.
- Walking for half an hour a day strengthens the muscles along the spine.
- See a doctor soon if a leg feels numb or you lose control of the bladder.
- Stretch the back of your thighs, since short muscles there pull at the pelvis.
- Carry shopping in two bags of equal weight instead of one heavy bag.
- A screen at eye level keeps the neck and the upper back straight.

# running | body | starting to run
? I have never run before. How do I start?
? How often should a beginner go running?
? Why do I get a stitch when I run?
? Do I need expensive running shoes?
- Alternate one minute of running with two minutes of walking at the beginning.
- Run slowly enough that you can still speak in whole sentences.
- Three runs a week with a day of rest between them suit most beginners.
- Shoes that fit well matter more than shoes that cost a lot.
- A stitch usually fades when you slow down and breathe out deeply.
- Increase the weekly distance by no more than a tenth each time.
- Eat your last full meal about two hours before you set out.
- Soft forest paths are kinder to the shins than hard pavement.
- Short and quick steps put less load on the knees than long strides.
- Replace running shoes after about seven hundred kilometres, when the sole has gone flat.
- A short walk at the end lets the pulse come down gradually.
- Write down each run in a notebook, and the progress becomes easy to see.

# headaches | body | dealing with headaches
? I often get headaches in the afternoon. What might help?
? What is the difference between a migraine and a normal headache?
? Can drinking too little water cause a headache?
? When should I see a doctor about a headache?
- Drink two glasses of water first, since mild thirst is a common cause.
- A migraine often throbs on one side and comes with nausea or flickering light.
- Tension headaches feel like a tight band around the whole head.
- Painkillers on more than ten days a month can cause headaches of their own.
- Rest your eyes from the screen by looking into the distance every twenty minutes.
- Keep a diary of meals, sleep and pain to find out what sets it off.
- A cool cloth on the forehead and a dark room ease many attacks.
- A sudden and very severe headache needs medical help at once.
- Skipped meals lower the blood sugar and bring on pain in many people.
- Loosening the shoulders and neck with slow circles often brings relief.
- Regular sleep prevents more attacks than sleeping in at weekends.
- An eye test is worth having, because wrong glasses strain the muscles of the face.

# blisters | body | treating blisters on the feet
? How do I treat a blister on my heel?
? Should I pop a blister?
? How do I avoid blisters on a long hike?
? My new shoes give me blisters. What can I do?
- Leave a small blister closed, as the skin on top keeps germs out.
- Cover the spot with a cushioned plaster until the new skin has formed.
- Wash a burst blister with clean water and let the skin flap lie in place.
- Wear new shoes for an hour a day at home before a long walk.
- Damp socks rub the most, so change them at midday on a hike.
- Tape the heel as soon as you feel a warm spot on the skin.
- Two thin pairs of socks slide against each other and spare the skin.
- Wool and synthetic socks carry sweat away better than cotton does.
- See a doctor if the skin around a blister turns hot, red and swollen.
- Trim your toenails straight so that they do not press on the next toe.
- Lace the boot firmly at the ankle to keep the heel from sliding.
- A little petroleum jelly on the toes reduces rubbing during a race.

# budget | money | keeping a household budget
? How do I make a simple monthly budget?
? My money is gone by the twentieth. What should I change?
? What share of my income should go on rent?
? Is it worth writing down every small expense?
- Write down every expense for one month before you change anything.
- Divide the spending into fixed costs, daily costs and wishes.
- Rent should stay below about a third of what you take home.
- Set aside a small sum for yearly bills such as insurance each month.
- Move savings to another account on the day your wages arrive.
- Cancel subscriptions that nobody in the house has used for two months.
- A weekly limit for groceries is easier to keep than a monthly one.
- Look at the numbers together with your partner on a fixed evening.
- Paying daily costs from a separate card shows at a glance what is left.
- Leave some room for fun, because a budget without any is soon given up.
- Compare the prices of power and phone contracts once every year.
- A plain notebook works as well as any app as long as you use it daily.

# creditcard | money | using a credit card
? How do I avoid paying interest on a credit card?
? What is a credit limit?
? What should I do if my card is stolen?
? How do I pay off my credit card debt?
- Pay the whole balance by the due date and no interest is charged.
- Paying only the minimum stretches a small debt over many years.
- The limit is the most you can owe on the card at any one time.
- Block a stolen card by phone at once and report the theft to the police.
- Pay off the card with the highest interest first and the others afterwards.
- Check the statement every month for payments that you do not recognise.
- Drawing cash with a credit card usually costs a fee and interest from day one.
- Using less than a third of the limit is good for your credit record.
- Fees for payments in foreign currencies differ widely from bank to bank.
- A direct debit for the full amount makes sure that no date is missed.
- Never give the three digits on the back to someone who calls you.
- Close cards that you no longer need, for each one may carry a yearly fee.

# mortgage | money | taking out a mortgage
? What is the difference between a fixed and a variable mortgage?
? How much deposit do I need to buy a flat?
? What costs come on top of the price of a house?
? Is it clever to pay back a mortgage early?
- A fixed rate keeps the payment the same for an agreed number of years.
- A variable rate moves with the market and can rise from one month to the next.
- A deposit of a fifth of the price usually brings a better rate.
- Taxes, notary and survey can add about a tenth to the price of the house.
- Ask at least three lenders for offers and compare the total cost.
- A shorter term means higher payments but much less interest overall.
- Check whether the contract charges a fee for paying the loan back early.
- Keep some savings after the purchase, since repairs come up in the first year.
- Lenders look at your income, your debts and how steadily you have worked.
- The bank may sell the house if the loan is not paid for a long time.
- Early payments mostly cover interest, and later ones mostly reduce the loan.
- Have the roof and the heating inspected before you sign any contract.

# emergencyfund | money | saving for emergencies
? How big should an emergency fund be?
? Where should I keep money for emergencies?
? How can I save when there is hardly anything left?
? What counts as an emergency?
- Three months of living costs are a sensible target for most households.
- Keep the money in an account that you can reach within a day.
- Begin with a small target such as five hundred and raise it later.
- A standing order on payday saves more than good intentions do.
- A broken boiler is an emergency, while a sale at the shop is not.
- People with irregular income should aim for six months of costs.
- Put tax refunds and gifts into the fund until the target is reached.
- Refill the fund first after you have taken something out of it.
- Shares are a poor place for this money, because prices may be low when you need it.
- Give the account a name, which makes it harder to spend the money on shoes.
- Pay off expensive debt at the same time, as its interest eats your savings.
- Selling things you no longer use can bring in the first part of the sum.

# usedcar | money | buying a second-hand car
? What should I check before buying a used car?
? How do I know if the mileage is real?
? Should I buy from a dealer or a private seller?
? How do I negotiate the price of a used car?
- Look at the car in daylight and in dry weather, when dents are easy to see.
- Compare the service book with the mileage and with the wear of the pedals.
- Start the engine cold and listen for rattles in the first minute.
- A dealer has to give some warranty, while a private seller often does not.
- Drive for at least twenty minutes and include a stretch of fast road.
- Uneven wear of the tyres points to a bent axle or a bad adjustment.
- Look up the price of five similar cars before you make an offer.
- Ask for the number of former owners and for bills of past repairs.
- An independent inspection costs little compared with a new gearbox.
- Check the sills and wheel arches for rust with a torch and a magnet.
- Pay only when you have the papers and all the keys in your hand.
- Name the faults you found and then wait quietly for a lower price.

# romanroads | know | Roman roads
? How did the Romans build their roads?
? Why are Roman roads so straight?
? How long was the Roman road network?
? Which Roman roads can still be seen today?
- Roman builders dug a trench and filled it with layers of stone and gravel.
- The surface was slightly curved so that rain ran off into ditches.
- Surveyors lined up poles with an instrument that had four hanging weights.
- The main roads of the empire added up to about eighty thousand kilometres.
- The Via Appia near Rome was begun in 312 BC and can still be walked.
- Soldiers built many of the roads in order to move quickly between forts.
- Milestones told travellers the distance to the next town or to Rome.
- Couriers changed horses at stations and covered about eighty kilometres a day.
- Straight lines saved work where the land was flat, and hills were often crossed directly.
- Many modern highways in Europe still follow the course of a Roman road.
- Bridges of stone and concrete carried the roads across rivers and valleys.
- Trade along the roads brought oil, wine and pottery to distant provinces.

# printing | know | the printing press
? Who invented the printing press?
? How did printing change Europe?
? What was the first book printed by Gutenberg?
? How did people make books before printing?
- Johannes Gutenberg built his press with movable type in Mainz around 1450.
- Before printing, books were copied by hand, which could take months.
- The Gutenberg Bible was finished in about 1455 in some 180 copies.
- Printers in Korea were using metal type before Gutenberg was born.
- Each letter of the type was cast in a mould from a mix of lead, tin and antimony.
- The press itself was adapted from the screw presses used for wine.
- By the year 1500, printers in Europe had made millions of books.
- Cheap pamphlets spread the ideas of Martin Luther within a few weeks.
- Printed books slowly fixed the spelling of words in many languages.
- Scholars in different cities could now discuss the same page of a text.
- William Caxton brought the craft to England and printed in Westminster from 1476.
- The ink was made with oil and soot so that it would stick to metal.

# greatwall | know | the Great Wall of China
? Who built the Great Wall of China?
? How long is the Great Wall?
? Can the Great Wall be seen from space?
? Why did China build such a wall?
- The best known parts of the wall were built under the Ming dynasty.
- All the branches of the wall together measure more than twenty thousand kilometres.
- The wall is too narrow to be seen from the Moon with the naked eye.
- The purpose of the wall was to slow down riders from the north and to control trade.
- Early walls were made of rammed earth, reeds and wood rather than brick.
- Watchtowers passed on warnings with smoke by day and fire by night.
- Soldiers, farmers and prisoners worked on the wall in very hard conditions.
- Sticky rice was mixed into the mortar of some brick sections.
- Villagers later carried away many of the bricks to build houses.
- The first emperor joined several older walls in the third century BC.
- The section at Badaling near Beijing receives millions of visitors each year.
- The wall follows mountain ridges, which made attacks on it much harder.

# blackdeath | know | the Black Death
? What was the Black Death?
? How did the plague reach Europe?
? How many people died of the plague in Europe?
? How did the Black Death change society?
- The Black Death was an outbreak of plague that reached Europe in 1347.
- Ships from the Black Sea carried the disease to ports in Sicily.
- Between a third and a half of the people of Europe died within five years.
- The disease is caused by a bacterium called Yersinia pestis.
- Fleas living on rats passed the germ on to human beings.
- Workers became scarce after the plague, so wages rose in many countries.
- Venice later kept ships waiting for forty days, which gave us the word quarantine.
- Doctors of the time blamed bad air and the position of the planets.
- Whole villages in England were given up and never settled again.
- Plague can be cured today with common antibiotics if treated early.
- The plague returned to European cities many times until the eighteenth century.
- Scientists found traces of the germ in the teeth of people from old graves.

# silkroad | know | the Silk Road
? What was the Silk Road?
? Which goods were traded on the Silk Road?
? Did merchants travel the whole Silk Road?
? Why did the Silk Road lose its importance?
- The Silk Road was a web of trade routes that linked China with the Mediterranean.
- Silk, spices and porcelain went west, while glass, wool and horses went east.
- Most merchants travelled only one stretch and sold their goods on.
- Camels could carry two hundred kilos and go for days without water.
- Buddhism spread from India to China along the same routes.
- Paper making reached the Arab world from China in the eighth century.
- Oasis towns such as Samarkand grew rich from markets and inns.
- Marco Polo reached the court of Kublai Khan in about 1275.
- Ships became cheaper than caravans once the sea routes had been opened.
- The name Silk Road was made popular by a German geographer in 1877.
- Mongol rule made the journey safer for traders in the thirteenth century.
- Silkworm eggs reached Constantinople in the sixth century, hidden in hollow canes.

# moonlanding | know | the first Moon landing
? Who was the first person on the Moon?
? How long did Apollo 11 take to reach the Moon?
? What did the astronauts do on the Moon?
? Why did the United States go to the Moon?
- Neil Armstrong stepped onto the Moon on the twentieth of July 1969.
- Buzz Aldrin followed Armstrong while Michael Collins stayed in orbit.
- The journey from Florida to the Moon took a little more than four days.
- Armstrong steered by hand over a field of boulders before he landed.
- The crew collected about twenty one kilos of rock and dust.
- A mirror left on the surface is still used to measure the distance.
- The computer on board had less memory than a modern pocket calculator.
- Some six hundred million people watched the landing on television.
- The race with the Soviet Union was a main reason for the programme.
- The Saturn V rocket stood one hundred and eleven metres tall at the start.
- The astronauts spent three weeks in quarantine after they came home.
- Margaret Hamilton led the team that wrote the software of the spacecraft.

# pyramids | know | the pyramids of Egypt
? How were the pyramids built?
? Who is buried in the Great Pyramid?
? Which pyramid is the oldest?
? Were the pyramids built by slaves?
- The Great Pyramid was built for King Khufu about four and a half thousand years ago.
- Most of its stones are limestone blocks that weigh around two and a half tonnes.
- Paid workers lived in a town near the site and were given bread and beer.
- Sledges were easier to pull over sand that had been wetted first.
- The sides of the Great Pyramid point almost exactly to north, south, east and west.
- The step pyramid of Djoser is older and was planned by Imhotep.
- A smooth cover of white limestone once made the pyramids shine.
- Granite for the inner chamber came down the Nile from Aswan by boat.
- The Great Pyramid was the tallest building in the world for over 3,800 years.
- Sudan has more pyramids than Egypt, although they are smaller and steeper.
- Papyri found by the Red Sea describe crews who shipped stone to Giza.
- Later kings chose hidden rock tombs because pyramids were easily robbed.

# vikings | know | the Vikings
? Did Vikings really wear horned helmets?
? How far did the Vikings travel?
? What were Viking ships like?
? What did ordinary Vikings do for a living?
- Horned helmets were invented for the stage in the nineteenth century.
- Most Vikings were farmers who grew barley and kept cattle and sheep.
- Viking longships were shallow enough to be rowed far up a river.
- Leif Eriksson reached North America around the year 1000.
- Swedish Vikings sailed down Russian rivers as far as Constantinople.
- The raid on the monastery of Lindisfarne in 793 shocked England.
- Towns such as Dublin and York grew under Viking rule.
- Runes were cut into wood and stone because their lines are straight.
- Women could own property and ask for a divorce in Viking law.
- Iceland was settled by Norse families in the ninth century.
- Thursday is named after Thor, who was the god of thunder.
- Combs and tweezers in many graves show that Vikings cared for their looks.

# commas | lang | the use of commas
? Where does the comma go in a list?
? Do I need a comma before "and"?
? What is a comma splice?
? Should there be a comma after "however"?
- Commas separate the items of a list, as in apples, pears and plums.
- The comma before the last "and" in a list is called the Oxford comma.
- Put a comma before "but" when it joins two complete sentences.
- Two full sentences joined only by a comma make a comma splice.
- An opening phrase such as "After the long meeting" is followed by a comma.
- Use a pair of commas around details that could be left out.
- The word "however" at the start of a sentence takes a comma after it.
- Names of people you speak to are set off, as in "Come here, Tom."
- No comma belongs between a subject and its verb, however long the subject is.
- Adjectives that could be swapped, as in "a cold, wet day", take a comma.
- A clause with "that" which defines its noun is written without commas.
- Reading a sentence aloud often shows where a natural pause asks for a comma.

# apostrophes | lang | the use of apostrophes
? What is the difference between "its" and "it's"?
? Where does the apostrophe go in "the boys' room"?
? Do plurals ever take an apostrophe?
? Is it "James's" or "James'"?
- The form "it's" always stands for "it is" or "it has".
- The word "its" without an apostrophe shows that something belongs to it.
- One owner takes the apostrophe before the s, as in "the girl's bag".
- Plural owners take the apostrophe after the s, as in "the girls' bags".
- Ordinary plurals such as "tomatoes" and "photos" take no apostrophe.
- In "don't", the apostrophe marks the place of the missing letter o.
- Names that end in s may take "James's", which follows the way people speak.
- Irregular plurals add the s after the apostrophe, as in "the children's books".
- Decades are written without an apostrophe before the s, as in "the 1990s".
- The words "yours", "hers" and "theirs" never take an apostrophe.
- The form "who's" means "who is", whereas "whose" asks about an owner.
- For things owned together, mark only the last name, as in "Tom and Ann's house".

# affect | lang | the words "affect" and "effect"
? When do I write "affect" and when "effect"?
? Is "effect" ever a verb?
? Which is right: "the weather affects me" or "effects me"?
? Give me a trick for telling "affect" from "effect".
- The word "affect" is usually a verb that means to influence something.
- The word "effect" is usually a noun that names a result.
- In "Rain affects traffic", the verb tells what the rain does.
- In "The effect was small", the noun names what came out of it.
- Think of a for action in "affect" and e for end result in "effect".
- As a verb, "effect" means to bring about, as in "to effect a change".
- Psychologists use "affect" as a noun for a mood that others can see.
- An article such as "the" or "an" in front calls for the noun "effect".
- The phrase "in effect" means that something is true in practice.
- The adjective is "effective", and it describes something that works well.
- Putting "influence" in its place is a quick test for the verb "affect".
- The set phrase "side effects" is always written with the letter e.

# semicolons | lang | the use of semicolons
? When should I use a semicolon?
? What is the difference between a colon and a semicolon?
? Can I use a semicolon in a list?
? Is a semicolon followed by a capital letter?
- A semicolon joins two complete sentences that are closely related in meaning.
- Use semicolons in a list whose items already contain commas.
- A colon announces what follows, while a semicolon sets two thoughts side by side.
- The word after a semicolon begins with a small letter unless it is a name.
- Both sides of a semicolon should be able to stand as sentences.
- A semicolon often comes before "however" or "therefore" between two sentences.
- Never use a semicolon between a main clause and one that begins with "because".
- A full stop is always a safe replacement for a semicolon between sentences.
- Too many semicolons in one paragraph make a text feel heavy.
- The printer Aldus Manutius in Venice used the mark as early as 1494.
- In a letter, the greeting is followed by a comma and not by a semicolon.
- The pause at a semicolon is longer than at a comma and shorter than at a full stop.
"""
