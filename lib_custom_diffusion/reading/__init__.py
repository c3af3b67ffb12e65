"""Reading files of others: nothing in them is executed, nothing is believed that a file's size rules out.

`document.read_document` is the one way in for deltas, LoRAs, embeddings and embedding pictures. It hands back tensors
by name, and `kinds` says what a file is.
"""

from .document import Document, Header, archive, matrix, read_document, read_header, vectors

__all__ = ["Document", "Header", "archive", "matrix", "read_document", "read_header", "vectors"]
