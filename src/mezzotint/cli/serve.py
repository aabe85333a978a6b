"""`mezzotint serve`: a page and four APIs for one model, on this machine unless told otherwise."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import stdout
from mezzotint.cli.options import source_options
from mezzotint.errors import RequestError
from mezzotint.pipeline.source import Source

Gallery = Annotated[Path, typer.Option(help="Folder that pictures and their index are kept in.")]


@source_options()
def serve(
    *,
    source: Source,
    models: Annotated[Path | None, typer.Option(help="Folder with more models, to switch between.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 need --key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    key: Annotated[
        str | None, typer.Option(envvar="MEZZOTINT_KEY", help="Clients must send it: as bearer token or password.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this server, with port; may be repeated.")
    ] = None,
    gallery: Gallery = Path("outputs/gallery"),
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep pictures of every client in the gallery, not only the page's.")
    ] = False,
    queue: Annotated[int, typer.Option(min=1, help="How many pictures of the usual size may wait.")] = 64,
    places: Annotated[int, typer.Option(min=1, max=64, help="How many jobs take turns.")] = 4,
    merge_rows: Annotated[
        int, typer.Option(min=0, max=256, help="For accelerators: rows of one network call, several pictures'; 0: off.")
    ] = 0,
    max_pixels: Annotated[int, typer.Option(min=64, help="Largest picture, width times height.")] = 1 << 22,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that jobs get to finish when the server is ended.")] = 30,
    reindex: Annotated[
        bool, typer.Option("--reindex", help="Make the gallery's index again from its files, and stop.")
    ] = False,
) -> None:
    """Serve a page and the APIs of OpenAI, AUTOMATIC1111 and Hugging Face clients, to this machine alone by default.

    Models that are switched to share --dtype, --device and --weights; the rest of how to load one is of --model alone.

    Example: mezzotint serve -m model --port 8000
    """
    try:
        from mezzotint.serve.store import Store
    except ImportError:
        raise _lacking() from None
    if reindex:
        store = Store(gallery)
        stdout.print(f"{store.reindex()} pictures in {gallery}", markup=False, soft_wrap=True)
        store.close()
        return
    try:
        from mezzotint.serve.run import Place
        from mezzotint.serve.run import serve as run
        from mezzotint.serve.wish import Limits
        from mezzotint.serve.works import Settings
    except ImportError:
        raise _lacking() from None
    settings = Settings(
        source=source,
        places=places,
        queue=queue,
        merge_rows=merge_rows,
        is_everything_kept=keep_all,
        limits=Limits(pixels=max_pixels),
    )
    place = Place(
        host=host,
        port=port,
        key=key,
        allowed_hosts=tuple(allow_host or ()),
        grace=grace,
        gallery=gallery,
        models=models,
        settings=settings,
    )
    run(place, lambda line: print(line, flush=True))


def _lacking() -> RequestError:
    return RequestError("serving needs further packages: pip install 'mezzotint[serve]'")
