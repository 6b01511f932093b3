"""What the scripted engine says: a conversation in character by somebody who knows nothing and says so.

The method is ELIZA's (Joseph Weizenbaum, "ELIZA: A Computer Program For the Study of Natural Language Communication Between Man
and Machine", Communications of the ACM 9:1, 1966): recognise a few forms, give the speaker's own words back with the pronouns
swapped, and leave the thinking to the speaker. The lines are the personality's own, from its `Script`.

A reply is a pure function of the personality, the history and the options that set its length. That is what lets a later attempt,
on another node, go on with it to the letter. Nothing here suspends, yields or knows of time.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from math import gcd

from serve_app.chat.engine import Prompt
from serve_app.chat.errors import EngineRejected
from serve_app.chat.messages import Role
from serve_app.chat.options import Options

_SHORTEST, _LONGEST = 45, 85
"""An ordinary reply, in words: long enough to be worth streaming, short enough to be read."""
_HEARD = 4_000
"""Characters of a message that are looked at for its meaning; names and the choice of lines heed all of it."""

_APOSTROPHE = "\u2019"
"""The curly one, as telephones type it; what is heard has the straight one."""
_PUNCTUATION = " \t\n.,;:!?…\"'“”\u2018\u2019«»()[]{}*_`-\u2013\u2014"
_HELLO = re.compile(
    r"\W*(?:hello|hallo|hi|hiya|hey|howdy|greetings|good (?:morning|afternoon|evening|day))\b(?: there| again)?", re.I
)
_BYE = re.compile(
    r"\W*(?:good ?bye|bye|farewell|good night)\b"
    r"|.*\b(?:good ?bye|bye|farewell|good night|see (?:you|ya)(?: later| soon| around| tomorrow)?)(?:\W+\w+)?\W*$",
    re.I | re.S,
)
_ASKS_NAME = re.compile(
    r"\b(?:(?:what is|what's|know|remember|recall|forgot|forgotten|guess|say|tell me) my name|who am i)\b", re.I
)
_ASKS_WHAT = re.compile(
    r"\b(?:who|what) are you\b(?! \w+ing\b)|\bwhat(?:'s| is) your name\b|\b(?:how do you work|what can you do|which model)\b"
    r"|\bare you (?:(?:an?|the|really|even|just|only|some|kind|of|real|large) )*(?:robot|bot|chatbot|ai|human|person|machine"
    r"|program|script|language model|model|llm|real|alive|conscious|computer|chatgpt|gpt|eliza)\b",
    re.I,
)
_ASKS = re.compile(
    r"(?:what|who|whose|where|when|why|how|which|is|are|do|does|did|can|could|will|would|should|tell|explain|write|describe|list|show"
    r"|translate|calculate|compute|summari[sz]e|find|give|name|define)\b",
    re.I,
)

_WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*"
_INTRODUCTION = re.compile(rf"\b(my name is|my name's|call me|i am|i'm)\s+({_WORD}(?: {_WORD}){{0,2}})", re.I)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NO_NAME = _set(
    "a about after again all american an and another at back because british but by crazy danish dutch each english every"
    " feeling fine for french from german glad going good happy here i if in indian irish italian japanese just korean later like"
    " maybe my no none not now of ok okay on one only or out please polish portuguese ready russian sad scottish so soon sorry"
    " spanish still sure swedish that the there tired to today too unknown up very well welsh what when with yes you your"
)

_SWAPPED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself",
    "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll",
    "you": "I", "your": "my", "yours": "mine", "yourself": "myself",
    "you're": "I'm", "you've": "I've", "you'd": "I'd", "you'll": "I'll",
}  # fmt: skip
_VERB_FOR_YOU = {"am": "are", "was": "were", "wasn't": "weren't"}
_VERB_FOR_I = {"are": "am", "were": "was", "weren't": "wasn't"}
_TAKES_ME = _set(
    "about after answer around ask at before behind believe beside bother by call for forgive from give hate hear help know like"
    " love miss near need of on remember see show tell thank than to teach trust understand want wish with without"
)
_TAKES_I = _set("and are aren't can can't could do don't did had have if may might must or shall should that were will would")
_LOWERED = _set(
    "a an and are as at but can could describe did do does every explain for from give had has have he hello her his how if in"
    " is it it's its let's list maybe no nobody of on one our please she should show so some tell thank thanks that that's the"
    " their there there's these they this those to was we were what what's when where which who why will with would write yes"
)


def write_reply(prompt: Prompt, options: Options) -> list[str]:
    """Return the words of the whole reply; joined by single spaces they are its text.

    There are exactly `options.words` of them where that is asked for, and never more than `options.max_tokens`.

    Raises:
        EngineRejected: the personality's script has no words in it.
    """
    most = options.max_tokens or 1_000_000
    writer = _Writer(prompt)
    words = writer.reply(enough=min(options.words or most, most))
    while len(words) < (options.words or 1) and len(words) < most:
        words += writer.more()
    return words[: min(options.words or most, most)]


def find_name(text: str) -> str:
    """Return the name that the writer of `text` gives as their own, the last one where there are several; empty if none.

    After "I'm", only a capitalised word is taken for a name: "I'm Ada" is one, "I'm tired" is not. Nationalities are none either.
    """
    found = ""
    for match in _INTRODUCTION.finditer(text.replace(_APOSTROPHE, "'")):
        words = match[2].split(" ")
        first = words[0]
        if first.lower() in _NO_NAME or first.lower().endswith("'s"):
            continue
        if match[1].lower() in ("i am", "i'm") and (not first[0].isupper() or (len(first) > 1 and first.isupper())):
            continue
        # Further words belong to the name as long as they look like one: "Ada Lovelace", not "Ada and".
        end = next((at for at, word in enumerate(words) if at and (not word[0].isupper() or word in ("I", "I'm"))), len(words))
        found = " ".join(word.capitalize() if word.islower() else word for word in words[:end])[:60]
    return found


def reflect(text: str) -> str:
    """Return the most personal sentence of `text` from the other side: "I lost my keys." gives "you lost your keys"."""
    sentences = [s for s in re.split(r"(?<=[.!?…;])\s+|\n+", text) if any(map(str.isalnum, s))]
    if not sentences:
        return ""
    personal = (s for s in sentences if not _SWAPPED.keys().isdisjoint(s.lower().split()))
    tokens = next(personal, sentences[0]).strip(_PUNCTUATION).split()
    cores = [token.strip(_PUNCTUATION) for token in tokens[:13]]
    keys = [core.lower() for core in cores]
    turned = []
    for at, (token, core, key) in enumerate(zip(tokens, cores, keys, strict=False)):
        around = (keys[at - 1] if at else "", keys[at + 1] if at + 1 < len(keys) else "")
        new = _SWAPPED.get(key) or (key if at == 0 and key in _LOWERED else core)
        if key == "you" and at and around[1] not in _TAKES_I:
            ends = not around[1] or token[-1] in ",;:"
            new = "me" if around[0] in _TAKES_ME or (ends and around[0] not in _TAKES_I) else "I"
            if keys[:2] == ["thank", "you"]:
                new = "you"
        elif "i" in around and key in _VERB_FOR_YOU:
            new = _VERB_FOR_YOU[key]
        elif "you" in around and key in _VERB_FOR_I:
            new = _VERB_FOR_I[key]
        turned.append(token.replace(core, new, 1) if core else token)
    whole = " ".join(turned[:12]).rstrip(_PUNCTUATION)
    return f"{whole[:120]}…" if len(turned) > 12 or len(whole) > 120 else whole


class _Dice:
    """Choices that look free and are fixed by the seed. A linear congruence: seeding `random.Random` costs more than a reply."""

    def __init__(self, prompt: Prompt) -> None:
        digest = hashlib.blake2b(prompt.personality.name.encode("utf-8", "surrogatepass"), digest_size=8)
        for message in prompt.messages:
            digest.update(f"\0{message.role}\0{message.content}".encode("utf-8", "surrogatepass"))
        self._state = int.from_bytes(digest.digest(), "big")

    def roll(self, sides: int) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFF_FFFF_FFFF_FFFF
        return (self._state >> 33) % sides


class _Writer:
    """Writes one reply, and goes on writing in the same voice when asked for more."""

    def __init__(self, prompt: Prompt) -> None:
        self._script = prompt.personality.script
        self._calls = (prompt.personality.display_name.lower(), prompt.personality.name)
        users = [message.content for message in prompt.messages if message.role == Role.USER]
        self._text = users[-1][:_HEARD].replace(_APOSTROPHE, "'").strip() if users else ""
        self._told = find_name(users[-1]) if users else ""
        self._name = self._told or next(filter(None, map(find_name, reversed(users[:-1]))), "")
        said = (message.content for message in reversed(prompt.messages) if message.role == Role.ASSISTANT)
        self._before = next(said, "")[:_HEARD]
        self._dice = _Dice(prompt)
        self._asides = self._endless(self._script.asides)
        self._questions = self._endless(self._script.questions)
        self._extra = 0

    def reply(self, enough: int) -> list[str]:
        """Return the words of the ordinary reply, or the beginning of it with at least `enough` of them."""
        script, text = self._script, self._text
        hello = _HELLO.match(text)
        rest = self._unaddressed(text[hello.end() :] if hello else text)
        bye = not text.endswith("?") and _BYE.match(text) is not None
        words = self._say(script.greetings, personal=True) if hello and not self._told and not bye else []
        if self._told:
            words += self._say(script.name_learned)
        elif bye:
            words += self._say(script.farewells, personal=True)
        elif _ASKS_NAME.search(rest):
            words += self._say(script.name_known if self._name else script.name_unknown)
        elif _ASKS_WHAT.search(rest):
            words += self._say(script.what_am_i)
        elif topic := reflect(rest):
            words += self._say(script.reflections, topic=topic)
            if "?" in rest or _ASKS.match(rest):
                words += self._say(script.admissions)
        elif not words:
            words = self._say(script.greetings, personal=True)
        if len(words) >= enough:
            return words
        asked = [] if bye else self._line(next(self._questions))
        for _ in script.asides:
            if len(words) + len(asked) >= _SHORTEST:
                break
            words += self._line(next(self._asides))
        if len(words) + len(asked) <= _LONGEST:
            words += asked
        return words

    def more(self) -> list[str]:
        """Return the words of one further line: asides, and now and then a question, never the same twice in a row.

        Raises:
            EngineRejected: the script has no words in it.
        """
        for _ in range(len(self._script.asides) + len(self._script.questions) + 4):
            self._extra += 1
            if words := self._line(next(self._questions if self._extra % 4 == 0 else self._asides)):
                return words
        raise EngineRejected("The script of this personality has no words in its asides and questions; write some.")

    def _unaddressed(self, text: str) -> str:
        """Return `text` without the personality's name in front of it."""
        text = text.lstrip(_PUNCTUATION)
        for call in self._calls:
            if text.lower().startswith(call) and not text[len(call) : len(call) + 1].isalnum():
                return text[len(call) :].lstrip(_PUNCTUATION)
        return text

    def _say(self, lines: Sequence[str], *, topic: str = "", personal: bool = False) -> list[str]:
        """Choose a line that was not said a moment ago; a `personal` one names the user where their name is known."""
        fitting = lines
        if personal or not self._name:
            fitting = [line for line in lines if ("{name}" in line) == bool(self._name)] or lines
        first = self._dice.roll(len(fitting))
        for at in range(first, first + len(fitting)):
            line = fitting[at % len(fitting)]
            if not self._before or max(line.split("{topic}"), key=len).replace("{name}", self._name) not in self._before:
                break
        return self._line(line, topic)

    def _line(self, line: str, topic: str = "") -> list[str]:
        # The topic goes in last and by `replace`: the user's own braces are words, not places to fill.
        return line.replace("{name}", self._name or "friend").replace("{topic}", topic).split()

    def _endless(self, lines: Sequence[str]) -> Iterator[str]:
        """Go through all the lines, and through all of them again in another order, for ever."""
        count, last = len(lines), -1
        while True:
            at, step = self._dice.roll(count), 1 + self._dice.roll(count)
            while gcd(step, count) > 1:
                step += 1
            if at == last:
                at += step
            for _ in range(count):
                at %= count
                if lines[at] not in self._before or count < 2:
                    yield lines[at]
                last, at = at, at + step
            self._before = ""
