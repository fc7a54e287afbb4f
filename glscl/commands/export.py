"""`glscl export`: write a run's model as one that needs nothing else, with what was frozen and with LoRA merged."""

from glscl.evaluation.locate import find_model
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.system import storage

HELP = "write a run's model as one that needs nothing else: frozen weights included, LoRA merged"
ORDER = 35


class Export(Options):
    """Write a run's model as one that needs nothing else: frozen weights included, LoRA merged."""

    run: str
    """Run directory (or a saved model's folder)."""
    output: str
    """Folder or s3:// prefix for the model, which `glscl eval --run` takes."""


def run(words: list[str], program: str) -> str:
    """Load the model, and write it whole."""
    options = parse_options(Export, words, program)
    find_model(options.run)

    from glscl.evaluation.saved import export_model
    from glscl.system.ownership import owned

    output = storage.resolve(options.output)
    storage.check_writable(output, "--output")
    with owned(output, "choose another --output") as owner:
        card = export_model(options.run, output)
        owner.fence.check()
    return f"{output}: {card.model.clip}, head {card.model.head}, step {card.step} of run {card.run}"
