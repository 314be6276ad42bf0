"""Kernels run in Triton's interpreter where the tests see no GPU, which must be decided before any is defined."""

import os

import pytest

from helpers import interpreter

pytest.importorskip("triton", reason="the kernels need triton")


