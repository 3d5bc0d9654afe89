"""Prediction files in the benchmark's layout, in a folder or in a zip for its server.

SemanticKITTI's server takes a zip with a folder entry for `sequences/`, each `sequences/XX/` and each
`sequences/XX/predictions/`, and in the last a file of one little-endian uint32 raw label for each point of each scan.
Which files there are is known to the dataset's format (`ScanFiles.prediction`).
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from common.base.errors import SettingsError
from common.base.files import replacing, write_atomically
from common.scans.dataset import Dataset
from common.training.predictor import ScanPrediction

FOLDER_BITS, FILE_BITS = 0o755, 0o100644


def write_predictions(
    found: Iterable[ScanPrediction],
    dataset: Dataset,
    folder: Path | None,
    archive: Path | None,
    splits: Iterable[str] = (),
) -> int:
    """Write the prediction of every scan in its benchmark's layout to a folder, to a zip, or to both.

    The zip appears when it is complete. In the folder each file does, so that an interrupted run leaves whole files.
    Of a scan that several splits have, the split is that among those asked for.

    Returns:
        number of scans.

    Raises:
        SettingsError: neither a folder nor a zip is named.
    """
    if folder is None and archive is None:
        raise SettingsError("say where predictions go: --out FOLDER, --zip FILE, or both")
    count, splits, seen = 0, list(splits), set()
    with ExitStack() as stack:
        zipped = None if archive is None else stack.enter_context(zip_writer(archive))

        def write(name: str, data: bytes) -> None:
            if folder is not None:
                write_atomically(folder / name, data)
            if zipped is not None:
                zipped(name, data)

        for prediction in found:
            split = dataset.label_map.split_of(prediction.scan.sequence, splits)
            seen.add(split)
            labels = dataset.files.restored(prediction.scan, prediction.labels)
            write(*dataset.files.prediction(prediction.scan, labels, dataset.label_map, split))
            count += 1
        for name, data in dataset.files.submission_notes(seen).items():
            write(name, data)
    return count


@contextmanager
def zip_writer(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Writes files, and the folders above them, into a new zip, which replaces `path` at the end."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        folders: set[str] = set()

        def write(name: str, data: bytes) -> None:
            for folder in reversed(PurePosixPath(name).parents[:-1]):
                if str(folder) not in folders:
                    archive.mkdir(str(folder), FOLDER_BITS)
                    folders.add(str(folder))
            # Members have no date but 1980, so that equal predictions make equal zips.
            info = zipfile.ZipInfo(name)
            info.external_attr = FILE_BITS << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)

        yield write
