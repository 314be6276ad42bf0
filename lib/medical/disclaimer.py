"""What everything that leaves this pipeline says of itself."""

DISCLAIMER = (
    "Educational use only. This is not medical advice, it may be wrong, and it does not replace a professional. "
    "In an emergency, call your local emergency number first."
)
