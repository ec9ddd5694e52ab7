"""From files to packed batches, on the host: tokenizers, record sources, examples, the packer, the loader."""
