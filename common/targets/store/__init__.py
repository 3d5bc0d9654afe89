"""Teacher targets on disk. The only module that knows paths, codecs, chunks, checksums and the manifest."""

from common.targets.store.encoding import UnstorableError
from common.targets.store.identity import StoreIdentity, TargetEncoding, ViewSet
from common.targets.store.scan_file import EncodedTargets
from common.targets.store.store import ScanView, TargetStore

__all__ = ["EncodedTargets", "ScanView", "StoreIdentity", "TargetEncoding", "TargetStore", "UnstorableError", "ViewSet"]
