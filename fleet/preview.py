"""The picture pair of a subject in the gallery: the last one that its training showed to TensorBoard."""

from __future__ import annotations

from pathlib import Path

from utils.files import atomic_path

PREVIEW = "preview.png"  # rendering, photograph, error
ORDER = ("1_val/", "2_test/", "3_train/")


def keep_preview(folder: Path) -> None:
    """Writes `preview.png` beside the curves, if there is a picture among them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    best: tuple[int, int, bytes] | None = None
    for path in folder.glob("events.out.tfevents.*"):
        for record in RawEventFileLoader(str(path)).Load():
            if b"render_truth_error" not in record:
                continue
            event = Event.FromString(record)
            for value in event.summary.value:
                rank = next((ORDER.index(start) for start in ORDER if value.tag.startswith(start)), len(ORDER))
                if value.image.encoded_image_string and (best is None or (-rank, event.step) > best[:2]):
                    best = -rank, event.step, value.image.encoded_image_string
    if best is not None:
        with atomic_path(folder / PREVIEW) as temporary:
            temporary.write_bytes(best[2])
