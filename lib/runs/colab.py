"""A Colab session made ready for a notebook: runs on Drive, the token, the requirements.

    from lib.runs import colab
    colab.prepare_session()     # the first cell of each notebook calls it, after its clone

Standard library only: it runs before anything of requirements.txt is installed.
"""

import os
import subprocess
import sys

from lib.common.errors import ROOT


def prepare_session() -> None:
    """Keep the runs on Drive, take HF_TOKEN from Colab's secrets, install what the pipeline needs.

    Raise CalledProcessError if the installation fails.
    """
    from google.colab import drive, userdata  # exists in Colab alone

    drive.mount("/content/drive")
    # a session's own disk is gone when the session ends
    os.environ["MEDRESCUE_RUNS"] = "/content/drive/MyDrive/medrescue-runs"
    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        print("There is no HF_TOKEN among the Colab secrets: only public models and data.")
    # each time: pip is quick when all is there, and completes an installation that was cut off
    pip = [sys.executable, "-m", "pip", "install", "-q", "-r"]
    subprocess.run([*pip, f"{ROOT}/requirements.txt"], check=True)
    os.chdir(ROOT)
