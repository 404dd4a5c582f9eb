"""`resnet shard`: pictures into tars that are read fast. Starts without torch and numpy."""

from __future__ import annotations

import click

from resnetkit.shell import bad_option, emit, json_option


@click.command(
    short_help="Write pictures as tars that are read fast.",
    epilog="""\b
Examples:
  resnet shard imagenet/ shards/                    bytes as they are
  resnet shard imagenet/ small/ --short-side 400    smaller JPEGs
  resnet train shards/ --recipe imagenet-paper""",
)
@click.argument("data")
@click.argument("out")
@click.option("--shard-mb", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="MiB a shard, about.")
@click.option(
    "--short-side", type=click.IntRange(min=1), metavar="N", help="Resize pictures whose shorter side is longer."
)
@click.option("--verify", is_flag=True, help="Read all back in the end and compare checksums.")
@bad_option
@json_option
def shard(data: str, out: str, shard_mb: int, short_side: int | None, verify: bool, bad: str, as_json: bool) -> int:
    """Write the pictures of DATA, which is what train takes, into the folder OUT as WebDataset tars, shuffled, with an
    index and checksums; OUT is then what train takes.

    Pictures stay the same to the byte, unless --short-side is given: then larger ones become JPEGs of quality 90.
    Typed again after Ctrl-C or a kill, the command goes on with the shards that are missing.
    """
    from resnetkit import sharding
    from resnetkit.terminal import amount, counted, say, screen, sharding_line, show_bad, status

    end = None
    with status() as live:
        for event in sharding.shard(data, out, shard_mb=shard_mb, short_side=short_side, bad=bad, verify=verify):
            if isinstance(event, sharding.Sharded):
                end = event
            else:
                live(sharding_line(event))
    assert end is not None, "the last event is Sharded"
    if as_json:
        about = {"shards": end.shards, "pictures": end.pictures, "bytes": end.bytes, "kept": end.kept, "bad": end.bad}
        emit({"out": out, **about, "verified": verify})
    else:
        console = screen()
        there = f", {end.kept:,} of them there already" if end.kept else ""
        say(console, f"{out}: {counted(end.pictures, 'picture')} in {counted(end.shards, 'shard')}{there}")
        say(console, f"{amount(end.bytes)}B{', read back and compared' if verify else ''}")
        show_bad(console, end.bad)
        say(console, f"next: resnet train {out}")
    return 1 if end.bad else 0
