"""Model, data and export code of the pipeline; the notebooks are thin on top of it."""

import warnings

# tqdm's advice to install widgets: progress here is plain text on purpose, so that it shows in terminals and stays in notebooks
warnings.filterwarnings("ignore", message="IProgress not found")
