"""`resnet serve`: answers over HTTP, and a page."""

from __future__ import annotations

import click

from resnetkit.errors import UserError
from resnetkit.shell import note


@click.command(
    short_help="Answer over HTTP, with a page to drop pictures on.",
    epilog="""\b
Examples:
  resnet serve runs/flowers
  resnet serve flowers=runs/flowers-3 digits=digits.onnx --port 8080
  resnet serve runs/flowers --host 0.0.0.0 --token-file token.txt
  resnet serve runs/flowers --limit body=8388608 --limit latency=0.5
  curl --data-binary @a.jpg http://127.0.0.1:8000/predict""",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="0.0.0.0 for other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "onnx", "openvino", "mnn"]),
    default="auto",
    show_default=True,
    help="What computes the answers; auto: what is fastest on this machine.",
)
@click.option("--token-file", metavar="FILE", help="Answer only to who bears the token in this file.")
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Name no class that is less probable, and say that the model is not sure; by default the model's threshold.",
)
@click.option("--limit", "limits", metavar="NAME=N", multiple=True, help="Change one limit; docs/security.md has them.")
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    engine: str,
    token_file: str | None,
    min_probability: float | None,
    limits: tuple[str, ...],
) -> None:
    """Serve each MODEL, a run folder, model file or exported file, over HTTP: a page at /, POST /predict for a picture,
    the Open Inference Protocol below /v2, /metrics for Prometheus, /docs for all addresses.

    NAME=MODEL gives it a name; models of one name are its versions, and the last one answers. SIGHUP looks at the files
    again, SIGTERM answers what has begun and ends.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'resnetkit[serve]'") from None
    import asyncio

    from resnetkit.serving.heat import heat_maps
    from resnetkit.serving.limits import limits_of
    from resnetkit.serving.running import Asked, open_server, token_of

    token = None if token_file is None else token_of(token_file)
    asked = Asked(models, host, port, engine, token, min_probability, limits_of(limits))
    server = open_server(asked, note, note, heat_maps())
    for hosted in server.models:
        opened = hosted.opened
        note(
            f"{hosted.name}: version {hosted.version}, {opened.about.preprocess}; engine {opened.engine} "
            f"({opened.precision}): {opened.why}; in batches of {hosted.batcher.waiting.largest}"
        )
    if not asked.local and token is None:
        note(f"anybody who can reach {host} may ask; --token-file is there to prevent that")
    asyncio.run(server.serve(listening=lambda: note(f"ready: {server.address}")))
