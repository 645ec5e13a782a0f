from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edge_sfda.data.scene import DOMAINS, SCENE_CLASSES, Scene
from edge_sfda.data.scene_shapes import Label
from edge_sfda.errors import UsageError

PHOTOMETRIC = ("day", "dusk", "night", "fog", "rain", "sensor")


def test_domains_are_the_named_ones() -> None:
    assert tuple(DOMAINS) == ("day", "dusk", "night", "fog", "rain", "city", "sensor")


def test_classes_are_in_the_order_of_the_labels() -> None:
    assert SCENE_CLASSES.names == tuple(label.name.lower() for label in Label)
    assert len(set(SCENE_CLASSES.palette)) == 10


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (61, 97), (120, 40), (40, 200)])
def test_render_gives_the_size_asked_for(domain: str, height: int, width: int) -> None:
    image, label = Scene(1, height, width).render(3.0, domain)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert (label.shape, label.dtype) == ((height, width), np.uint8)
    assert label.max() < len(SCENE_CLASSES)


@pytest.mark.parametrize("domain", DOMAINS)
def test_render_does_not_depend_on_what_was_rendered_before(domain: str) -> None:
    fresh = Scene(7, 48, 64).render(12.3, domain)
    used = Scene(7, 48, 64)
    for t, other in ((500.0, "city"), (0.0, "night"), (12.0, domain)):
        used.render(t, other)
    again = used.render(12.3, domain)
    assert np.array_equal(fresh[0], again[0])
    assert np.array_equal(fresh[1], again[1])


def test_render_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from edge_sfda.data.scene import Scene; i, l = Scene(3, 48, 64).render(4.7, 'rain');"
        "print(hashlib.sha256(i.tobytes() + l.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    image, label = Scene(3, 48, 64).render(4.7, "rain")
    assert other.stdout.strip() == hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


@pytest.mark.parametrize("t", [0.0, 17.5, 1234.0])
def test_label_is_the_same_in_all_domains_of_a_town(t: float) -> None:
    scene = Scene(2, 96, 128)
    labels = {name: scene.render(t, name)[1] for name in DOMAINS}
    for name in PHOTOMETRIC:
        assert np.array_equal(labels[name], labels["day"]), name
    assert (labels["city"] != labels["day"]).mean() > 0.1


def test_pictures_of_domains_differ() -> None:
    scene = Scene(2, 96, 128)
    pictures = [scene.render(5.0, name)[0].astype(int) for name in PHOTOMETRIC]
    for i, a in enumerate(pictures):
        for b in pictures[i + 1 :]:
            assert np.abs(a - b).mean() > 8


@pytest.mark.parametrize("style", ["home", "city"])
def test_image_and_label_agree_to_the_pixel(style: str) -> None:
    """In a plain light, a magenta sky shows exactly where the label says sky."""
    plain = replace(
        DOMAINS["day"], style=style, sun=(0, 0, 0), ambient=(1, 1, 1), sky_low=(1, 0, 1), sky_high=(1, 0, 1), cloud=0,
        haze=0, noise=0, blur=0, vignette=0, variation=0,
    )  # fmt: skip
    for t in (0.0, 9.0, 30.0):
        image, label = Scene(5, 192, 256).render(t, plain)
        magenta = (image[..., 0] == image[..., 2]) & (image[..., 1] == 0) & (image[..., 0] > 200)
        assert np.array_equal(magenta, label == Label.SKY)
        assert 0.02 < magenta.mean() < 0.5


@pytest.mark.parametrize("domain", ["day", "city"])
def test_all_classes_appear_within_half_a_minute(domain: str) -> None:
    scene = Scene(0)
    seen = set[int]()
    for t in range(0, 30, 3):
        seen |= set(np.unique(scene.render(float(t), domain)[1]).tolist())
    assert seen == set(range(10))


