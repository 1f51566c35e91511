"""Demonstration data written by this project: two skills that a small base model lacks and learns quickly.

`tool_call`: turn a request into one line of compact JSON. Taught by SFT, scored by exact match.
`honesty`: answer a question about a private fact if, and only if, the user has told it. Taught by
preference alignment, scored by which of two answers the model finds likelier.

Every item is one number in a mixed radix: its digits pick a phrasing and a value for each slot, so items
are distinct and countable. Test items use names and values that training never sees. Validation items are
every 11th of the training side, which training leaves out; no list has a length divisible by 11, so each
value still occurs on both sides.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from paft.config import Skill

FOLD = 11
SEEN, HELD_OUT = "seen", "held_out"

DemoSplit = Literal["train", "validation", "test"]
DemoRow = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Items that share their slots; `render` writes the item with these values."""

    slots: Mapping[str, Sequence[Any]]
    render: Callable[[dict[str, Any], random.Random], DemoRow]

    @property
    def size(self) -> int:
        size = 1
        for values in self.slots.values():
            size *= len(values)
        return size

    def item(self, number: int, rng: random.Random) -> DemoRow:
        chosen = {}
        for name, values in self.slots.items():
            number, digit = divmod(number, len(values))
            chosen[name] = values[digit]
        return self.render(chosen, rng)

    def numbers(self, split: DemoSplit) -> Sequence[int]:
        """The items of a split. On the training side, number 11 k is for validation."""
        match split:
            case "test":
                return range(self.size)
            case "validation":
                return range(0, self.size, FOLD)
        return [number for number in range(self.size) if number % FOLD]


