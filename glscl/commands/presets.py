"""`glscl presets`: list the packaged configurations, or print one."""

from glscl.errors import UserError
from glscl.options.packaged import preset_names, preset_text
from glscl.study.options import StudyConfig
from tune.options import SweepConfig

HELP = "list the packaged configurations, or print one"
ORDER = 80


def run(words: list[str], program: str) -> str:
    """Print, with no verdict: what is printed can be saved as a file."""
    kinds = {
        "train": (preset_names(), preset_text),
        "study": (StudyConfig.names(), StudyConfig.text),
        "sweep": (SweepConfig.names(), SweepConfig.text),
    }
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} [[train|study|sweep] NAME]\n\n{HELP}")
    elif len(words) > 2 or (len(words) == 2 and words[0] not in kinds):
        raise UserError(f"`{program}` takes one name, after train, study or sweep where it is not clear: {words}")
    elif words:
        named = words[:-1] or [kind for kind, (names, _) in kinds.items() if words[-1] in names] or ["train"]
        print(kinds[named[0]][1](words[-1]), end="")
    else:
        for kind, (names, text) in kinds.items():
            for name in names:
                print(f"glscl {kind} --config {name:<17} {text(name).splitlines()[0].lstrip('# ')}")
    return ""
