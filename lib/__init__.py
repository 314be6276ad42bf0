"""The pipeline's code for data, training, export and exams; the notebooks only call it."""

import warnings

# tqdm suggests installing widgets; progress is plain text here on purpose, so that it shows in
# terminals and stays in executed notebooks
warnings.filterwarnings("ignore", message="IProgress not found")
