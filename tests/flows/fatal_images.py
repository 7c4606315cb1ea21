"""Images that kill the process that segments them, for tests; child processes import this module."""

import os
import signal
from typing import Any

from fcnpipe.survey.image_list import SurveyImage
from flows import subflows

PROCESS_IMAGE = subflows._process_image


def process_image(
    sender: Any, entry: SurveyImage, batch: subflows.BatchOptions, context: bytes
) -> None:
    """Kill the process if the image is named poison, as the kernel does when memory runs out."""
    if "poison" in entry.name:
        os.kill(os.getpid(), signal.SIGKILL)
    PROCESS_IMAGE(sender, entry, batch, context)
