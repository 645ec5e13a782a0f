"""`edge-sfda demo`: the whole way on the built-in scene, with nothing to prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_sfda.cli import options
from edge_sfda.cli.adapt import BUILT_IN_MODEL, finish, watching
from edge_sfda.cli.screen import Stop, note, progress

EXAMPLES = options.examples(
    "edge-sfda demo",
    "edge-sfda demo --domain fog -o fog/",
    "edge-sfda demo --domain night --json",
)


def demo(
    domain: Annotated[
        str, typer.Option(help="What the street turns into: dusk, night, fog, rain, city or sensor.")
    ] = "dusk",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that the run leaves.")] = Path("demo"),
    model: Annotated[
        Path, typer.Option(help="Source checkpoint; the built-in one knows the street by day.", show_default=False)
    ] = BUILT_IN_MODEL,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Take a network trained by day to another domain of the built-in street, and repair it from frames alone."""
    from edge_sfda import config
    from edge_sfda.adapt.session import Session, Slice
    from edge_sfda.data.labels import labels_of
    from edge_sfda.nets import load
    from edge_sfda.report.adaptation import Origin, write
    from edge_sfda.report.run_folder import RunFolder

    # another street is measured than learned from, and the source network has seen neither
    learn, measure = (f"scene:{domain}?frames={n}&seed={street}&fps=2" for n, street in ((96, 7), (48, 21)))
    settings = config.from_dict({"seed": seed})
    network, manifest = load(model, device=device)
    labels = labels_of(measure, None, None, manifest.classes)
    run = RunFolder(out)
    run.write_config(config.to_toml(settings))
    note(f"adapting a network that was trained by day to {domain}, from frames without labels ...")
    with Stop() as stop, progress("adapting") as step:
        session = Session(network, manifest, settings, labels=labels, watch=watching(run, stop, step))
        outcome = session.offline(learn=Slice(learn), measure=Slice(measure))
        report = write(run, outcome, Origin(str(model), learn, "another street of the same domain", online=False))
    finish(report, run, as_json=as_json)
