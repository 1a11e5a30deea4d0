"""Names and things that facts are made of."""

import json

from benchmarks.quality.tasks.sentences import FOLDER

NAMES, JOBS, CITIES, WORDS, PLACES = json.loads((FOLDER / "words.json").read_text()).values()
