"""Text -> documents (sources) -> tokens (tokenizers) -> memory-mapped cache -> rows in a stateless order -> batches."""

from app.data.corpus import Batch
from app.data.module import TokenDataModule, build_data

__all__ = ["Batch", "TokenDataModule", "build_data"]