def test_road_lies_below_and_sky_above() -> None:
    scene = Scene(4, 96, 128)
    for t in (0.0, 10.0, 20.0, 30.0):
        label = scene.render(t)[1]
        assert (label[-8:] == Label.ROAD).mean() > 0.3
        assert not (label[:40] == Label.ROAD).any()
        assert not (label[60:] == Label.SKY).any()


def test_consecutive_frames_differ_a_little_and_distant_ones_much() -> None:
    scene = Scene(6, 96, 128)
    labels = [scene.render(20 + i / 30)[1] for i in range(20)]
    steps = [float((a != b).mean()) for a, b in pairwise(labels)]
    assert min(steps) > 0
    assert max(steps) < 0.1
    assert (labels[0] != scene.render(60.0)[1]).mean() > 0.15


def test_frames_are_as_smooth_after_a_day_of_driving() -> None:
    scene = Scene(6, 96, 128)
    a, b = (scene.render(86_400 + dt)[1] for dt in (0.0, 1 / 30))
    assert 0 < (a != b).mean() < 0.1


def test_seeds_make_different_streets() -> None:
    labels = [Scene(seed, 96, 128).render(10.0)[1] for seed in range(4)]
    for i, a in enumerate(labels):
        for b in labels[i + 1 :]:
            assert (a != b).mean() > 0.1


def test_day_is_brighter_than_dusk_and_dusk_than_night() -> None:
    scene = Scene(3, 96, 128)
    day, dusk, night = (
        np.mean([scene.render(t, name)[0].mean() for t in (0.0, 8.0, 16.0)]) for name in ("day", "dusk", "night")
    )
    assert day > dusk + 10 > night + 10 > 40


def test_lamps_shine_at_night() -> None:
    scene = Scene(3)
    image, label = scene.render(8.0, "night")
    assert np.percentile(image[label == Label.SKY], 50) < 90
    assert (image.min(axis=2) > 240).any()


def test_haze_grows_with_distance() -> None:
    clear = replace(DOMAINS["day"], variation=0, noise=0, haze=0)
    hazy = replace(clear, haze=0.03, haze_rgb=(1, 0, 1))
    image, label = Scene(3, 96, 128).render(8.0, hazy)
    magenta = image.astype(int)[..., 0] - image[..., 1]
    rows = [float(magenta[row][label[row] == Label.ROAD].mean()) for row in (52, 60, 72, 94)]
    assert rows[0] > rows[1] + 10 > rows[2] + 20 > rows[3] + 30
    assert abs((Scene(3, 96, 128).render(8.0, clear)[0].astype(int)[94, :, 0] - image[94, :, 0]).mean()) < 40


def test_rain_darkens_and_mirrors_the_road_only() -> None:
    dry = replace(DOMAINS["rain"], variation=0, noise=0, blur=0, haze=0, rain=0, wet=0, lamps=0)
    a, label = Scene(3, 96, 128).render(8.0, dry)
    b, _ = Scene(3, 96, 128).render(8.0, replace(dry, wet=1.0))
    changed = (a != b).any(axis=2)
    assert changed[70:][np.isin(label[70:], (Label.ROAD, Label.PAVEMENT))].mean() > 0.8
    assert not changed[:40].any()
    assert not changed[label == Label.BUILDING].any()


@pytest.mark.parametrize("arguments", [(-1, 48, 64), (0, 15, 64), (0, 48, 9000), (2**32, 48, 64)])
def test_scene_refuses_values_out_of_range(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="expected seed"):
        Scene(*arguments)


@pytest.mark.parametrize("t", [-0.1, float("nan"), float("inf"), 1e8])
def test_render_refuses_times_out_of_range(t: float) -> None:
    with pytest.raises(UsageError, match="must lie in"):
        Scene(0, 16, 16).render(t)


def test_render_refuses_an_unknown_domain() -> None:
    with pytest.raises(UsageError, match="unknown scene domain 'dawn'; choose one of day, dusk"):
        Scene(0, 16, 16).render(0.0, "dawn")
