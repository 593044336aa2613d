"""Choose the frames of a split from the lists in a scene's files, or by holding out every n-th frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.blender import split_file
from eugen_nerf.scenes.capture import Capture, Shot, Split
from eugen_nerf.scenes.validate import shorten

# If no photo is held out, every n-th training photo is evaluated.
SHOWN_INTERVAL = 8


def select_split(capture: Capture, split: Split, eval_interval: int) -> tuple[list[Shot], list[str]]:
    """The shots of a split that have an image.

    Args:
        capture: everything that the scene's files list.
        split: "train", "val" or "test". If the files define only one of val and test, it is used for both.
        eval_interval: if the files define no splits, every `eval_interval`-th shot by name is in val and test, and the
            others are in train, as in the evaluations of LLFF and mip-NeRF 360. 0: all shots are in train, and every
            8th of them also in val and test.

    Returns:
        At least one shot, and warnings for the user.

    Raises:
        SceneError: no image exists, or none of the split.
    """
    warnings: list[str] = []
    if capture.splits is None:
        usable = _with_image(capture, capture.shots, warnings)
        usable.sort(key=lambda shot: str(shot.image_path))  # with the extension, as published evaluations sort
        if eval_interval == 0:
            chosen = usable if split == "train" else usable[::SHOWN_INTERVAL]
            warnings.append(
                f"eval interval 0 holds out no photo: all {len(usable)} are trained on, and metrics are of every "
                f"{SHOWN_INTERVAL}th of them, which says nothing about new views"
            )
        else:
            held_out = usable[::eval_interval]
            chosen = [shot for i, shot in enumerate(usable) if i % eval_interval] if split == "train" else held_out
    else:
        indices = _explicit_split(capture, capture.splits, split, warnings)
        sources = {capture.shots[i].source for i in indices}
        _with_image(capture, [shot for shot in capture.shots if shot.source in sources], warnings)
        chosen = [capture.shots[i] for i in indices if capture.shots[i].image_path is not None]
        if split != "train":
            listed = split if split in capture.splits else "test" if split == "val" else "val"
            _warn_of_trained(capture, capture.splits, listed, chosen, warnings)
    if not chosen:
        raise SceneError(
            f"{capture.shots[0].source}: no frame is left for the {split} split, of {len(capture.shots)} "
            f"listed. {_split_rule(capture, eval_interval)}"
        )
    return chosen, warnings


def _warn_of_trained(
    capture: Capture, splits: Mapping[str, tuple[int, ...]], split: Split, chosen: Sequence[Shot], warnings: list[str]
) -> None:
    trained = {_photo(capture.shots[i]) for i in splits.get("train", ())}
    repeated = [shot for shot in chosen if _photo(shot) in trained]
    if repeated:
        warnings.append(
            f"{_split_name(capture, split)}: {len(repeated)} of its {len(chosen)} photos are training photos too (the "
            f"first is {shorten(repeated[0].listed)}); metrics on those say nothing about new views"
        )


def _photo(shot: Shot) -> str | None:
    """The file of a photo, by whichever name it is listed."""
    return None if shot.image_path is None else os.path.realpath(shot.image_path)


def _split_rule(capture: Capture, eval_interval: int) -> str:
    if capture.splits is None:
        return f"Of the frames sorted by name, every {eval_interval}th is held out and the rest is for training"
    return f"The scene's files assign frames to {', '.join(capture.splits)}"


def _with_image(capture: Capture, shots: Sequence[Shot], warnings: list[str]) -> list[Shot]:
    """Shots whose image exists. Warns about the others: some published scenes list images that they do not include."""
    missing = [shot for shot in shots if shot.image_path is None]
    if missing:
        source = missing[0].source
        foreign = next((shot for shot in missing if os.path.isfile(capture.root / shot.listed)), None)
        if foreign is not None:
            raise SceneError(
                f"{capture.root / foreign.listed}: listed in {source.name}, but not a .png, .jpg or .jpeg file; "
                "convert it. Only the extension may change, and the scene's files need no edit"
            )
        if len(missing) == len(shots):
            raise SceneError(
                f"{source}: none of the {len(shots)} images it lists exists; the first is "
                f"{shorten(missing[0].listed)}, relative to {capture.root}"
            )
        names = ", ".join(shot.listed for shot in missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.append(
            f"{source}: {len(missing)} of the {len(shots)} images it lists do not exist ({names}); they are "
            f"left out and the other {len(shots) - len(missing)} are used"
        )
    return [shot for shot in shots if shot.image_path is not None]


def _explicit_split(
    capture: Capture, splits: Mapping[str, tuple[int, ...]], split: Split, warnings: list[str]
) -> tuple[int, ...]:
    if split in splits:
        return splits[split]
    other = "test" if split == "val" else "val"
    if split != "train" and other in splits:
        warnings.append(f"{_split_name(capture, split)} is missing; {_split_name(capture, other)} is used in its place")
        return splits[other]
    raise SceneError(f"{_split_name(capture, split)} is missing; it is needed to know the {split} frames")


def _split_name(capture: Capture, split: str) -> str:
    if capture.layout == "blender":
        return str(split_file(capture.root, split))
    return f"{capture.shots[0].source}: {split}_filenames"
