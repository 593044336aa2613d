"""Elements that the model adds to nerfstudio's viewer."""

from __future__ import annotations

from nerfstudio.viewer.viewer_elements import ViewerText
from viser import ViserServer


class Readout(ViewerText):
    """A read-only line of text.

    The viewer renders again whenever one of its elements changes. A line that changes with every frame would keep it
    rendering forever, so this element does not report its changes.
    """

    def __init__(self, name: str, text: str, hint: str | None = None) -> None:
        super().__init__(name, text, disabled=True, hint=hint)

    def install(self, viser_server: ViserServer) -> None:
        self._create_gui_handle(viser_server)
