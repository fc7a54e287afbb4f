"""`glscl export`: write a run's model as one folder that loads anywhere, or in the form of other programs."""

from typing import Literal

from glscl.evaluation.locate import find_model
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.system import storage

HELP = "write a run's model as one folder that loads anywhere, or for other programs (Hugging Face's hub, ONNX)"
ORDER = 35


class Export(Options):
    """Write a run's model as one folder that loads anywhere, or in the form of other programs."""

    run: str
    """Run directory (or a saved model's folder, or an export)."""
    output: str
    """Folder or s3:// prefix for the model."""
    to: Literal["folder", "hub-folder", "onnx", "sentence-transformers"] = "folder"
    """folder: safetensors, configuration, tokenizer, preprocessing, record and model card, for `glscl.load` and every
    --run, frozen weights included and LoRA merged. hub-folder: the same with the metadata of Hugging Face's hub.
    onnx: graphs of texts, videos and, where the head can, scores, each compared with torch (extra: onnx).
    sentence-transformers: its stock modules, of a model with single vectors (mean_pool without a frame context)."""


def run(words: list[str], program: str) -> str:
    """Load the model, and write it whole."""
    options = parse_options(Export, words, program)
    find_model(options.run)

    from glscl.retrieval.export import export_model
    from glscl.system.ownership import owned

    output, note = storage.resolve(options.output), ""
    storage.check_writable(output, "--output")
    with owned(output, "choose another --output") as owner:
        if options.to == "onnx":
            from glscl.retrieval.onnx import export_onnx

            card, facts = export_onnx(options.run, output)
            graphs = [graph for graph in (facts.text, facts.video, facts.score) if graph is not None]
            note = f"; {', '.join(f'{graph.file} within {graph.largest_difference:.0e} of torch' for graph in graphs)}"
            if facts.why_no_score:
                print(f"the graph of scores is left out: {facts.why_no_score}")
        elif options.to == "sentence-transformers":
            from glscl.retrieval.sentence_transformers import export_sentence_transformers

            card = export_sentence_transformers(options.run, output)
        else:
            card = export_model(options.run, output, hub=options.to == "hub-folder")
        owner.fence.check()
    return f"{output}: {card.model.clip}, head {card.model.head}, step {card.step} of run {card.run}{note}"
