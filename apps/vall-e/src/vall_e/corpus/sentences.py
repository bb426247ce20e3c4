"""Sentences of the demo corpus, drawn from small grammars in two languages."""

from __future__ import annotations

import random

_GRAMMARS: dict[str, dict[str, list[str]]] = {
    "en": {
        "sentence": [
            "{who} {did} {what} {where}.",
            "{who} {did} {what} {when}.",
            "{when}, {who} {did} {what}.",
            "{who} {went} {where}.",
            "{who} {went} {where} {when}.",
            "Why does {who} like {what}?",
            "{where} there is {what}.",
            "Did {who} see {what} {where}?",
            "{who} said that {what} was {how}.",
            "{what} and {what} were {how}.",
            "I think {who} {did} {what}.",
            "Please bring {what} {where}!",
            "We heard {what} {when}.",
            "You should buy {what}, not {what}.",
        ],
        "who": [
            "the farmer", "my brother", "a young girl", "the old captain", "our teacher", "the doctor",
            "her cousin", "a tall stranger", "the baker", "his mother", "the judge", "a clever boy",
            "the queen", "my neighbour", "a tired soldier", "the little child", "George", "Lucy",
            "the fisherman", "a famous writer", "your uncle", "the noisy student", "Charles", "Mary",
        ],
        "did": [
            "found", "carried", "painted", "watched", "bought", "forgot", "opened", "touched", "measured",
            "followed", "sold", "kept", "dropped", "washed", "wanted", "pushed", "chose", "described",
            "repaired", "hid", "borrowed", "counted", "threw", "enjoyed",
        ],
        "went": [
            "walked", "ran", "travelled", "slept", "worked", "danced", "waited", "shouted", "stayed",
            "played", "fell", "laughed", "lived", "sang",
        ],
        "what": [
            "the green bottle", "a heavy stone", "seven oranges", "the broken chair", "a yellow boat",
            "some fresh bread", "the silver key", "an empty box", "five small fish", "the wooden door",
            "a long letter", "the blue jacket", "three white horses", "a cup of tea", "the ancient map",
            "a bright lamp", "the thin paper", "a bowl of soup", "the golden ring", "many cheap shoes",
            "a purple flower", "the dusty piano", "two black dogs", "the measuring tape", "a sharp knife",
            "the strange picture", "a loud machine", "the round table", "eight cold eggs", "good advice",
        ],
        "where": [
            "in the garden", "under the bridge", "near the river", "at the station", "behind the house",
            "on the hill", "beside the church", "in the kitchen", "by the sea", "across the road",
            "at school", "through the forest", "inside the tower", "over the wall", "in a small village",
            "around the corner", "on the beach", "along the path", "in the museum", "at the market",
        ],
        "when": [
            "this morning", "last night", "before breakfast", "on Monday", "after the storm", "in winter",
            "yesterday", "at noon", "every Thursday", "during the summer", "once again", "last year",
            "in the evening", "just now", "twice a week", "three days ago",
        ],
        "how": [
            "beautiful", "rather dangerous", "very cheap", "too small", "quite useful", "wonderful", "hot",
            "easy to find", "never clean", "almost perfect", "really expensive", "rough and dry",
        ],
    },
    "de": {
        "sentence": [
            "{who} {did} {what} {where}.",
            "{who} {did} {what} {when}.",
            "{when} {did} {who} {what}.",
            "{who} {went} {where}.",
            "{who} {went} {when} {where}.",
            "Warum mag {who} {what}?",
            "{where} gibt es {what}.",
            "{did} {who} {what} {where}?",
            "Ich glaube, das ist {how}.",
            "{who} war gestern {how}.",
            "Bitte bring {what} mit!",
            "Wir haben {what} {where} gesehen.",
            "Ich brauche {what}, nicht {what}.",
        ],
        "who": [
            "der Bauer", "mein Bruder", "ein junges Mädchen", "die alte Frau", "unser Lehrer", "der Arzt",
            "ihre Tochter", "ein großer Mann", "die Königin", "der Bäcker", "mein Nachbar", "das kleine Kind",
            "ein müder Soldat", "die Ärztin", "Jürgen", "Sophie", "der Fischer", "euer Onkel", "die Schülerin",
            "ein fleißiger Junge",
        ],
        "did": [
            "findet", "trägt", "malt", "kauft", "vergisst", "öffnet", "sucht", "verkauft", "wäscht", "holt",
            "beschreibt", "zählt", "wirft", "versteckt", "liebt", "sieht", "bekommt", "schließt", "zeichnet",
        ],
        "went": [
            "wartet", "schläft", "arbeitet", "tanzt", "spielt", "wohnt", "lacht", "singt", "sitzt", "läuft",
            "schwimmt", "kocht",
        ],
        "what": [
            "die grüne Flasche", "einen schweren Stein", "sieben Äpfel", "den kaputten Stuhl", "ein gelbes Boot",
            "frisches Brot", "den silbernen Schlüssel", "eine leere Kiste", "fünf kleine Fische", "die Tür",
            "einen langen Brief", "die blaue Jacke", "drei weiße Pferde", "eine Tasse Tee", "die alte Karte",
            "eine helle Lampe", "das dünne Papier", "eine heiße Suppe", "den goldenen Ring", "neue Schuhe",
            "zwei schwarze Hunde", "ein scharfes Messer", "das seltsame Bild", "den runden Tisch", "acht Eier",
            "guten Käse", "ein dickes Buch", "viele Vögel",
        ],
        "where": [
            "im Garten", "unter der Brücke", "am Fluss", "am Bahnhof", "hinter dem Haus", "auf dem Berg",
            "neben der Kirche", "in der Küche", "am Meer", "in der Schule", "im Wald", "im Turm", "im Dorf",
            "auf der Straße", "am Strand", "im Museum", "auf dem Markt", "vor dem Fenster",
        ],
        "when": [
            "heute Morgen", "gestern Nacht", "vor dem Frühstück", "am Montag", "nach dem Sturm", "im Winter",
            "zu Mittag", "jeden Donnerstag", "im Sommer", "noch einmal", "am Abend", "zweimal pro Woche",
            "vor drei Tagen", "jetzt",
        ],
        "how": [
            "wunderschön", "ziemlich gefährlich", "sehr billig", "zu klein", "recht nützlich", "heiß",
            "leicht zu finden", "fast perfekt", "wirklich teuer", "ganz ruhig", "völlig richtig",
        ],
    },
}

LANGUAGES = tuple(_GRAMMARS)


def sentences(language: str, count: int, seed: int) -> list[str]:
    """`count` different sentences, the same for the same seed."""
    grammar = _GRAMMARS[language]
    rng = random.Random(f"{language}-{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        text = rng.choice(grammar["sentence"])
        while "{" in text:
            before, _, rest = text.partition("{")
            slot, _, after = rest.partition("}")
            text = before + rng.choice(grammar[slot]) + after
        found[text[0].upper() + text[1:]] = None
    return list(found)
