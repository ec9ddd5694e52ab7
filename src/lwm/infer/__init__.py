"""Generation at its altitudes: the rule (`sampling`), the loop (`engine`), documents and questions (`session`)."""
