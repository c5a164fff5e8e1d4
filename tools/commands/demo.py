"""``celosia demo``: the handwritten digits of :mod:`celosia.tools.demo`, from ONNX file to checked result."""

from pathlib import Path

import numpy as np

from celosia.tools.check import check_outputs, summary
from celosia.tools.commands.console import output
from celosia.tools.commands.run import execute, print_comparison, write_files
from celosia.tools.demo import IMAGES, LABELS, MODEL
from celosia.tools.errors import BadConfig
from celosia.tools.places import is_place
from celosia.tools.report import table
from celosia.tools.session import InferenceSession

__all__ = ["run"]


def run(options):
    """Run the demonstration; return 1 if an element differs from ONNX Runtime's."""
    if options.limit is not None and options.limit < 1:
        raise BadConfig(f"--limit must be at least 1, not {options.limit}")
    console = output()
    images, labels = np.load(IMAGES)["image"][: options.limit], np.load(LABELS)[: options.limit]
    console.print(f"{MODEL.name}: {len(images)} handwritten digits that the network was not trained on")
    session = InferenceSession(MODEL, options.engine, options.on, memory=options.memory)
    if options.on != "golden" and not is_place(options.on) and not options.timeline:
        options.timeline = str(Path("celosia-demo.svg"))
    outputs = execute(session, {"image": images})
    found = check_outputs(session, MODEL, {"image": images}, outputs)
    session.report.elements, session.report.differences, session.report.ties = summary(found)
    write_files(session, options, outputs)
    console.print(table(session.report))
    right = int((outputs[0].argmax(1) == labels).sum())
    console.print(f"accuracy: {right} of {len(labels)} digits ({right / len(labels):.1%})")
    code = print_comparison(found)
    if options.timeline:
        console.print(f"timeline of the units: {options.timeline}")
    return code
