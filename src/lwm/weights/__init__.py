"""Models on disk: this project's model directory (`store`), and other projects' weights as our parameters."""
