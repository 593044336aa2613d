"""What the model shows in nerfstudio's viewer."""

from __future__ import annotations

from nerfstudio.viewer.viewer_elements import ViewerText
from viser import ViserServer


class Readout(ViewerText):
    """A line of text that the model writes and nobody edits.

    The viewer renders anew whenever one of its elements changes. A line written with every frame would keep it
    rendering for ever, so this one does not report its changes.
    """

    def __init__(self, name: str, text: str, hint: str | None = None) -> None:
        super().__init__(name, text, disabled=True, hint=hint)

    def install(self, viser_server: ViserServer) -> None:
        self._create_gui_handle(viser_server)
