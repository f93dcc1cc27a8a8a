"""Other words for every instruction of the embedded stream, for the streams `paraphrased`.

A prompt's lines are reworded one by one, each with equal chances for its own words and the others
listed here. Questions of easy-VQA stay: that data set words each in several ways itself.
"""

from __future__ import annotations

import re
from random import Random

# What a whole line matches, and other lines of the same meaning; \1, \2: its groups.
_WORDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"Answer the question using a single word or phrase\.",
        (
            "Reply with one word or a short phrase.",
            "Keep the answer to a single word or phrase.",
            "A word or a phrase is enough.",
        ),
    ),
    (
        r"Answer the question with the class name\.",
        (
            "Give the name of the class.",
            "Reply with the class name only.",
            "Which class is it? Name it.",
        ),
    ),
    (
        r"Answer the question about the chart with a number or a name\.",
        (
            "Reply with a number or a name from the chart.",
            "Read the chart; a number or a name is enough.",
            "The answer is a number or a name in the chart.",
        ),
    ),
    (
        r"Answer with the option's letter from the given choices directly\.",
        (
            "Reply with the letter of the right option.",
            "Which letter is right? Give it alone.",
            "Choose one of the options by its letter.",
        ),
    ),
    (
        r"What is the trend of this stock\?",
        (
            "How does the price of this stock move?",
            "Which way does this share go?",
            "Describe the course of the price.",
        ),
    ),
    (
        r"Please provide the bounding box coordinate of the region this sentence describes: (.+)",
        (
            r"Where is \1? Give the coordinates of its bounding box.",
            r"Locate \1 and answer with a bounding box.",
            r"Draw a box around \1: which coordinates does it have?",
        ),
    ),
    (
        r"What is the object in the image\?",
        (
            "Which thing does the picture show?",
            "Name what you see in the image.",
            "What does this image depict?",
        ),
    ),
    (
        r"What is the background of the image\?",
        (
            "Which landscape does the picture show?",
            "Where was this image taken?",
            "What kind of scene is behind everything?",
        ),
    ),
    (
        r"When was this movie released\?",
        (
            "In which year did this film come out?",
            "What is the release year of the movie?",
            "How old is this film: which year?",
        ),
    ),
    (
        r"Who is the director of this movie\?",
        (
            "Who directed this film?",
            "Name the director of the movie.",
            "This film was made by which director?",
        ),
    ),
    (
        r"What is the genre of this movie\?",
        (
            "Which genre does this film belong to?",
            "What kind of movie is this?",
            "Name the genre of the film.",
        ),
    ),
    (
        r"What should the yellow ego vehicle do\?",
        (
            "Which action is right for the yellow car?",
            "You drive the yellow vehicle: what now?",
            "Decide what the yellow ego car does next.",
        ),
    ),
    (
        r"Which lane is the yellow ego vehicle in\?",
        (
            "In which lane does the yellow car drive?",
            "Name the lane of the yellow vehicle.",
            "Where is the yellow ego car: which lane?",
        ),
    ),
    (
        r"Is the (\w+) lane free for the yellow ego vehicle\?",
        (
            r"Can the yellow car use the \1 lane?",
            r"Is nothing in the way of the yellow vehicle on the \1 lane?",
            r"Could the yellow ego car drive on in the \1 lane?",
        ),
    ),
    (
        r"What is the value of the (\w+) bar\?",
        (
            r"How high is the \1 bar?",
            r"Which number belongs to the \1 bar?",
            r"Read off the \1 bar.",
        ),
    ),
    (
        r"Which colour is the (\w+) bar\?",
        (
            r"What colour does the \1 bar have?",
            r"Name the colour of the \1 bar.",
            r"The \1 bar is drawn in which colour?",
        ),
    ),
    (
        r"What is the colour of the object (.+)\?",
        (
            r"Which colour does the thing \1 have?",
            r"Name the colour of what is \1.",
            r"Look at the object \1: which colour is it?",
        ),
    ),
    (
        r"What is ((?:above|below|to the left of|to the right of) the \w+ object)\?",
        (
            r"Which thing is \1?",
            r"Name the object that is \1.",
            r"Tell me what you find \1.",
        ),
    ),
    (
        r"Is the object ((?:above|below|to the left of|to the right of) the \w+) (\w+)\?",
        (
            r"Is the thing \1 coloured \2?",
            r"Does the object \1 have the colour \2?",
            r"Is it true that what is \1 is \2?",
        ),
    ),
    (
        r"Is the middle of the image land or sea\?",
        (
            "Does the centre of the picture show land or sea?",
            "Land or sea: what is in the middle?",
            "What lies at the middle of this view, land or sea?",
        ),
    ),
    (
        r"On which side of the image is the water\?",
        (
            "Which side of the picture is covered by water?",
            "Where is the water: on which side?",
            "Name the side on which there is water.",
        ),
    ),
    (
        r"Is there any (\w+) in the image\?",
        (
            r"Does the picture show any \1?",
            r"Can \1 be seen here?",
            r"Is some \1 visible in this view?",
        ),
    ),
    (
        r"Is there more (\w+) than (\w+) in the image\?",
        (
            r"Does the picture show more \1 than \2?",
            r"Is \1 the larger part, compared with \2?",
            r"Of \1 and \2, is there more of the first?",
        ),
    ),
    (
        r"Provide a one-sentence caption for the image\.",
        (
            "Describe the picture in one sentence.",
            "Write a caption of one sentence.",
            "Say in a sentence what the image shows.",
        ),
    ),
    (
        r"Read the text in the image and make use of it\.",
        (
            "Use the words that stand in it.",
            "What is written there belongs into the sentence.",
            "Mention the text that you can read.",
        ),
    ),
)
WORDINGS = tuple((re.compile(pattern), others) for pattern, others in _WORDINGS)


def reworded(prompt: str, rng: Random) -> str:
    """Return a prompt of the same meaning; lines that are data (options) stay as they are."""
    return "\n".join(_line(line, rng) for line in prompt.split("\n"))


def _line(line: str, rng: Random) -> str:
    for pattern, others in WORDINGS:
        if found := pattern.fullmatch(line):
            return rng.choice([line, *(found.expand(other) for other in others)])
    return line
