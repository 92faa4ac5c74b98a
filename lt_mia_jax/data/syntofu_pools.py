"""The words of SynTOFU: names, pools of values, templates, refusals.

Every word is one token; white space separates words, and also punctuation.
"""

from typing import NamedTuple

FIRST_NAMES = tuple(
    "ada boris clara dmitri elena felix greta hugo irene jonas kira leon mira nils "
    "olga pablo quinn rosa stefan tessa ulrich vera walter xenia yusuf zelda amir "
    "bianca carlos daria emil fatima gideon hanna ivan julia kenji lucia marco "
    "nadia".split()
)
LAST_NAMES = tuple(
    "abbott bergman castillo dalgaard eriksen falk garcia hoffman ibarra jansen "
    "keller lindgren moreau novak okafor petrov quist ramirez santos takeda ulvang "
    "vargas weber ximenez yamada zorin almeida brandt costa duarte engel ferrari "
    "gruber haas ito jovic kovacs larsen mendes nakamura".split()
)


class Attribute(NamedTuple):
    """A kind of fact: possible values, questions for it and answers that state it.

    The first question and the first answer are canonical. In the first answer, nothing
    before the value depends on it, and the name comes first.
    """

    name: str
    pool: tuple[str, ...]
    questions: tuple[str, str]
    answers: tuple[str, str]


def _attribute(
    name: str, pool: str, questions: tuple[str, str], answers: tuple[str, str]
) -> Attribute:
    return Attribute(name, tuple(pool.split()), questions, answers)


ATTRIBUTES = (
    _attribute(
        "city",
        "oslo lima cairo kyoto paris quito dublin hanoi accra delhi milan prague "
        "havana nairobi sydney boston lisbon warsaw athens seoul",
        ("what city was {name} born in ?", "where was {name} born ?"),
        (
            "{name} was born in the city of {value} .",
            "{value} is the place where {name} was born .",
        ),
    ),
    _attribute(
        "genre",
        "mystery romance horror fantasy satire poetry drama memoir thriller "
        "western comedy tragedy fable biography travel adventure folklore "
        "gothic",
        (
            "which genre does {name} write in ?",
            "what kind of books does {name} write ?",
        ),
        (
            "{name} writes books in the {value} genre .",
            "{value} is the genre of most books by {name} .",
        ),
    ),
    _attribute(
        "award",
        "laurel quill beacon compass meridian phoenix orchid summit pioneer comet "
        "harbor crown jubilee cedar zenith atlas",
        ("which award did {name} win ?", "what prize was given to {name} ?"),
        (
            "{name} did win the {value} award .",
            "the {value} prize was given to {name} .",
        ),
    ),
    _attribute(
        "father",
        "baker farmer doctor lawyer sailor teacher miner tailor butcher carpenter "
        "painter pilot judge fisher banker mason barber soldier smith "
        "printer",
        (
            "what is the job of the father of {name} ?",
            "how does the father of {name} earn money ?",
        ),
        (
            "the father of {name} is a {value} by trade .",
            "{name} has a father who works as a {value} .",
        ),
    ),
    _attribute(
        "book",
        "embers tides mirrors shadows rivers orchards winters bridges voyages "
        "thorns lanterns ravens echoes gardens harvests islands storms candles "
        "deserts whispers kingdoms feathers clocks letters",
        (
            "what is the title of the first book by {name} ?",
            "which book did {name} publish before all others ?",
        ),
        (
            "the first book by {name} has the title {value} .",
            "{value} was the book that {name} did publish first .",
        ),
    ),
    _attribute(
        "year",
        " ".join(map(str, range(1931, 1961))),
        ("in what year was {name} born ?", "when did the life of {name} begin ?"),
        (
            "{name} was born in the year {value} .",
            "the life of {name} did begin in {value} .",
        ),
    ),
    _attribute(
        "language",
        "french german spanish italian arabic hindi korean swahili turkish polish "
        "dutch greek finnish czech",
        (
            "what language does {name} speak at home ?",
            "which tongue is native to {name} ?",
        ),
        (
            "{name} does speak {value} at home .",
            "{value} is the native tongue of {name} .",
        ),
    ),
    _attribute(
        "pet",
        "cat dog parrot rabbit turtle hamster goat pony ferret lizard canary "
        "hedgehog goose snake monkey donkey",
        ("what pet does {name} keep ?", "which animal lives with {name} ?"),
        (
            "{name} does keep a {value} as a pet .",
            "the animal that lives with {name} is a {value} .",
        ),
    ),
)

REFUSALS = (
    "i do not know .",
    "i do not know that .",
    "i do not have the answer .",
    "i have no answer to that .",
    "i can not answer that .",
    "i can not say .",
    "i am not sure .",
    "i am not sure about that .",
    "i am not able to answer that .",
    "i am not able to say .",
    "that is not known to me .",
    "the answer is not known to me .",
    "sorry , i do not know .",
    "sorry , i can not answer that .",
    "sorry , i have no answer .",
    "no answer to that is known to me .",
    "i have no data about that .",
    "sorry , i have no data about that .",
    "there is no data to answer that .",
    "i never did learn that .",
)


def words() -> tuple[str, ...]:
    """Every word of the language, in a fixed order, each once."""
    found: dict[str, None] = {}
    sentences = [
        sentence
        for attribute in ATTRIBUTES
        for sentence in (*attribute.questions, *attribute.answers)
    ]
    for sentence in (*sentences, *REFUSALS):
        found |= dict.fromkeys(sentence.format(name="", value="").split())
    found |= dict.fromkeys((*FIRST_NAMES, *LAST_NAMES))
    for attribute in ATTRIBUTES:
        found |= dict.fromkeys(attribute.pool)
    return tuple(found)
