"""Guarantees pinned here:

- architectures come from open_clip's names, JSON files, `package:file`, `local-dir:` and `hf-hub:`; weights from tags,
  safetensors, pickles of tensors, our own whole checkpoints, a visual tower with `text_weights`, or an explicit random;
- weights from a file are preprocessed as all published weights of the name are, where those agree;
- half precision is read into full;
- whatever is missing, damaged, unsafe or does not fit is a DataError with a way out, and never random weights;
- a hub model in another format, an odd config and a whole model beside `text_weights` are told as what they are;
- QuickGELU weights in a GELU model, or the other way round, are an error that names the right architecture;
- weights that are not finite, or features unlike open_clip's, fail the self-test.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from advdistill_clip import configs, loading
from advdistill_clip.loading import load_base
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tune import ClipTune
from clip_parts import RESNET, Parts, images, settings
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from advdistill import DataError


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(tmp_path, settings())


def load(**source: object) -> loading.Base:
    return load_base(configs.Clip.model_validate(source))


def refused(**source: object) -> DataError:
    with pytest.raises(DataError) as caught:
        load(**source)
    assert caught.value.hint and caught.value.exit_code == 5
    return caught.value


def same(base: loading.Base, parts: Parts) -> bool:
    expected = parts.model.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in base.model.state_dict().items())


# Where models come from


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_files_of_tensors(parts, suffix):
    path = parts.weights.with_name(f"other{suffix}")
    state = parts.model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(load(model=str(parts.path), weights=str(path)), parts)


def test_training_files_are_unwrapped(parts):
    path = parts.weights.with_suffix(".pt")
    state = {f"module.{name}": tensor for name, tensor in parts.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert same(load(model=str(parts.path), weights=str(path)), parts)


def test_half_precision_is_read_into_full(parts):
    save_file({name: tensor.half() for name, tensor in parts.model.state_dict().items()}, parts.weights)
    base = load(**parts.source)
    assert {tensor.dtype for tensor in base.model.parameters()} == {torch.float32}
    exact = parts.model.state_dict()["visual.proj"]
    torch.testing.assert_close(base.model.visual.proj, exact, atol=1e-3, rtol=1e-3)
    assert not torch.equal(base.model.visual.proj, exact)


def test_files_inside_a_package(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    parts = Parts(package, settings())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert same(load(model="some_package:tiny.json", weights="some_package:tiny.safetensors"), parts)


def folder_model(folder: Path, parts: Parts, weights: str = "open_clip_model.safetensors") -> str:
    folder.mkdir()
    told = {"model_cfg": parts.config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    save_file(parts.model.state_dict(), folder / weights)
    return f"local-dir:{folder}"


def test_local_folders_bring_weights_and_preprocessing(tmp_path, parts):
    base = load(model=folder_model(tmp_path / "folder", parts))
    assert same(base, parts)
    assert base.preprocess["mean"] == [0.5, 0.5, 0.5] and base.preprocess["interpolation"] == "bilinear"
    assert base.preprocess["std"] == list(open_clip.OPENAI_DATASET_STD)


def test_local_folders_never_guess_at_weights(tmp_path, parts):
    error = refused(model=folder_model(tmp_path / "folder", parts, "prompts.safetensors"))
    assert "holds no weights" in error.message and "open_clip_model.safetensors" in error.hint
    assert "brings its own" in refused(model=f"local-dir:{tmp_path / 'folder'}", weights="random").message


def test_hub_models_bring_weights(tmp_path, parts, monkeypatch):
    folder_model(tmp_path / "folder", parts)

    def fetch(repository: str, filename: str = "open_clip_model.safetensors") -> str:
        assert repository == "org/name"
        return str(tmp_path / "folder" / filename)

    monkeypatch.setattr(loading, "download_pretrained_from_hf", fetch)
    assert same(load(model="hf-hub:org/name"), parts)


def test_tags_bring_weights_and_preprocessing(parts, monkeypatch):
    tag = {"url": "somewhere", "mean": (0.1, 0.2, 0.3), "quick_gelu": False}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: settings() if name == "tiny-arch" else None)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag if name == "some_tag" else {})
    monkeypatch.setattr(loading, "download_pretrained", lambda cfg: str(parts.weights))
    base = load(model="tiny-arch", weights="some_tag")
    assert same(base, parts) and base.preprocess["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("name", "mean", "interpolation"),
    [
        ("ViT-B-32", list(open_clip.OPENAI_DATASET_MEAN), "bicubic"),
        ("ViT-B-16-SigLIP", [0.5, 0.5, 0.5], "bicubic"),
        ("MobileCLIP-S1", [0.0, 0.0, 0.0], "bilinear"),
        ("ViT-L-14-CLIPA", [0.485, 0.456, 0.406], "bilinear"),
        ("ViT-L-14", list(open_clip.OPENAI_DATASET_MEAN), "bicubic"),  # its weights disagree: open_clip's default
        ("EVA01-g-14", list(open_clip.OPENAI_DATASET_MEAN), "bicubic"),
    ],
)
def test_files_are_preprocessed_as_published_weights_are(name, mean, interpolation):
    base = load_base(configs.Clip(model=name, weights="some.safetensors"), weights=False)
    assert base.preprocess["mean"] == mean and base.preprocess["interpolation"] == interpolation


def test_towers_that_need_transformers_say_so(parts, monkeypatch):
    def build(**settings_: object) -> None:
        raise RuntimeError("Please `pip install transformers` to use pre-trained HuggingFace models")

    monkeypatch.setattr(open_clip, "CLIP", build)
    error = refused(model=str(parts.path), weights="random")
    assert "cannot build" in error.message and error.hint == "install transformers"


def test_visual_towers_take_the_rest_from_elsewhere(parts):
    visual = {name: tensor + 1 for name, tensor in parts.model.visual.state_dict().items()}
    path = parts.weights.with_name("visual.pt")
    for prefix in ("", "visual."):
        torch.save({prefix + name: tensor for name, tensor in visual.items()}, path)
        error = refused(model=str(parts.path), weights=str(path))
        assert "visual tower alone" in error.message and "text_weights" in error.hint
        base = load(model=str(parts.path), weights=str(path), text_weights=str(parts.weights))
        assert torch.equal(base.model.visual.proj, visual["proj"])
        assert torch.equal(base.model.text_projection, parts.model.text_projection)
    error = refused(model=str(parts.path), weights=str(parts.weights), text_weights=str(parts.weights))
    assert "holds a whole model" in error.message and "text_weights" in error.hint
    tuned = ClipTune.from_config(configs.Tune(**parts.source))
    save_file({name: tensor.detach() for name, tensor in tuned.learned().items()}, path.with_suffix(".safetensors"))
    twice = load(model=str(parts.path), weights=str(path.with_suffix(".safetensors")), text_weights=str(parts.weights))
    assert same(twice, parts)


def test_random_is_only_what_was_asked_for(parts):
    assert not same(load(model=str(parts.path), weights="random"), parts)


# What is refused


def test_no_weights_never_become_random_ones(parts):
    assert "random" in refused(model=str(parts.path)).hint
    error = refused(model="ViT-B-32-quickgelu")
    assert "no weights" in error.message and "openai" in error.hint
    assert "no weights file" in refused(model=str(parts.path), weights="nowhere.safetensors").message


def test_misspelt_names_are_guessed_at():
    assert "ViT-B-32" in refused(model="ViT-B32", weights="openai").hint
    assert "did you mean openai?" in refused(model="ViT-B-32-quickgelu", weights="openia").hint
    assert "no such model config" in refused(model="nowhere.json", weights="random").message


UNKNOWN = '{"embed_dim": 16, "vision_cfg": {"x": 1}, "text_cfg": {}}'


ODD = [
    {"vision_cfg": None},
    {"vision_cfg": 3},
    {"embed_dim": "a"},
    settings(vision={"width": 0}),
    settings(vision={"layers": "x"}),
    settings(vision={"patch_size": 0}),
    settings(vision={"timm_model_name": "nope"}),
    settings(text={"vocab_size": 100}),
    {"preprocess_cfg": [1]},
    {"preprocess_cfg": {"mean": 3}},
    {"preprocess_cfg": {"mean": [0.5, 0.5]}},
    {"preprocess_cfg": {"std": "x"}},
    {"model_cfg": 3},
]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"embed_dim": 16}', UNKNOWN, *(json.dumps({**settings(), **odd}) for odd in ODD)]
)
def test_configs_that_are_none(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    assert "broken.json" in refused(model=str(path), weights="random").message


class NotATensor:
    """Something a pickle may hold."""


def test_pickles_of_other_objects_are_not_opened(parts):
    path = parts.weights.with_suffix(".pt")
    for thing in (NotATensor(), {"state_dict": {"a": torch.ones(1)}, "args": NotATensor()}):
        torch.save(thing, path)
        error = refused(model=str(parts.path), weights=str(path))
        assert "more than tensors" in error.message and "save_file" in error.hint
    path.write_bytes(pickle.dumps(NotATensor(), protocol=2))
    assert "more than tensors" in refused(model=str(parts.path), weights=str(path)).message
    torch.save([torch.ones(1)], path)
    assert "no state dict" in refused(model=str(parts.path), weights=str(path)).message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_files(parts, suffix, damage):
    path = parts.weights.with_name(f"damaged{suffix}")
    state = parts.model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 8}[damage])
    assert "damaged" in refused(model=str(parts.path), weights=str(path)).message


def test_other_architectures_are_refused(tmp_path, parts):
    wider = Parts(tmp_path, settings(vision={"width": 48}), "wider")
    error = refused(model=str(wider.path), weights=str(parts.weights))
    assert "of another shape" in error.message and "(32,) for (48,)" in error.message
    deeper = Parts(tmp_path, settings(text={"layers": 4}), "deeper")
    assert "12 missing" in refused(model=str(deeper.path), weights=str(parts.weights)).message
    assert "12 unexpected" in refused(model=str(parts.path), weights=str(deeper.weights)).message
    resnet = Parts(tmp_path, settings(vision=RESNET), "resnet")
    error = refused(model=str(resnet.path), weights=str(parts.weights))
    assert "missing" in error.message and "unexpected" in error.message
    folder = folder_model(tmp_path / "folder", parts)
    (tmp_path / "folder" / "open_clip_config.json").write_text(json.dumps({"model_cfg": deeper.config}))
    assert "does not fit" in refused(model=folder).message


def test_a_students_checkpoint_is_no_base(parts):
    student = ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 1}, visual={"depth": 1}))
    path = parts.weights.with_name("student.safetensors")
    note = json.dumps(student.describe())
    save_file({name: tensor.detach() for name, tensor in student.learned().items()}, path, {"advdistill": note})
    error = refused(model=str(parts.path), weights=str(path))
    assert "2 unexpected" in error.message and "use: checkpoint" in error.hint


def test_activations_must_agree(tmp_path, parts, monkeypatch):
    error = refused(model="ViT-B-32", weights="openai")
    assert "quickgelu" in error.message and error.hint == "write model: ViT-B-32-quickgelu"
    assert "go with ViT-B-32" in refused(model="ViT-B-32-quickgelu", weights="laion2b_s34b_b79k").hint
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"quick_gelu": False})
    assert refused(model="ViT-B-32-quickgelu", weights="plain_tag").hint == "write model: ViT-B-32"
    save_file(parts.model.state_dict(), parts.weights, {"advdistill": json.dumps({"activation": "quickgelu"})})
    error = refused(**parts.source)
    assert "computes gelu" in error.message and "quick_gelu" in error.hint
    quick = Parts(tmp_path, settings(quick_gelu=True), "quick")
    assert load(model=str(quick.path), weights=str(parts.weights)).architecture.activation == "quickgelu"


def test_no_network_is_told(monkeypatch):
    def fail(*args: object, **settings: object) -> None:
        raise FileNotFoundError("no route")

    monkeypatch.setattr(loading, "download_pretrained_from_hf", fail)
    monkeypatch.setattr(loading, "download_pretrained", fail)
    for source in ({"model": "hf-hub:org/name"}, {"model": "ViT-B-32-quickgelu", "weights": "openai"}):
        error = refused(**source)
        assert "could not be fetched: no route" in error.message and "local-dir" in error.hint


@pytest.mark.parametrize("there", [True, False])
def test_hub_models_of_another_format_are_told(monkeypatch, there):
    def fail(*args: object, **settings: object) -> None:
        try:
            raise EntryNotFoundError("404") if there else LocalEntryNotFoundError("not cached")
        except Exception as error:
            raise FileNotFoundError(f"Failed to download: {error}")  # noqa: B904 as open_clip does

    monkeypatch.setattr(loading, "download_pretrained_from_hf", fail)
    error = refused(model="hf-hub:org/name")
    told = "hf-hub:org/name holds no open_clip_config.json: it is not in open_clip's format"
    assert (error.message == told) == there and ("offline" in error.hint) != there


def test_weights_that_are_not_finite_fail_the_self_test(parts):
    state = dict(parts.model.state_dict())
    state["visual.proj"] = state["visual.proj"] * float("nan")
    save_file(state, parts.weights)
    assert "features differ" in refused(**parts.source).message


def test_features_unlike_open_clips_fail_the_self_test(parts, monkeypatch):
    original = loading.encode_pixels
    monkeypatch.setattr(loading, "encode_pixels", lambda visual, pixels: original(visual, pixels * 1.001))
    assert "image features differ" in refused(**parts.source).message


def test_loaded_bases_are_frozen_and_in_eval(parts):
    clip = Clip.from_config(configs.Clip(**parts.source))
    assert not any(p.requires_grad for p in clip.parameters())
    assert not any(module.training for module in clip.model.modules())
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(clip.features(x).sum(), x)
    assert slope.abs().sum() > 0
