"""Commands that make something else of target stores: convert, merge, show-targets."""

from pathlib import Path

import click
from tqdm import tqdm

from common.base.command_options import cache_option, path_type, set_option
from common.base.config import overridden, parse_settings
from common.base.environment import environment
from common.base.errors import SettingsError, StoreError
from common.base.overlap import started_ahead
from common.base.text import aligned_table, count_text, size_text
from common.scans.scan_id import ScanId
from common.targets.store import ScanView, TargetStore
from common.targets.store.conversion import (
    KeptArrays,
    converted_identity,
    converted_scan,
    kept_arrays,
    origin,
    plain_arrays,
    write_npz,
)
from common.targets.store.manifest import MANIFEST, manifest_bytes
from common.targets.store.merging import archive_all, check_mergeable, copy_all, holders
from common.targets.store.skipped import carry_over, records
from stage1_dump_teacher.command_options import threads_option
from stage1_dump_teacher.settings import PROFILES, check_layers_of_steps


@click.command()
@cache_option
@click.option("--to", "destination", required=True, help="The new store: a folder or a URL.")
@click.option("--profile", type=click.Choice(sorted(PROFILES)), help="Keep and encode what this profile does.")
@click.option("--layers", help="Teacher layers to keep, with commas: up2e,up0e.")
@set_option
@threads_option
def convert(
    cache: str, destination: str, profile: str | None, layers: str | None, overrides: tuple[str, ...], threads: int
) -> None:
    """Write a store with fewer arrays or smaller encodings, without the teacher.

    A second run goes on where one stopped.

    Settings: layers, voxel_features, encoding.pillar_features, encoding.voxel_features, encoding.logits, encoding.codec
    and encoding.level. What is not named stays as it is; lost precision cannot be restored.

    \b
    Examples:
      polar-distill convert --cache cache/full --to cache/train --profile train
      polar-distill convert --cache cache/full --to cache/small --layers up0e --set voxel_features=false
      polar-distill convert --cache cache/full --to cache/fast --set encoding.codec=lz4
    """
    source = TargetStore.open(cache)
    values = kept_arrays(source.identity)
    if profile is not None:
        chosen = PROFILES[profile]
        values |= {**chosen, "encoding": values["encoding"] | chosen["encoding"]}
    if layers is not None:
        values["layers"] = [name.strip() for name in layers.split(",") if name.strip()]
    kept = parse_settings(KeptArrays, overridden(values, overrides), "convert")
    try:
        check_layers_of_steps(kept.encoding, kept.layers)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    identity = converted_identity(source.identity, kept)
    provenance = environment() | {"converted_from": origin(source)}
    target = TargetStore.create_or_resume(destination, identity, provenance, source.signed)
    if target.location == source.location:
        raise SettingsError("--cache and --to are the same store")
    sizes, present = source.sizes(), target.sizes()
    left = sorted(item for item in sizes if item not in present)

    def one(item: ScanView) -> int | StoreError:
        try:
            data = converted_scan(source, target, *item)
        except StoreError as error:
            return error
        # A full disk ends the command; a damaged scan file of the source does not.
        target.storage.write(target.name(*item), data)
        return len(data)

    started = started_ahead(one, left, 2 * threads, threads)
    bar = tqdm(started, total=len(left), unit="scan", desc="convert", leave=False)
    results = [future.result() for _, future in bar]
    carry_over([source], target, sizes.keys() | present.keys())
    written = [result for result in results if isinstance(result, int)]
    failed = [result.message for result in results if isinstance(result, StoreError)]
    converted = count_text(len(written), "scan-view")
    click.echo(f"{converted} converted, {len(present):,} were there before: {target.location}")
    if written and not failed:
        click.echo(f"{size_text(sum(sizes[item] for item in left))} became {size_text(sum(written))}")
    for reason in failed:
        click.echo(f"left out  {reason}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--from", "sources", multiple=True, required=True, help="A store to take from; repeatable.")
@click.option("--to", "destination", help="Store to copy into: a folder or a URL; made where there is none.")
@click.option("--archive", type=path_type, help="Write one read-only archive instead, such as store.zip.")
@threads_option
def merge(sources: tuple[str, ...], destination: str | None, archive: Path | None, threads: int) -> None:
    """Put stores of one teacher and the same settings, dumped on several machines, into one store or archive.

    Every file is verified on the way. A second run goes on where one stopped.

    \b
    Examples:
      polar-distill merge --from machine1/cache --from machine2/cache --to cache/all
      polar-distill merge --from cache/all --archive all.zip
    """
    if (destination is None) == (archive is None):
        raise SettingsError("say where to merge to: either --to or --archive")
    stores = [TargetStore.open(source) for source in sources]
    check_mergeable(stores)
    provenance = environment() | {"merged_from": [origin(store) for store in stores]}
    signed = all(store.signed for store in stores)
    found = holders(stores)
    if archive is not None:
        if archive.suffix != ".zip":
            raise SettingsError(f"{archive}: the name of an archive has to end in .zip")
        manifest = manifest_bytes(stores[0].identity, provenance, signed)
        copied = archive_all(found, {MANIFEST: manifest} | records(stores, found.keys()), archive, threads)
        total, present, place = len(found), 0, str(archive)
    else:
        target = TargetStore.create_or_resume(str(destination), stores[0].identity, provenance, signed)
        held = target.finished()
        present = len(held & found.keys())
        carry_over(stores, target, held | found.keys())
        copied = copy_all(holders([*stores, target]), target, threads)
        total, place = len(found) - present, target.location
    sizes = list(tqdm(copied, total=total, unit="scan", desc="merge", leave=False))
    before = f", {present:,} were there before" if present else ""
    click.echo(f"{count_text(len(sizes), 'scan-view')} copied ({size_text(sum(sizes))}){before}: {place}")


@click.command("show-targets")
@cache_option
@click.option("--scan", required=True, metavar="SEQUENCE/FRAME", help="Which scan, for example 00/000000.")
@click.option("--view", default=0, help="Number of the view.")
@click.option("--out", type=path_type, required=True, help="The .npz file to write.")
def show_targets(cache: str, scan: str, view: int, out: Path) -> None:
    """Write the targets of one scan and view to a NumPy file, decoded to float32, for a look.

    \b
    Examples:
      polar-distill show-targets --scan 00/000000 --out targets.npz
      python -c "import numpy as np; print(np.load('targets.npz')['logits'].argmax(1))"
    """
    if out.suffix != ".npz":
        raise SettingsError(f"{out}: the name of the file has to end in .npz")
    arrays = plain_arrays(TargetStore.open(cache), ScanId.parse(scan), view)
    write_npz(arrays, out)
    click.echo(f"{out} ({size_text(out.stat().st_size)}):")
    numbers = {name: values for name, values in arrays.items() if values.ndim}
    rows = [(name, str(values.dtype), "x".join(map(str, values.shape))) for name, values in numbers.items()]
    click.echo("\n".join(aligned_table(rows)))
    click.echo(f"  and as JSON: {', '.join(name for name in arrays if name not in numbers)}")
