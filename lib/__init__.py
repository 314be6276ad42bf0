"""Model, data and export code of the pipeline; the notebooks are thin on top of it."""

import warnings

# tqdm advises to install widgets; progress is plain text here on purpose, so that it shows in
# terminals and stays in executed notebooks
warnings.filterwarnings("ignore", message="IProgress not found")
