"""Prepare a Colab session for a notebook: runs on Drive, the token, the requirements.

    from lib.runs import colab
    colab.prepare_session()     # the first cell of each notebook calls it, after its clone

It uses the standard library only, since it runs before requirements.txt is installed.
"""

import os
import subprocess
import sys

from lib.common.errors import ROOT


def prepare_session() -> None:
    """Keep runs on Drive, take HF_TOKEN from Colab's secrets, and install the requirements.

    Raise CalledProcessError if the installation fails.
    """
    from google.colab import drive, userdata  # exists only in Colab

    drive.mount("/content/drive")
    # a session's own disk is gone when the session ends
    os.environ["MEDRESCUE_RUNS"] = "/content/drive/MyDrive/medrescue-runs"
    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        print("The Colab secrets have no HF_TOKEN: only public models and data can be loaded.")
    # every time: pip is quick if nothing is missing, and completes an interrupted installation
    pip = [sys.executable, "-m", "pip", "install", "-q", "-r"]
    subprocess.run([*pip, f"{ROOT}/requirements.txt"], check=True)
    os.chdir(ROOT)
