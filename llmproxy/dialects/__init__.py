"""The formats clients speak, without I/O: documents and bytes in, documents and bytes out."""
