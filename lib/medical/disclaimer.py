"""The warning that stands on everything that leaves this pipeline."""

DISCLAIMER = (
    "Educational use only. This is not medical advice, it may be wrong, and it does not replace "
    "a professional. In an emergency, call your local emergency number first."
)
