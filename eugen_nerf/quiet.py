"""Remarks of libraries on each other, which the person at the keyboard can do nothing about."""

from __future__ import annotations

import sys
import warnings


def hide_warnings_about_nerfstudio() -> None:
    """Keep torch's remarks on nerfstudio's own code from the user; those of its import only if called before it.

    Whoever asks Python for warnings (-W, PYTHONWARNINGS) still sees them.
    """
    if sys.warnoptions:
        return
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"nerfstudio\.")
    # Told while nerfstudio is imported, with torch's own file as the place.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    # nerfstudio starts four workers however many cores there are.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
