"""Teacher targets on disk. The only module that knows paths, codecs, chunks, checksums and the manifest."""

from common.target_store.encoding import UnstorableError
from common.target_store.identity import StoreIdentity, TargetEncoding, ViewSet
from common.target_store.scan_file import EncodedTargets
from common.target_store.store import ScanView, TargetStore

__all__ = ["EncodedTargets", "ScanView", "StoreIdentity", "TargetEncoding", "TargetStore", "UnstorableError", "ViewSet"]
