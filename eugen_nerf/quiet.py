"""Suppress third-party warnings that the user cannot act on."""

from __future__ import annotations

import sys
import warnings


def hide_warnings_about_nerfstudio() -> None:
    """Hide torch's warnings about nerfstudio's own code.

    Call this before importing nerfstudio to hide also the warnings of the import. Warnings that are requested with -W
    or PYTHONWARNINGS are still shown.
    """
    if sys.warnoptions:
        return
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"nerfstudio\.")
    # Issued while nerfstudio is imported, and attributed to a file of torch.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    # nerfstudio starts four workers regardless of the number of cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
