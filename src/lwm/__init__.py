"""Large World Model: one transformer over long text, images and video."""
