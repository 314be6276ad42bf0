"""The warning on everything that this pipeline exports."""

DISCLAIMER = (
    "Educational use only. This is not medical advice, it may be wrong, and it does not replace "
    "a professional. In an emergency, call your local emergency number first."
)
