"""Images made by physics from measured spectra, with known truth."""
