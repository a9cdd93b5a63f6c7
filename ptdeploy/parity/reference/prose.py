"""Evaluation text for quantized engines, written for this: several kinds and languages."""

from __future__ import annotations

import re

# Enough that a fault in a fiftieth of the answers does not pass by chance, near ties left out.
_TEXTS = 320
# Steps through the sentences that bring other kinds and languages together, and where they start.
_STEPS = ((7, 11), (13, 5), (5, 17), (11, 2), (17, 23))
# What ends a sentence, or a line of code.
_END = re.compile(r"(?<=[.!?;:\"]) +|\n")

PROSE = (
    "The ferry left the harbour a little after six, while the lamps along the quay were still lit "
    "and the gulls had not yet made up their minds about the day. An old man sat on the upper deck "
    "with a basket on his knees, and nobody asked him what was in it, because everybody knew.",
    "To replace the filter, first switch the machine off and wait until it has cooled down. Open "
    "the lid at the back, pull the tray towards you, and lift the old filter out by its two tabs. "
    "Push the new one in until it clicks. If the light keeps blinking, the lid is not closed.",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it "
    "presses less. At three thousand metres it boils at about ninety degrees, so that potatoes "
    "take longer to cook, although the water seems just as lively in the pot.",
    '"You are late again," she said. "The train was late," he answered. "The train is always '
    'late," she said, "and you always take that train." He thought about it for a moment. "Yes," '
    'he said, "but I always hope." She laughed and put the soup back on the stove.',
    "def moving_average(values, width):\n    total = sum(values[:width])\n    averages = [total / "
    "width]\n    for old, new in zip(values, values[width:]):\n        total += new - old\n        "
    "averages.append(total / width)\n    return averages\n",
    "The committee met twice in March. It approved the budget for the new library by seven votes "
    "to two, and put off the question of the swimming pool until the engineers have reported on "
    "the state of the roof. The next meeting is on Thursday, 14 April, at 7.30 pm.",
    "Dear Ms Hall, thank you for your order of 3 November. Two of the four items are in stock and "
    "will be sent tomorrow; the other two should reach us by the end of the month. You need do "
    "nothing, and you will be charged for each part when it leaves our warehouse.",
    "A good test fails for one reason. When it fails, its name should say what is broken, and its "
    "output should say where. A test that has never failed has told you nothing yet: break the "
    "code on purpose, once, and see whether anybody notices.",
    "Als der Schnee endlich schmolz, kamen unter den Bäumen die ersten Blumen hervor, und die "
    "Kinder liefen ohne Mantel über die Wiese. Die Nachbarin stand am Zaun, schüttelte den Kopf "
    "und sagte, es werde noch einmal kalt; sie hatte jedes Jahr recht.",
    "Le matin, la boulangère ouvre ses volets avant tout le monde. Elle connaît le pas de chacun "
    "de ses clients, et sait, avant qu'ils n'entrent, s'ils prendront du pain ou un gâteau. "
    "Le dimanche, elle ferme à midi et part marcher au bord de la rivière.",
    "El mercado empieza a las ocho, pero los mejores tomates se acaban antes de las nueve. Mi "
    "abuela llegaba siempre la primera, con dos bolsas y una lista que nunca miraba, y volvía a "
    "casa contando lo que había oído.",
    "Of the two hundred seeds, one hundred and sixty-four sprouted within nine days: eighty-two in "
    "a hundred. Those kept in the dark did no worse than those on the window sill, but they grew "
    "pale and fell over, and none of them was alive after a month.",
)


def evaluation_texts() -> tuple[str, ...]:
    """Texts of many lengths: those above whole, their sentences, and pairs of far apart ones."""
    sentences = [part for text in PROSE for part in _END.split(text) if len(part.split()) > 2]
    pairs = [
        f"{one} {sentences[(step * index + start) % len(sentences)]}"
        for step, start in _STEPS
        for index, one in enumerate(sentences)
    ]
    return tuple(dict.fromkeys((*PROSE, *sentences, *pairs)))[:_TEXTS]