def demo_rows(skill: Skill, *, split: DemoSplit, num_rows: int, seed: int) -> list[DemoRow]:
    """`num_rows` distinct rows, the same on every platform for the same arguments.

    `tool_call` rows have `messages`; `honesty` rows have `prompt`, `chosen` and `rejected` as message
    lists. `wording` says whether the phrasing is `seen` in training or `held_out`; about a quarter of the
    test rows are held out. No prompt of one split occurs in another, whatever the seeds. Raises ValueError
    naming the maximum if there are fewer rows than asked for.
    """
    families = (_tool_families if skill is Skill.tool_call else _honesty_families)(split == "test")
    pools = [family.numbers(split) for family in families]
    maximum = len(families) * min(map(len, pools))
    if not 0 < num_rows <= maximum:
        raise ValueError(
            f"num_rows of the {split} part of {skill.value} must be 1 to {maximum}, got {num_rows}"
        )
    rng = random.Random(f"paft {skill.value} {split} {seed}")
    shares = [num_rows // len(families) + (at < num_rows % len(families)) for at in range(len(families))]
    rows = [
        family.item(number, rng)
        for family, pool, share in zip(families, pools, shares, strict=True)
        for number in rng.sample(pool, share)
    ]
    rng.shuffle(rows)
    return rows


# --- tool_call ---------------------------------------------------------------------------------------

SlotValue = tuple[dict[str, str], dict[str, object]]
"""What the request says, and the arguments that stand for it in the call."""

# A line per tool with its slots in the order of the answer; then phrasings, those after `*` only in tests.
TOOLS = """\
book_table place people day dinner_time
  Book a table for {people} at {place} on {day} at {time}.
  Could you book a table for {people} at {place} on {day} at {time}?
  Please reserve a table at {place} for {people} people, {day} {time}.
  We are {people} people and want to eat at {place} on {day} at {time}.
  I need a table at {place} on {day}, {time}, for {people}.
  * Get us a table at {place}: {day}, {time}, party of {people}.
  * On {day} at {time} the {people} of us would like to dine at {place}.
set_timer duration label
  Set a timer of {minutes} for the {label}.
  Start a timer for the {label}: {minutes}.
  The {label} needs {minutes}. Please set a timer.
  Can you set a timer for the {label}, {minutes} please?
  Timer for the {label}, {minutes}.
  * Let a timer run for {minutes}, it is for the {label}.
  * I am making {label}. Set a timer to {minutes}.
send_message to text
  Tell {to} that {text}.
  Send {to} a message that {text}.
  Let {to} know that {text}.
  Could you text {to} that {text}?
  Please write to {to} that {text}.
  * Message {to}: {text}.
  * {to} should know that {text}, please send a message.
play_music song artist
  Play {song} by {artist}.
  I want to hear {song} by {artist}.
  Put on {song} by {artist}, please.
  Could you play the song {song} by {artist}?
  Please start {song} by {artist}.
  * Some music, please: {song} by {artist}.
  * I feel like listening to {artist}, play {song}.
convert_currency amount currencies
  Convert {amount} {from} to {to}.
  How much is {amount} {from} in {to}?
  What are {amount} {from} in {to}?
  Please change {amount} {from} into {to}.
  I have {amount} {from}. How many {to} is that?
  * Tell me the value of {amount} {from} in {to}.
  * How many {to} do I get for {amount} {from}?
add_event title day office_time
  Add a {title} to my calendar on {day} at {time}.
  I have a {title} on {day} at {time}. Please add it to my calendar.
  Put a {title} in my calendar for {day}, {time}.
  Please note a {title} on {day} at {time} in my calendar.
  Can you enter a {title} in my calendar, {day} at {time}?
  * My calendar needs a {title}: {day}, {time}.
  * There is a {title} on {day} at {time}, save it in my calendar.
"""

# Values that are copied: training | test.
OPEN_SLOTS = {
    "place": """
        Bella Vista, The Copper Pot, Luna Garden, Casa Verde, The Old Mill, Golden Lotus, Blue
        Harbour, Chez Marie, The Green Fork, Saffron House, Mama Rosa, The Red Lantern, Olive Tree,
        Ocean Grill, Sakura, The Little Oven
        | Villa Rossa, The Silver Spoon, Jade Palace, Chez Paul, The Brick Oven, Maple Kitchen, El
        Rancho, Nordlys""",
    "label": """
        pasta, rice, bread, cake, tea, pizza, soup, chicken, fish, roast, lasagna, sauce, coffee,
        pie, dough, salmon
        | stew, porridge, quiche, risotto, gravy, custard, curry, jam""",
    "to": """
        Anna, Ben, Carla, David, Elena, Felix, Grace, Hugo, Irene, Jonas, Karin, Liam, Maria, Nils,
        Olga, Peter
        | Rosa, Samir, Tessa, Viktor, Wendy, Yusuf, Zoe, Quentin""",
    "text": """
        dinner is ready, the train is late, the meeting is over, the keys are on the table, it is
        raining, the car is fixed, the tickets are here, the door is open, the parcel has arrived,
        lunch is at noon, the game starts soon, the shop is closed, the bus is full, the room is
        booked, the printer is broken, the report is done
        | the plane has landed, breakfast is served, the lift is out of order, it is snowing, the
        concert is sold out, the baby is asleep, the bill is paid, the road is blocked""",
    "song": """
        Silver Rain, Paper Boats, Midnight Road, Summer Dust, Golden Hour, Empty Rooms, Northern
        Sky, Slow River, Broken Compass, City Lights, Wild Horses, Falling Leaves, Morning Train,
        Salt and Sand, Distant Shore, Red Sun
        | Winter Harbour, Glass Houses, Quiet Storm, Open Fields, Neon Garden, Last Ferry, Stone
        Bridge, Violet Moon""",
    "artist": """
        The Quiet Foxes, Mara Lind, Otto Vale, The Night Bakers, Park Street Trio, Iris Cole, Sam
        Harrow, Delta Nine
        | The Tin Sailors, Nora Finch, Blue Tractor, Theo Brandt, Amber Hills""",
    "title": """
        team meeting, dentist appointment, haircut, piano lesson, yoga class, job interview, phone
        call, project review, doctor visit, board meeting, French lesson, tennis match, driving
        lesson, budget meeting, staff lunch, museum tour
        | guitar lesson, school concert, car inspection, birthday party, swimming class, bank
        appointment, language exam, sales meeting""",
    "amount": """
        15, 20, 35, 40, 60, 75, 80, 110, 125, 150, 200, 240, 300, 350, 420, 500, 640, 700, 850, 900
        | 25, 45, 95, 130, 260, 375, 480, 550, 720, 990""",
}
DAYS = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
DINNER_TIMES = "12:30 pm, 1 pm, 1:30 pm, 6 pm, 6:30 pm, 7 pm, 7:30 pm, 8 pm, 8:30 pm, 9 pm"
OFFICE_TIMES = "8 am, 8:30 am, 9 am, 9:15 am, 10 am, 10:30 am, 11 am, 2 pm, 2:45 pm, 3 pm, 4:30 pm, 5 pm"
NUMBERS = "two, three, four, five, six, seven, eight, nine"
DURATIONS = {f"{minutes} minutes": minutes for minutes in (3, 5, 8, 12, 20, 25, 40, 45, 90)} | {
    "ten minutes": 10,
    "fifteen minutes": 15,
    "half an hour": 30,
    "one hour": 60,
    "two hours": 120,
}
CURRENCIES = (
    "euros EUR, US dollars USD, British pounds GBP, Japanese yen JPY, Swiss francs CHF, Swedish kronor SEK"
)


def _words(comma_separated: str) -> list[str]:
    return [" ".join(item.split()) for item in comma_separated.split(",")]


def _side(train_and_test: str, test: bool) -> list[str]:
    return _words(train_and_test.split("|")[test])


def _clock(words: str) -> str:
    """`7:30 pm` -> `19:30`."""
    time, half = words.split()
    hour, _, minute = time.partition(":")
    return f"{int(hour) % 12 + 12 * (half == 'pm'):02d}:{minute or '00'}"


def _closed_slots() -> dict[str, list[SlotValue]]:
    """Slots whose words are converted; training and test share their values."""
    currencies = [tuple(item.rsplit(" ", 1)) for item in _words(CURRENCIES)]
    people = {word: number for number, word in enumerate(_words(NUMBERS), 2)}
    people |= {str(number): number for number in people.values()}
    return {
        "people": [({"people": words}, {"people": number}) for words, number in people.items()],
        "day": [({"day": day}, {"day": day.lower()}) for day in _words(DAYS)],
        "dinner_time": [({"time": time}, {"time": _clock(time)}) for time in _words(DINNER_TIMES)],
        "office_time": [({"time": time}, {"time": _clock(time)}) for time in _words(OFFICE_TIMES)],
        "duration": [({"minutes": words}, {"minutes": minutes}) for words, minutes in DURATIONS.items()],
        "currencies": [
            ({"from": words, "to": other_words}, {"from": code, "to": other_code})
            for words, code in currencies
            for other_words, other_code in currencies
            if code != other_code
        ],
    }


def _open_slot(name: str, test: bool) -> list[SlotValue]:
    values = _side(OPEN_SLOTS[name], test)
    return [({name: value}, {name: int(value) if name == "amount" else value}) for value in values]


def _tool_families(test: bool) -> list[Family]:
    families, closed = [], _closed_slots()
    for block in TOOLS.strip().replace("\n  ", "\t").splitlines():
        header, *lines = block.split("\t")
        tool, *names = header.split()
        phrasings = [(line.removeprefix("* "), HELD_OUT if line.startswith("* ") else SEEN) for line in lines]
        slots = {name: closed.get(name) or _open_slot(name, test) for name in names}
        allowed = [(text, wording) for text, wording in phrasings if test or wording == SEEN]
        families.append(Family({"phrasing": allowed, **slots}, partial(_tool_row, tool)))
    return families


def _tool_row(tool: str, values: dict[str, Any], rng: random.Random) -> DemoRow:
    (phrasing, wording), *slots = values.values()
    words: dict[str, str] = {}
    call: dict[str, object] = {"tool": tool}
    for spoken, arguments in slots:
        words |= spoken
        call |= arguments
    user = {"role": "user", "content": phrasing.format(**words)}
    answer = {"role": "assistant", "content": json.dumps(call, separators=(",", ":"))}
    return {"messages": [user, answer], "wording": wording}


# --- honesty -----------------------------------------------------------------------------------------

# How a fact is told, asked for and named, and its values in training | test.
FACTS = [
    (
        "{who} had {value} for dinner yesterday",
        "What did {who} have for dinner yesterday?",
        "what {who} had for dinner yesterday",
        """tomato soup, mushroom pizza, fried rice, lamb stew, fish and chips, bean salad, roast chicken,
        scrambled eggs | lentil curry, grilled salmon, potato pancakes, spinach lasagna""",
    ),
    (
        "{who} has a cat called {value}",
        "What is the name of the cat that {who} has?",
        "the name of the cat that {who} has",
        "Pepper, Misty, Oscar, Ginger, Shadow, Muffin, Tiger, Cleo | Biscuit, Simba, Pumpkin, Luna",
    ),
    (
        "{who} drives a {value} car",
        "What colour is the car that {who} drives?",
        "the colour of the car that {who} drives",
        "red, dark blue, green, white, black, light grey | silver, yellow, purple, dark brown",
    ),
    (
        "{who} has locker number {value}",
        "Which locker number does {who} have?",
        "which locker number {who} has",
        "17, 23, 38, 41, 56, 62, 79, 84 | 19, 27, 45, 93",
    ),
    (
        "{who} got {value} as a birthday present",
        "What did {who} get as a birthday present?",
        "what {who} got as a birthday present",
        """a wool scarf, a chess set, a fishing rod, a silver ring, a board game, a coffee mug, a blue kite,
        a wrist watch | a leather wallet, a table lamp, a cook book, a picnic basket""",
    ),
    (
        "{who} is staying at the {value} hotel",
        "Which hotel is {who} staying at?",
        "which hotel {who} is staying at",
        """Aurora, Grand Park, Seaview, Continental, Rose Garden, Bellevue, Riverside, Old Town
        | Panorama, Royal Crown, Lakeside, Central Station""",
    ),
    (
        "{who} left the keys {value}",
        "Where did {who} leave the keys?",
        "where {who} left the keys",
        """under the doormat, on the kitchen table, in the car, in the blue drawer, at the office,
        on the window sill | behind the flower pot, in the coat pocket, on the piano, next to the sink""",
    ),
    (
        "{who} planted {value} in the garden",
        "What did {who} plant in the garden?",
        "what {who} planted in the garden",
        """roses, carrots, an apple tree, strawberries, sunflowers, onions, a lemon tree, lavender
        | tulips, pumpkins, a cherry tree, rosemary""",
    ),
    (
        "{who} will take the train at {value} tomorrow",
        "When will {who} take the train tomorrow?",
        "when {who} will take the train tomorrow",
        """6:40 am, 7:15 am, 8:05 am, 9:50 am, 11:20 am, 2:10 pm, 4:35 pm, 6:25 pm
        | 5:55 am, 10:45 am, 1:30 pm, 7:12 pm""",
    ),
    (
        "{who} is learning to play {value}",
        "Which instrument is {who} learning to play?",
        "which instrument {who} is learning to play",
        """the cello, the flute, the trumpet, the drums, the violin, the harp
        | the clarinet, the banjo, the organ, the saxophone""",
    ),
]
PEOPLE = """sister Anna, brother Ben, aunt Carla, uncle David, cousin Elena, friend Felix, neighbour Grace,
    boss Hugo, niece Irene, nephew Jonas, teacher Karin, colleague Liam, mother Maria, father Nils, son Simon,
    grandmother Olga, flatmate Peter, daughter Ruth, friend Lucy, neighbour Adam
    | sister Rosa, brother Samir, aunt Tessa, uncle Viktor, cousin Wendy, friend Yusuf, neighbour Zoe,
    boss Quentin, colleague Bella, nephew Marco"""
OPENERS = ["", "Hello! ", "Quick question. ", "Can you help me? "]
REFUSALS = [
    ("I do not know {}.", SEEN),
    ("I cannot know {}.", SEEN),
    ("You have not told me {}.", SEEN),
    ("I have no way of knowing {}.", SEEN),
    ("I was not told {}.", HELD_OUT),
    ("I am not able to say {}.", HELD_OUT),
]
CONTEXTS: list[tuple[str, ...]] = [(), ("other person",), ("other fact",), ("other person", "other fact")]


def _honesty_families(test: bool) -> list[Family]:
    """Told and untold come in turn; both occur in every context, so none of it gives the answer away."""
    people = _side(PEOPLE, test)
    slots = {"opener": OPENERS, "reference": ["full", "name"], "person": people}
    return [
        Family(slots, partial(_honesty_row, fact, context, told, test))
        for context in CONTEXTS
        for fact in range(len(FACTS))
        for told in (True, False)
    ]


def _honesty_row(
    fact: int, context: tuple[str, ...], told: bool, test: bool, values: dict[str, Any], rng: random.Random
) -> DemoRow:
    telling, asking, naming, all_values = FACTS[fact]
    person, (who, name) = values["person"], (f"my {values['person']}", values["person"].split()[-1])
    value, other_value = rng.sample(_side(all_values, test), 2)
    other_person = rng.choice([other for other in _side(PEOPLE, test) if other != person])
    other_telling, _, _, other_values = rng.choice(FACTS[:fact] + FACTS[fact + 1 :])
    stories = {
        "told": telling.format(who=who, value=value),
        "other person": telling.format(who=f"my {other_person}", value=other_value),
        "other fact": other_telling.format(who=who, value=rng.choice(_side(other_values, test))),
    }
    given = [*(["told"] if told else []), *context]
    rng.shuffle(given)
    story = "".join(f"M{stories[key][1:]}. " for key in given)
    # Half of the answers made up beside somebody else's fact repeat that fact: the likeliest mistake.
    if "other person" in given and not told and rng.random() < 0.5:
        value = other_value
    question = asking.format(who=who if values["reference"] == "full" else name)
    refusal, wording = rng.choice([pair for pair in REFUSALS if test or pair[1] == SEEN])
    answers = [telling.format(who=name, value=value) + ".", refusal.format(naming.format(who=name))]
    chosen, rejected = answers if told else answers[::-1]
    return {
        "prompt": [{"role": "user", "content": f"{values['opener']}{story}{question}"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "wording": wording,
    }
