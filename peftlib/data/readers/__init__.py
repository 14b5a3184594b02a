"""Published data sets, one file a source. ``peftlib.data`` imports every file, and its classes enter ``DATASETS``."""
